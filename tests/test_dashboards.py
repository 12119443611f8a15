"Every dashboard in JupyterLab, in Chromium: opened, searched, dragged, painted, steered, cancelled, saved, loaded again"
import json, re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser import asked, axe, check_view, command, kernel_messages, kernel_until, kernel_value, lab_theme, notebook, open_notebook, open_page, pixels, shot_path

pytestmark = pytest.mark.browser

setup = """import warnings; warnings.filterwarnings('ignore')
import fluxinterp as fi
pipe,sae = fi.load_pipeline('tiny-flux'),fi.load_dictionary('tiny-flux/double.1.image')
from pathlib import Path
atlas = fi.Atlas('own') if Path('own').exists() else fi.Atlas('tiny-flux/double.1.image').copy('own')
prompt = 'a large red circle on the left and a small white star on the right'"""
# name -> cell; each ends in its view, which has the class 'try-<name>'
cells = dict(
    browser="browser = fi.FeatureBrowser(atlas, feature=17)\nbrowser.add_class('try-browser')\nbrowser",
    viewer="viewer = fi.TimestepViewer(pipe, sae, prompt, atlases={'double.1.image': atlas}, form=True)\nviewer.add_class('try-viewer')\nviewer",
    inspector="inspector = fi.PromptInspector(pipe, sae, prompt, atlases={'double.1.image': atlas})\ninspector.add_class('try-inspector')\ninspector",
    studio="studio = fi.SteeringStudio(atlas, pipe, prompt=prompt)\nstudio.add_class('try-studio')\nstudio",
    compare="""rec = fi.record(pipe, fi.scene_prompts(6), ['double.1.image'], images=True, previews=True, progress=False)
compare = fi.DictionaryCompare({'SAE': sae, 'PCA': fi.pca(rec['double.1.image'], k=16), 'random': fi.random_directions(rec['double.1.image'], 256, 16)}, rec)
compare.add_class('try-compare')
compare""",
    matrix="matrix = fi.LayerStepMatrix(pipe, prompt)\nmatrix.add_class('try-matrix')\nmatrix",
    monitor="monitor = fi.RunMonitor('own', every=1.)\nmonitor.add_class('try-monitor')\nmonitor")

@pytest.fixture(scope='module')
def lab_page(browser, lab):
    "JupyterLab with a notebook of all dashboards, run; the tests of this file go through it in order"
    name = notebook(lab.folder, 'dashboards.ipynb', setup, *cells.values())
    with open_page(browser, height=1400) as page:
        open_notebook(page, lab, name)
        settle(page)
        yield page

def view(page, name): return page.locator(f'.try-{name}').first
def settle(page):
    "Until nothing is under way"
    page.wait_for_selector('.try-monitor .flx')
    for name in ('viewer', 'inspector', 'studio', 'compare', 'matrix'): kernel_value(page, f'{name}.worker.wait(90)')
    page.wait_for_function('() => document.querySelectorAll(".try-studio .flx-pictures canvas").length >= 1 && document.querySelectorAll(".try-viewer .flx-player canvas").length > 2', timeout=90_000) # two kernels start, on whatever else runs
def field(page, name, label): return view(page, name).get_by_label(label, exact=True)
def said(page, name): return view(page, name).locator('.flx-status [role=status]').first
def press(v, text): v.get_by_role('button', name=re.compile(f'{text}$')).click() # an icon stands before the word
def complaint(page, name): return view(page, name).locator('.flx-error:not(:empty)').first

def test_browser_searches_and_moves(lab_page):
    b = view(lab_page, 'browser')
    expect(b.locator('.flx-line').first).to_be_visible()
    expect(b.locator('.flx-title')).to_have_text('feature 17')
    field(lab_page, 'browser', 'Search').fill('red star')
    field(lab_page, 'browser', 'Search').press('Enter')
    first = json.loads(kernel_value(lab_page, 'atlas.search("red star").index[:2].tolist()'))
    expect(b.locator('.flx-title')).to_have_text(re.compile(f'feature {first[0]}\\b'))
    expect(b.locator('.flx-line[aria-selected=true]')).to_contain_text(str(first[0]))
    b.locator('.flx-scroll').focus()
    lab_page.keyboard.press('n')
    expect(b.locator('.flx-title')).to_have_text(re.compile(f'feature {first[1]}\\b'))
    b.get_by_role('button', name='previous').click()
    expect(b.locator('.flx-title')).to_have_text(re.compile(f'feature {first[0]}\\b'))
    expect(b.locator('.flx-gallery canvas').first).to_be_visible()

def test_browser_sorts_and_filters(lab_page):
    b = view(lab_page, 'browser')
    b.get_by_role('button', name='Clear').click()
    expect(b.locator('.flx-table [role=status]')).to_contain_text('2,048 of 2,048')
    b.get_by_role('button', name='area', exact=False).first.click()
    top = kernel_value(lab_page, 'int(atlas.table().area.idxmax())')
    expect(b.locator('.flx-line').first).to_contain_text(top)
    b.get_by_label('filter by firing rate').fill('>30')
    b.get_by_label('filter by firing rate').press('Tab')
    expect(b.locator('.flx-table [role=status]')).to_contain_text(kernel_value(lab_page, 'int((atlas.table().firing_rate>=.3).sum())')+' of')
    b.get_by_label('filter by firing rate').fill('red')
    b.get_by_label('filter by firing rate').press('Tab')
    expect(b.locator('.flx-table .flx-error')).to_contain_text('no condition on a number')
    b.get_by_label('filter by firing rate').fill('')
    b.get_by_label('filter by firing rate').press('Tab')
    expect(b.locator('.flx-table .flx-error')).to_be_empty()
    b.locator('.flx-scroll').evaluate('(e) => { e.scrollTop = e.scrollHeight; }') # lines come as they are looked at
    expect(b.locator('.flx-line').last).to_have_attribute('aria-posinset', '2048')

def test_browser_shows_the_filters_it_has(lab_page):
    b = view(lab_page, 'browser')
    kernel_value(lab_page, 'setattr(browser.table, "filters", dict(rate=">1", flagged="yes"))')
    expect(b.get_by_label('filter by firing rate')).to_have_value('>1')
    expect(b.get_by_label('flagged only')).to_be_checked()
    kernel_value(lab_page, 'setattr(browser.table, "filters", {})')
    expect(b.get_by_label('filter by firing rate')).to_have_value('')
    expect(b.get_by_label('flagged only')).not_to_be_checked()

def test_browser_cursor_keeps_up_with_a_held_key(lab_page):
    "Answers of the kernel come late, and take it back to no line"
    b = view(lab_page, 'browser')
    b.locator('.flx-scroll').press('Home')
    expect(b.locator('.flx-active')).to_have_attribute('aria-posinset', '1')
    lab_page.evaluate('() => { window.lines = []; new MutationObserver(() => { const a = document.querySelector(".try-browser .flx-active"); if (a) window.lines.push(+a.ariaPosInSet); }).observe(document.querySelector(".try-browser .flx-lines"), { childList: true }); }')
    for _ in range(40): lab_page.keyboard.press('ArrowDown')
    expect(b.locator('.flx-active')).to_have_attribute('aria-posinset', '41')
    expect(b.locator('.flx-title')).to_have_text(re.compile(r'feature '+kernel_value(lab_page, 'int(browser.table.order[40])')+r'\b'))
    lines = lab_page.evaluate('() => window.lines')
    assert len(lines)>5 and lines==sorted(lines), lines
    b.get_by_role('button', name='previous').click() # what the kernel chooses is followed, back to where the page has been too
    expect(b.locator('.flx-active')).to_have_attribute('aria-posinset', '40')
    b.get_by_role('button', name='next').click()
    expect(b.locator('.flx-active')).to_have_attribute('aria-posinset', '41')

def test_browser_keeps_flags_and_notes(lab_page):
    b = view(lab_page, 'browser')
    kernel_value(lab_page, 'setattr(browser.table, "selected", 5)')
    expect(b.locator('.flx-title')).to_have_text(re.compile('feature 5\\b'))
    b.get_by_role('button', name='flag', exact=False).filter(has_text='⚐').click()
    expect(b.get_by_role('button', name='⚑ flagged')).to_be_visible()
    b.get_by_label('label', exact=True).fill('a star of mine')
    b.get_by_label('label', exact=True).press('Tab')
    expect(b.locator('.flx-title')).to_have_text('feature 5: a star of mine')
    b.get_by_label('note', exact=True).fill('look again')
    b.get_by_label('note', exact=True).press('Tab')
    expect(b.locator('.flx-line[aria-selected=true]')).to_contain_text('a star of mine')
    kernel_until(lab_page, "fi.Atlas('own').table([5]).loc[5, ['label', 'note', 'flagged']].astype(str).tolist()==['a star of mine', 'look again', 'True']")
    b.locator('.flx-scroll').press('f') # in the list: the sheet knows
    expect(b.get_by_role('button', name='⚐ flag')).to_have_attribute('aria-pressed', 'false')
    expect(b.locator('.flx-line[aria-selected=true]')).not_to_contain_text('⚑')
    b.get_by_role('button', name='⚐ flag').click()
    expect(b.locator('.flx-line[aria-selected=true]')).to_contain_text('⚑')
    expect(b.get_by_role('button', name='⚑ flagged')).to_be_focused()

def test_sheet_keeps_what_is_being_typed(lab_page):
    "A label is answered while somebody is at the note"
    b = view(lab_page, 'browser')
    label,note = (b.get_by_label(k, exact=True) for k in ('label', 'note'))
    label.fill('a star')
    label.press('Tab')
    lab_page.keyboard.type(', and ag')
    expect(b.locator('.flx-title')).to_have_text('feature 5: a star')
    kernel_value(lab_page, 'browser.reload()')
    expect(b.locator('.flx-line[aria-selected=true]')).to_contain_text('a star')
    expect(note).to_be_focused()
    lab_page.keyboard.type('ain')
    expect(note).to_have_value(re.compile('look again')); expect(note).to_have_value(re.compile(', and again'))
    kernel_value(lab_page, '(atlas.label(5, "told otherwise"), browser.reload())')
    expect(label).to_have_value('told otherwise') # nobody was typing there
    label.fill('a star of mine')
    label.press('Tab')
    note.fill('look again')
    note.press('Tab')
    expect(b.locator('.flx-title')).to_have_text('feature 5: a star of mine')

def test_sheet_steps_come_when_asked_for(lab_page):
    b = view(lab_page, 'browser')
    c = b.locator('.flx-gallery canvas').first
    before = pixels(c)
    b.locator('.flx-sheet').get_by_role('slider', name='step').fill('0')
    n = len(asked(lab_page, 'steps'))
    for s in ('0', '1', '2', '3')*5: b.locator('.flx-sheet').get_by_role('slider', name='step').fill(s)
    assert len(asked(lab_page, 'steps'))==n # asked for once
    for tab in ('a sample, strong to weak', 'random, where it is silent', 'strongest'):
        b.get_by_role('tab', name=tab, exact=True).click()
        expect(b.locator('.flx-gallery canvas').first).to_be_visible()
    assert before.shape==pixels(b.locator('.flx-gallery canvas').first).shape

def test_browser_page_without_a_kernel(browser, tmp_path):
    "What needs one is switched off; the rest works"
    import fluxinterp as fi
    fi.FeatureBrowser(fi.Atlas('tiny-flux/double.1.image')).to_html(tmp_path/'page.html', features=3)
    with open_page(browser, height=1400) as page:
        page.goto((tmp_path/'page.html').as_uri())
        expect(page.locator('.flx-gallery canvas').first).to_be_visible()
        for off in (page.locator('.flx-heads button'), page.locator('.flx-table input'), page.get_by_role('button', name=re.compile('previous|next|flag')), page.locator('.flx-sheet').get_by_label(re.compile('^(label|note)$'))):
            assert off.count()>1
            for o in off.all(): expect(o).to_be_disabled()
        page.locator('.flx-scroll').press('ArrowDown')
        expect(page.locator('.flx-line[aria-selected=true]')).to_have_attribute('aria-posinset', '2')
        expect(page.locator('.flx-title')).to_have_text(re.compile('feature '+page.locator('.flx-line[aria-selected=true] .flx-number').first.inner_text()))
        check_view(page, shot='browser_page')

def test_browser_judge_takes_a_double_click_for_one(browser, lab):
    "The second would answer a question nobody has seen"
    name = notebook(lab.folder, 'judge.ipynb', setup, """from fluxinterp.autointerp.scorers import Localization
judge = fi.HumanJudge(fi.Atlas('tiny-flux/double.1.image').copy('judged'), Localization(3), features=[int(atlas.search('red star').index[0])])
judge.add_class('try-judge')
judge""")
    with open_page(browser) as page:
        open_notebook(page, lab, name)
        v = view(page, 'judge')
        left,cannot,back = (v.get_by_role('button', name=n) for n in ('Left', 'Cannot say', 'Back'))
        def answered(n): kernel_value(page, '0'); expect(v).to_contain_text(f'{n} of ')
        expect(back).to_be_disabled()
        page.set_viewport_size(dict(width=1280, height=900))
        check_view(page, '.try-judge .flx')
        assert v.bounding_box()['height']<650 and v.locator('canvas').first.bounding_box()['width']<=360
        v.screenshot(path=shot_path('judge'))
        left.dblclick(); answered(1)
        expect(left).to_be_focused()
        left.evaluate('(b) => { b.click(); b.nextSibling.click(); b.click(); }'); answered(2) # before the page has the next question
        cannot.dblclick(); answered(3)
        back.dblclick(); answered(2)
        for key,n in (('l', 3), ('b', 2), ('x', 2), ('u', 3), ('b', 2)): page.keyboard.press(key); answered(n)
        total = int(kernel_value(page, 'len(judge.tasks)'))
        for n in range(3, total+1): cannot.click(); answered(n)
        expect(v).to_contain_text('thank you')
        expect(left).to_be_disabled()
        assert not page.errors, page.errors

def test_viewer(lab_page):
    v = view(lab_page, 'viewer')
    expect(said(lab_page, 'viewer')).to_have_text('generated')
    n = v.locator('.flx-player canvas[tabindex]').count()
    field(lab_page, 'viewer', 'Features').fill('17, 20, 3')
    field(lab_page, 'viewer', 'Features').press('Enter')
    expect(v.locator('.flx-player canvas[tabindex]')).to_have_count(3)
    before,sent = pixels(v.locator('.flx-player canvas').first),len(kernel_messages(lab_page))
    v.get_by_role('slider', name='step').fill('0')
    assert (pixels(v.locator('.flx-player canvas').first)!=before).any() and len(kernel_messages(lab_page))==sent
    v.get_by_role('button', name='play').click()
    lab_page.wait_for_function('() => +document.querySelector(".try-viewer .flx-player").dataset.step >= 2')
    v.get_by_role('button', name='pause').click()
    field(lab_page, 'viewer', 'Features').fill('99999')
    field(lab_page, 'viewer', 'Features').press('Enter')
    expect(complaint(lab_page, 'viewer')).to_contain_text('choose 0 to 2047')
    field(lab_page, 'viewer', 'Features').fill('17')
    field(lab_page, 'viewer', 'Features').press('Enter')
    expect(v.locator('.flx-player canvas[tabindex]')).to_have_count(1)
    field(lab_page, 'viewer', 'Prompt').fill(' ')
    field(lab_page, 'viewer', 'Prompt').press('Enter')
    expect(complaint(lab_page, 'viewer')).to_contain_text('an empty prompt')
    field(lab_page, 'viewer', 'Prompt').fill('a red circle '*40)
    field(lab_page, 'viewer', 'Prompt').press('Enter')
    expect(said(lab_page, 'viewer')).to_contain_text('it is cut before', timeout=60_000)
    assert n>0 and not lab_page.errors, lab_page.errors

def test_inspector_click_lists_features(lab_page):
    v = view(lab_page, 'inspector')
    c = v.locator('.flx-player canvas[tabindex]').first
    c.click(position=dict(x=66, y=126))
    w = c.bounding_box()['width']
    row,col = int(126/w*16),int(66/w*16)
    expect(v.locator('.flx-here')).to_contain_text(f'row {row}, column {col}, step 4 of 4')
    best = json.loads(kernel_value(lab_page, f"[f for f,_ in inspector.strongest('double.1.image', 3, {row}*16+{col}, 1)]"))[0]
    expect(v.locator('.flx-fires').first).to_contain_text(f'feature {best}')
    v.locator('.flx-fires').first.click()
    expect(v.locator('.flx-player figcaption').nth(1)).to_contain_text(f'feature {best}')
    v.locator('.flx-here').get_by_label('order').select_option('steps')
    expect(v.locator('.flx-fires').first).to_be_visible()

def stroke(page, name, a, b, steps=8):
    box = view(page, name).locator('.flx-brush')
    box.scroll_into_view_if_needed()
    at = box.bounding_box()
    page.mouse.move(at['x']+a[0]*at['width'], at['y']+a[1]*at['height'])
    page.mouse.down()
    page.mouse.move(at['x']+b[0]*at['width'], at['y']+b[1]*at['height'], steps=steps)
    page.mouse.up()

def test_studio_paints_and_steers(lab_page):
    v = view(lab_page, 'studio')
    field(lab_page, 'studio', 'Feature').fill('green')
    field(lab_page, 'studio', 'Feature').press('Tab')
    press(v, 'Add')
    expect(v.locator('.flx-edit')).to_have_count(1)
    expect(said(lab_page, 'studio')).to_contain_text('steered with 1 edit')
    expect(v.locator('.flx-pictures').first.locator('canvas')).to_have_count(5) # before, after, difference, its scale, wipe
    stroke(lab_page, 'studio', (.6, .3), (.9, .6))
    expect(v.locator('.flx-paint .flx-says')).not_to_contain_text(' 0 of')
    lab_page.wait_for_function('() => document.querySelector(".try-studio .flx-paint").dataset.cells > 5')
    cells = int(v.locator('.flx-paint').get_attribute('data-cells'))
    kernel_until(lab_page, f'studio.paint.region.sum()=={cells}')
    v.get_by_label(re.compile('where')).select_option('painted')
    kernel_until(lab_page, "studio.edits.rows[0]['where']=='painted'")
    kernel_value(lab_page, 'studio.wait()')
    assert kernel_value(lab_page, 'bool(studio.build()[0].region.sum()==studio.paint.region.sum())')=='True'
    after = pixels(v.locator('.flx-pictures canvas').nth(1))
    v.get_by_label(re.compile('strength, as a number')).fill('25')
    v.get_by_label(re.compile('strength, as a number')).press('Tab')
    kernel_until(lab_page, 'studio.build()[0].strength==25')
    kernel_value(lab_page, 'studio.wait()')
    expect(said(lab_page, 'studio')).to_contain_text('steered with 1 edit')
    assert after.shape==pixels(v.locator('.flx-pictures canvas').nth(1)).shape
    v.get_by_role('button', name='undo').click()
    expect(v.locator('.flx-paint')).to_have_attribute('data-cells', '0')
    expect(v.locator('.flx-edits .flx-error')).to_contain_text('nothing is painted')
    v.get_by_role('button', name='redo').click()
    expect(v.locator('.flx-paint')).to_have_attribute('data-cells', str(cells))
    v.get_by_role('button', name='erase').click()
    stroke(lab_page, 'studio', (.6, .3), (.62, .32))
    lab_page.wait_for_function('(n) => +document.querySelector(".try-studio .flx-paint").dataset.cells < n', arg=cells)
    v.get_by_role('button', name='paint', exact=True).click()

def test_studio_finds_strengths(lab_page):
    "In the kernel, as often as the button is pressed; the slider and the guard's line follow"
    v = view(lab_page, 'studio')
    for _ in range(2): v.get_by_role('button', name=re.compile('^find strengths of')).click()
    expect(v.locator('.flx-ticks line')).to_have_count(5, timeout=60_000) # no change and four steps
    kernel_value(lab_page, 'studio.wait()')
    expect(said(lab_page, 'studio')).to_contain_text('strengths tried')
    kernel_until(lab_page, "studio.edits.rows[0]['amount'] in [0., *studio.edits.rows[0]['found']['steps']]")
    expect(v).to_contain_text('of the edited tokens')
    check_view(lab_page, '.try-studio .flx', shot='studio_found')
    field(lab_page, 'studio', 'Guard').select_option('cap')
    expect(v).to_contain_text('They were then capped')
    field(lab_page, 'studio', 'Guard').select_option('report')
    exact = v.get_by_label(re.compile('strength, as a number')) # takes any number
    exact.fill('25')
    exact.press('Tab')
    kernel_until(lab_page, 'studio.build()[0].strength==25')
    kernel_value(lab_page, 'studio.wait()')

def test_studio_keyboard_brush(lab_page):
    v = view(lab_page, 'studio')
    before = int(v.locator('.flx-paint').get_attribute('data-cells'))
    v.locator('.flx-brush').focus()
    lab_page.keyboard.press('-') # one token wide
    for k in ('ArrowUp',)*20+('ArrowLeft',)*20+('ArrowDown', 'ArrowRight', 'ArrowRight', ' '): lab_page.keyboard.press(k)
    expect(v.locator('.flx-paint')).to_have_attribute('data-cells', str(before+1))
    kernel_until(lab_page, 'studio.paint.region[1,2]==1')
    lab_page.keyboard.press('z')
    expect(v.locator('.flx-paint')).to_have_attribute('data-cells', str(before))

def test_studio_saves_and_loads_a_recipe(lab_page, lab):
    v = view(lab_page, 'studio')
    field(lab_page, 'studio', 'Recipe').fill('mine.json')
    field(lab_page, 'studio', 'Recipe').press('Tab')
    press(v, 'Save')
    expect(v).to_contain_text('mine.json written')
    kept = (Path(lab.folder)/'mine.json').read_text()
    assert json.loads(kept)['format']=='fluxinterp recipe' and '1' in str(json.loads(kept)['edits'][0]['region'])
    v.get_by_role('button', name=re.compile('remove the edit')).click()
    expect(v.locator('.flx-edit')).to_have_count(0)
    v.get_by_role('button', name='none', exact=True).click()
    press(v, 'Load')
    expect(v.locator('.flx-edit')).to_have_count(1)
    expect(v.get_by_label(re.compile('strength, as a number'))).to_have_value('25')
    kernel_until(lab_page, 'studio.recipe.value==open("mine.json").read()')
    (Path(lab.folder)/'mine.json').write_text('{"format": "something"}')
    press(v, 'Load')
    expect(v.locator('.flx-edits .flx-error')).to_contain_text('no recipe')
    expect(v.locator('.flx-edit')).to_have_count(1)
    press(v, 'Sweep')
    expect(said(lab_page, 'studio')).to_contain_text('swept 5 strengths', timeout=60_000)
    expect(v.locator('.flx-pictures').nth(1).locator('canvas')).to_have_count(5)

def test_studio_dragged_wildly_and_cancelled(lab_page):
    "Many wishes in a row end in the last; a long one can be stopped, and the next is met"
    v = view(lab_page, 'studio')
    slide = v.locator('.flx-edit input[type=range]')
    for k in range(30): slide.evaluate('(e, k) => { e.value = +e.min + (e.max - e.min) * ((k * 7) % 30) / 30; e.dispatchEvent(new Event("input")); e.dispatchEvent(new Event("change")); }', k)
    last = slide.evaluate('(e) => e.value')
    lab_page.wait_for_function('async (last) => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel; const r = await k.requestExecute({ code: "", silent: true, user_expressions: { v: "studio.build()[0].strength" } }).done; return Math.abs(+r.content.user_expressions.v.data["text/plain"] - last) < 1e-6; }', arg=float(last))
    kernel_value(lab_page, 'studio.wait()')
    expect(said(lab_page, 'studio')).to_contain_text('steered with 1 edit')
    kernel_value(lab_page, 'setattr(studio, "call", dict(num_inference_steps=400))')
    press(v, 'Steer')
    expect(v.get_by_role('progressbar')).to_be_visible()
    v.get_by_role('button', name='Cancel').click()
    expect(said(lab_page, 'studio')).to_have_text('cancelled')
    kernel_value(lab_page, 'setattr(studio, "call", {})')
    press(v, 'Steer')
    expect(said(lab_page, 'studio')).to_contain_text('steered with 1 edit')
    assert not lab_page.errors, lab_page.errors

def test_studio_pipeline_that_breaks(lab_page):
    v = view(lab_page, 'studio')
    lab_page.evaluate('''() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ silent: true, code: `
_forward = pipe.transformer.forward
def _breaks(*a, **k): raise RuntimeError('CUDA out of memory. Tried to allocate 20.00 GiB')
pipe.transformer.forward = _breaks` }).done''')
    press(v, 'Steer')
    expect(complaint(lab_page, 'studio')).to_contain_text('out of memory')
    lab_page.evaluate('() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ silent: true, code: "pipe.transformer.forward = _forward" }).done')
    press(v, 'Steer')
    expect(said(lab_page, 'studio')).to_contain_text('steered with 1 edit')
    expect(v.locator('.flx-status .flx-error')).to_be_empty()

def test_compare_matrix_monitor(lab_page):
    v = view(lab_page, 'compare')
    expect(said(lab_page, 'compare')).to_contain_text('matched', timeout=60_000)
    expect(v.locator('.flx-player canvas[tabindex]')).to_have_count(2)
    expect(v.locator('svg.flx-chart').first).to_be_visible()
    v = view(lab_page, 'matrix')
    expect(v.locator('canvas').first).to_be_visible()
    kernel_value(lab_page, "matrix.choose('single.1.image', 2)")
    expect(v.locator('.flx-player')).to_contain_text('single.1.image')
    v = view(lab_page, 'monitor')
    expect(v).to_contain_text('own')

looks = [(1280, False), (1280, True), (1920, False), (1920, True)]
def test_every_view_looks_right(lab_page):
    "axe, nothing clipped, nothing empty, at two widths, light and dark; the images are for people"
    try:
        for width,dark in looks:
            lab_page.set_viewport_size(dict(width=width, height=2400)) # all of a view is in its image
            lab_theme(lab_page, dark)
            for name in cells:
                v = view(lab_page, name)
                v.scroll_into_view_if_needed()
                check_view(lab_page, f'.try-{name} .flx', colors=width==1280)
                v.screenshot(path=shot_path(f'{name}_{width}_{"dark" if dark else "light"}'))
    finally:
        lab_theme(lab_page, False)
        lab_page.set_viewport_size(dict(width=1280, height=1400))

def test_forms_are_labeled(lab_page):
    for name in cells: assert not (found := axe(lab_page, f'.try-{name}')), (name, found)

def test_two_dashboards_share_a_pipeline(lab_page):
    "Both are asked at once; each gets its image"
    kernel_value(lab_page, '(viewer.prompt.set_trait("value", "a blue star"), inspector.prompt.set_trait("value", "a blue star"))')
    kernel_until(lab_page, 'viewer.caption==inspector.caption=="a blue star"', 60_000)
    for name in ('viewer', 'inspector'): expect(said(lab_page, name)).to_have_text('generated', timeout=60_000)

def test_closed_page_and_reload(browser, lab, lab_page):
    "A page that is closed in mid-run: the run ends in the kernel, and the page opened again shows what came of it"
    command(lab_page, 'docmanager:save')
    kernel_value(lab_page, 'studio.prompt.set_trait("value", "a green square")')
    lab_page.reload()
    lab_page.wait_for_selector('.try-studio .flx-pictures canvas', timeout=60_000)
    expect(said(lab_page, 'studio')).to_contain_text('generated', timeout=60_000)
    expect(view(lab_page, 'browser').locator('.flx-line').first).to_be_visible()
    expect(view(lab_page, 'browser').locator('.flx-title')).to_contain_text('feature 5')
    kernel_until(lab_page, 'studio.caption=="a green square"')
    field(lab_page, 'studio', 'Prompt').fill('a red circle')
    field(lab_page, 'studio', 'Prompt').press('Enter')
    expect(said(lab_page, 'studio')).to_contain_text('generated', timeout=60_000)
    assert not lab_page.errors and not lab_page.outside, (lab_page.errors, lab_page.outside)
