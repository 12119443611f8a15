"Kernels of a dashboard's pages, in Chromium: one a page that is open, none of one that is closed or lost"
import shutil, time

import psutil
import pytest

from browser import open_page

pytest.importorskip('voila')
pytestmark = pytest.mark.browser

def kernels(server): return [k for k in psutil.Process(server.process.pid).children() if k.status()!='zombie']

def until(server, n, seconds=20.):
    end = time.monotonic()+seconds
    while len(kernels(server))!=n and time.monotonic()<end: time.sleep(.05)
    assert len(kernels(server))==n, (n, [k.status() for k in kernels(server)])

def test_kernels_end_with_their_pages(browser):
    "Closed, loaded again, lost; and a page with a pipeline is quiet"
    from fluxinterp.dashboards.serving import dashboard_notebook, served
    with served(dashboard_notebook('tiny-flux/double.1.image', 'tiny-flux', 'steps'), idle=2) as s:
        with open_page(browser) as page:
            seen = []
            for load in (lambda: page.goto(s.url, timeout=90_000), lambda: page.reload(timeout=90_000)):
                load()
                page.wait_for_selector('.flx-player canvas', timeout=90_000)
                until(s, 1)
                seen += kernels(s)
            assert len(set(seen))==2 # the page loaded again has another, and the first has ended
            assert page.locator('[data-mime-type*=stderr]').count()==0 and 'Cannot enable' not in page.content()
            time.sleep(4) # an open page keeps its kernel, however quiet
            assert kernels(s)==seen[1:]
        until(s, 0) # a context that is closed lets its page say nothing
