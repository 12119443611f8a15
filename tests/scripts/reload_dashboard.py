"""Kernels of a dashboard while its page is loaded again and again: one while it is open, none after it is closed.

    python tests/scripts/reload_dashboard.py 20

Every fourth page is not closed but lost (its process is told nothing), as when a browser is killed."""
import shutil, sys, time

import psutil
from playwright.sync_api import sync_playwright

from fluxinterp.dashboards.serving import dashboard_notebook, served

def kernels(server): # memory of each, in MB
    alive = [k for k in psutil.Process(server.process.pid).children() if k.status()!='zombie']
    return [round(k.memory_info().rss/1e6) for k in alive]

def until(server, n, seconds): # whether there are n kernels in time, and after how long
    began = time.monotonic()
    while len(kernels(server))!=n and time.monotonic()-began<seconds: time.sleep(.1)
    return len(kernels(server))==n,round(time.monotonic()-began, 1)

def main():
    n,idle,wrong = int(sys.argv[1]) if sys.argv[1:] else 20,5,0
    notebook = dashboard_notebook('tiny-flux/double.1.image', view='browser')
    with served(notebook, idle=idle) as s, sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which('chromium'), args='--headless --no-sandbox --disable-gpu'.split())
        page = None
        for i in range(n):
            page = page or b.new_page()
            page.set_default_timeout(120_000) # a busy machine
            page.goto(s.url) if i%2==0 else page.reload()
            page.wait_for_selector('.flx-line')
            one,took = until(s, 1, 3*idle)
            print(f'load {i+1}: kernels of {kernels(s)} MB, after {took} s', flush=True)
            wrong += not one
            if i%4!=3: continue
            page.close() # without `beforeunload`
            page = None
            none,took = until(s, 0, 3*idle)
            print(f'lost: {len(kernels(s))} kernels after {took} s', flush=True)
            wrong += not none
        if page: page.goto('about:blank')
        none,took = until(s, 0, 3*idle)
        print(f'closed: {len(kernels(s))} kernels after {took} s; {wrong+(not none)} times not as it should be')
        b.close()
    return bool(wrong) or not none

if __name__=='__main__': sys.exit(main())
