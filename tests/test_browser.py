"The views where people meet them: JupyterLab, Notebook 7 and Voila, in Chromium"
import os, re, signal, subprocess, sys

import pytest
from playwright.sync_api import expect

from browser import asked, check_view, command, kernel_messages, kernel_until, kernel_value, kernels_of, lab_theme, notebook, open_beside, open_notebook, open_page, pixels, restart_kernel, root, run_all, screenshot, session_ready, voila_server

pytestmark = pytest.mark.browser
ready = '.flx-player[data-ready]'

# A new view: a cell here that ends in it (views of one notebook share the import), and a test that takes `lab_page`, does something to it and ends in `check_view`.
cells = ["""import fluxinterp as fi
from fluxinterp.widgets.map_player import MapPlayer
from fluxinterp.widgets.base import StatusBar
pipe,sae = fi.load_pipeline('tiny-flux'),fi.load_dictionary('tiny-flux/double.1.image')""",
"""maps = [fi.activation_map(pipe, sae, f, ['a red circle on the left'], seed=0) for f in (7, 17)]
player = MapPlayer(asks=True, step=0)
player.strongest = lambda step,row,col: [(7, float(maps[0].values[0,step,row,col]), 'seven')]
player.load(maps)
player""",
"player", # a second view of the same
"""bar = StatusBar()
bar.show(True, .5, 'drawing', '')
bar"""]

# the same without a model, for kernels of which there are many
light = ["""import numpy as np
from types import SimpleNamespace
from PIL import Image
from fluxinterp.widgets.map_player import MapPlayer
from fluxinterp.widgets.base import StatusBar
v = np.random.default_rng(0).random((1, 4, 8, 8))
player = MapPlayer(asks=True, step=0)
player.strongest = lambda step,row,col: [(7, v[0,step,row,col], 'seven')]
player.load([SimpleNamespace(values=v, feature=7, levels=[1., .75, .5, .25], captions=['a circle'], previews=[[Image.new('RGB', (64, 64), (60*s, 80, 120)) for s in range(4)]], images=None, signed=False)])
player""", cells[-1]]

@pytest.fixture(scope='module')
def lab_page(browser, lab):
    "JupyterLab with the notebook open and run; the tests of this file go through it in order"
    name = notebook(lab.folder, 'views.ipynb', *cells)
    lab.share(name)
    with open_page(browser, height=1400) as page:
        open_notebook(page, lab, name)
        expect(page.locator(ready)).to_have_count(2)
        yield page

def step(page, i=0): return page.get_by_role('slider', name='step').nth(i)
def canvas(page, i=0): return page.locator('.flx-player').nth(i).locator('canvas[tabindex]').first
def line(page, i=0): return page.locator('.flx-says').nth(i)
def show_views(page): page.locator('.flx-player').first.scroll_into_view_if_needed()

def test_lab_shows_views(lab_page):
    expect(lab_page.locator('.flx-status')).to_contain_text('drawing')
    show_views(lab_page)
    check_view(lab_page, shot='lab_light')
    assert kernel_value(lab_page, 'player.shape')=='[2, 4, 16, 16]'

def test_lab_sliders_send_nothing(lab_page):
    "Steps, opacity, colors and scale are the page's business"
    before,seen = len(kernel_messages(lab_page)),[]
    for s in (3, 2, 1, 0)*5:
        step(lab_page).fill(str(s))
        seen.append(pixels(canvas(lab_page)).tobytes())
    assert len(set(seen))>1
    lab_page.get_by_role('slider', name='overlay').first.fill('0.5')
    lab_page.get_by_label('colors').first.select_option('viridis')
    lab_page.get_by_label('scale', exact=True).first.select_option('picture')
    lab_page.get_by_label('smooth').first.check()
    assert len(kernel_messages(lab_page))==before

def test_lab_asks_once_for_a_token(lab_page):
    step(lab_page).fill('1')
    before = len(asked(lab_page, 'strongest'))
    size = canvas(lab_page).bounding_box()['width']/16
    for x in (1, 2, 2.3, 2.6): canvas(lab_page).hover(position=dict(x=(x+.2)*size, y=3.5*size)) # passes over 1, rests on 2
    expect(line(lab_page)).to_contain_text('strongest here: 7 (seven)')
    new = asked(lab_page, 'strongest')[before:]
    assert new[-1]==dict(step=1, row=3, col=2) and len(new)<=2 and new.count(new[-1])==1, new
    canvas(lab_page).click(position=dict(x=2.5*size, y=3.5*size)) # a choice is told to the kernel
    kernel_until(lab_page, 'player.cell')
    assert kernel_value(lab_page, 'player.cell')=="{'row': 3, 'col': 2, 'step': 1}"

def test_lab_two_views_of_one_widget(lab_page):
    "Each has its own step and look; both follow the kernel"
    step(lab_page, 0).fill('3')
    step(lab_page, 1).fill('2')
    expect(step(lab_page, 0)).to_have_value('3')
    kernel_value(lab_page, '[player.set_trait("step", 1), player.load(maps[:1])]')
    for i in (0, 1):
        expect(step(lab_page, i)).to_have_value('1')
        expect(lab_page.locator('.flx-player').nth(i).locator('canvas[tabindex]')).to_have_count(1)
    kernel_value(lab_page, 'player.load(maps)')
    for i in (0, 1): expect(lab_page.locator('.flx-player').nth(i).locator('canvas[tabindex]')).to_have_count(2)
    kernel_value(lab_page, 'bar.show(False, 0., "", "out of memory")')
    expect(lab_page.locator('.flx-status').get_by_role('alert')).to_have_text('out of memory')
    assert not lab_page.errors, lab_page.errors

def test_lab_dark(lab_page):
    lab_theme(lab_page, True)
    show_views(lab_page)
    try: check_view(lab_page, shot='lab_dark')
    finally: lab_theme(lab_page, False)

def test_notebook_7(browser, lab, lab_page):
    "The same notebook in Notebook 7: what was saved shows itself from the living kernel, and runs again"
    command(lab_page, 'docmanager:save')
    with open_page(browser, height=1400) as page:
        open_notebook(page, lab, 'views.ipynb', app='notebook', run=False)
        expect(page.locator(ready)).to_have_count(2)
        run_all(page)
        expect(page.locator(ready)).to_have_count(2)
        before = pixels(canvas(page))
        step(page).fill('2')
        assert (pixels(canvas(page))!=before).any()
        canvas(page).hover()
        expect(line(page)).to_contain_text('strongest here: 7 (seven)')
        check_view(page, shot='notebook7')

def test_lab_reload(lab_page, lab):
    "A page loaded again finds its views in the living kernel, as the kernel has them: what only the page knew (its step) is gone"
    notebook(lab.folder, 'light.ipynb', *light)
    lab_page.evaluate('() => window.jupyterapp.shell.currentWidget.dispose()')
    open_beside(lab_page, 'light.ipynb')
    run_all(lab_page)
    expect(lab_page.locator(ready)).to_have_count(1)
    step(lab_page).fill('3')
    command(lab_page, 'docmanager:save')
    lab_page.reload()
    expect(lab_page.locator(ready)).to_have_count(1, timeout=60_000)
    expect(step(lab_page)).to_have_value('0')
    canvas(lab_page).hover()
    expect(line(lab_page)).to_contain_text('strongest here: 7 (seven)')
    check_view(lab_page)

def test_lab_restart(lab_page):
    "Without its kernel a view goes on drawing and says what it cannot know; loaded again there is Jupyter's word for a widget that is gone; run again all is well"
    restart_kernel(lab_page)
    before = pixels(canvas(lab_page))
    step(lab_page).fill('1')
    assert (pixels(canvas(lab_page))!=before).any()
    canvas(lab_page).click(position=dict(x=20, y=20))
    expect(line(lab_page)).to_contain_text('the kernel is gone or was restarted: run the notebook again')
    lab_page.get_by_role('button', name='Cancel').click()
    screenshot(lab_page, 'lab_restarted')
    assert not lab_page.errors, lab_page.errors
    lab_page.reload()
    expect(lab_page.get_by_text('Error displaying widget: model not found')).to_have_count(2, timeout=60_000)
    assert all('widget model not found' in e for e in lab_page.errors), lab_page.errors
    lab_page.errors.clear()
    lab_page.wait_for_function(session_ready, timeout=60_000)
    run_all(lab_page)
    expect(lab_page.locator(ready)).to_have_count(1)
    canvas(lab_page).hover()
    expect(line(lab_page)).to_contain_text('strongest here: 7 (seven)')
    check_view(lab_page)

def test_voila(browser, tmp_path):
    "As a page of its own in Voila's dark theme, with a kernel of its own, which ends with the server"
    notebook(tmp_path, 'light.ipynb', *light)
    with voila_server(tmp_path, 'light.ipynb', dark=True) as voila, open_page(browser, height=1400, dark=True) as page:
        page.goto(voila.base)
        expect(page.locator(ready)).to_have_count(1, timeout=90_000)
        before,sent = pixels(canvas(page)),len(kernel_messages(page))
        step(page).fill('2')
        assert (pixels(canvas(page))!=before).any() and len(kernel_messages(page))==sent
        canvas(page).hover()
        expect(line(page)).to_contain_text(re.compile(r'strongest here: 7 \(seven\)'))
        assert len(asked(page, 'strongest'))==1
        check_view(page, shot='voila_dark')
    assert not kernels_of(tmp_path)

def test_served_by_the_command(browser, tmp_path):
    "`fluxinterp dashboard`: the browser in Voila's dark theme, with nothing but its address"
    with open(tmp_path/'log', 'w') as log: p = subprocess.Popen([sys.executable, '-m', 'fluxinterp.cli', 'dashboard', 'tiny-flux/double.1.image', '--port', '0', '--dark', '--device', 'cpu'],
                                                                cwd=tmp_path, env=os.environ|dict(TMPDIR=str(tmp_path), PYTHONPATH=str(root), OMP_NUM_THREADS='1'), stdout=log, stderr=log)
    try:
        for _ in range(600):
            if (url := re.search(r'http://127\.0\.0\.1:\d+/\?token=\S+', (tmp_path/'log').read_text())) or p.poll() is not None: break
            try: p.wait(.1)
            except subprocess.TimeoutExpired: pass
        assert url, (tmp_path/'log').read_text()
        with open_page(browser, height=1800, dark=True) as page:
            page.goto(url[0], timeout=90_000)
            expect(page.locator('.flx-line').first).to_be_visible(timeout=90_000)
            page.locator('.flx-scroll').focus()
            page.keyboard.press('n')
            f = page.locator('.flx-line[aria-selected=true] .flx-number').first.inner_text()
            expect(page.locator('.flx-title')).to_contain_text(f'feature {f}')
            page.get_by_role('button', name='flag', exact=False).filter(has_text='⚐').click()
            expect(page.locator('.flx-sheet .flx-error')).to_contain_text('atlas.copy') # a packaged atlas is read only
            check_view(page, shot='command_dark')
    finally:
        p.send_signal(signal.SIGINT)
        try: p.wait(20)
        except subprocess.TimeoutExpired: p.kill()
    assert p.returncode==0
