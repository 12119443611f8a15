"The explorer in JupyterLab, in Chromium: from a place in the picture to an image steered with what fires there"
import ast, re

import pytest
from playwright.sync_api import expect

from browser import check_view, kernel_value, lab_theme, notebook, open_notebook, open_page

pytestmark = pytest.mark.browser

setup = "import warnings; warnings.filterwarnings('ignore')\nimport fluxinterp as fi"
cell = "explorer = fi.Explorer('tiny-flux/double.1.image', feature=17)\nexplorer.add_class('try-explorer')\nexplorer"

@pytest.fixture(scope='module')
def page(browser, lab):
    "JupyterLab with one explorer; the tests of this file go through it in order"
    name = notebook(lab.folder, 'explorer.ipynb', setup, cell)
    with open_page(browser, height=1400) as page:
        open_notebook(page, lab, name)
        page.wait_for_selector('.try-explorer .flx-explorer-bar')
        rest(page)
        yield page

def view(page): return page.locator('.try-explorer').first
def rest(page): kernel_value(page, 'explorer.worker.wait(90)')
def tab(page, name): return view(page).get_by_role('tab', name=name, exact=True)
def says(page, expression): return ast.literal_eval(kernel_value(page, expression))

def test_from_the_star_to_a_steered_image(page):
    "In four actions, none of them a number"
    tab(page, 'Place').click()
    picture = view(page).locator('.flx-player canvas').first
    expect(picture).to_be_visible()
    rest(page)
    picture.click(position=dict(x=190, y=120)) # the star, in 240 pixels
    expect(view(page).get_by_text(re.compile('Features at row'))).to_be_visible()
    view(page).locator('.flx-fires').first.click()
    expect(view(page).locator('.flx-explorer-bar b')).to_have_text(re.compile(r'feature \d+'))
    view(page).get_by_role('button', name='steer', exact=True).click()
    expect(view(page).locator('.flx-pictures canvas').nth(2)).to_be_visible() # before, after, difference
    rest(page)
    chosen,rows,peak = says(page, '[explorer.feature, [r["feature"] for r in explorer.views["steer"].edits.rows], explorer.views["steer"].images.difference_peak]')
    assert rows==[chosen] and peak>0

def test_the_place_is_marked_on_every_picture(page):
    tab(page, 'Maps').click()
    expect(view(page).locator('.flx-player:visible')).to_have_count(1)
    expect(view(page).locator('.flx-player:visible .flx-says')).to_contain_text('row')
    where = says(page, '[explorer.views[k].player.cell for k in ("maps", "place")]')
    assert where[0]==where[1] and where[0]['col']>8

def test_keys_open_tabs_and_go_back(page):
    tab(page, 'Maps').focus()
    page.keyboard.press('1')
    expect(tab(page, 'Features')).to_have_attribute('aria-selected', 'true')
    page.keyboard.press('u')
    expect(tab(page, 'Maps')).to_have_attribute('aria-selected', 'true')
    tab(page, 'Maps').press('ArrowRight')
    expect(tab(page, 'Place')).to_be_focused()
    before = says(page, 'explorer.feature')
    page.keyboard.press('j')
    expect(view(page).locator('.flx-explorer-bar b')).not_to_have_text(re.compile(rf'feature {before}\b'))
    view(page).get_by_label('Prompt', exact=True).focus()
    page.keyboard.press('1') # typed in a field it is a digit
    expect(tab(page, 'Place')).to_have_attribute('aria-selected', 'true')

def test_a_caption_is_drawn_for_all_tabs(page):
    caption = view(page).locator('.flx-caption').first
    caption.click()
    expect(view(page).get_by_label('Prompt', exact=True)).to_have_value(caption.inner_text()) # the kernel has it
    rest(page)
    captions = says(page, '[explorer.bar.captions[0], *{v.caption for k,v in explorer.views.items() if k in ("maps", "place", "steer")}]')
    assert captions[0]==captions[1] and len(captions)==2

def search(page, words):
    "Two actions: open the list, and look for some words in it"
    tab(page, 'Features').click()
    field = view(page).get_by_label('Search', exact=True)
    field.fill(words)
    field.press('Enter')
    first = says(page, f'int(explorer.atlas.search({words!r}).index[0])')
    expect(view(page).locator('.flx-explorer-bar b')).to_have_text(re.compile(rf'feature {first}\b'))
    return first

def test_find_red_and_watch_it_form(page):
    "In three actions"
    red = search(page, 'red')
    view(page).get_by_role('button', name='maps', exact=True).click()
    rest(page)
    assert says(page, '[f["id"] for f in explorer.views["maps"].player.features]')==[red]
    view(page).locator('.flx-player:visible').get_by_role('button', name='play').click()
    expect(view(page).locator('.flx-player:visible').get_by_role('button', name='pause')).to_be_visible()

def test_layers_that_see_stripes(page):
    "In three actions"
    search(page, 'striped')
    view(page).get_by_role('button', name='layers', exact=True).click()
    matrix = view(page).locator('.flx-matrix:visible')
    expect(matrix).not_to_contain_text('double.0.image', timeout=90_000) # the sites without a packaged dictionary
    expect(matrix).to_contain_text('double.1.image')
    expect(matrix).to_contain_text('single.1.image')

def test_sae_itda_and_neurons_beside_each_other(page):
    "In one action: the coordinates of the stream are its neurons"
    tab(page, 'Compare').click()
    rest(page)
    expect(view(page).locator('.flx-matches:visible')).to_be_visible(timeout=90_000)
    names = says(page, 'list(explorer.views["compare"].children[0].dictionaries)')
    assert names[:2]==['tiny-flux/double.1.image', 'tiny-flux/double.1.image-itda']
    assert any('coordinates' in n for n in names)

def test_paint_turn_up_save_and_reload(page, lab):
    "In four actions after the feature is found: take it to the studio, paint, save, load"
    search(page, 'yellow')
    view(page).get_by_role('button', name='steer', exact=True).click()
    rest(page)
    brush = view(page).locator('.flx-brush:visible')
    box = brush.bounding_box()
    page.mouse.move(box['x']+40, box['y']+90)
    page.mouse.down()
    page.mouse.move(box['x']+90, box['y']+120, steps=6)
    page.mouse.up()
    rest(page)
    studio = 'explorer.views["steer"]'
    assert says(page, f'float({studio}.paint.region.sum())')>0
    view(page).locator('button:visible', has_text='Save').click()
    expect(view(page).get_by_text(re.compile('written'))).to_be_visible()
    recipe = says(page, f'{studio}.recipe.value')
    says(page, f'[setattr({studio}.edits, "rows", []), {studio}.wait(60)]')
    expect(view(page).locator('.flx-edit:visible')).to_have_count(0) # the page has it, and rests
    view(page).locator('button:visible', has_text='Load').click()
    expect(view(page).get_by_text(re.compile(r'json: \d+ edits?$'))).to_be_visible()
    rest(page)
    assert says(page, f'{studio}.recipe.value')==recipe and 'Add' in recipe

def test_all_features_at_once(page):
    tab(page, 'All at once').click()
    rest(page)
    points = view(page).get_by_role('application')
    expect(points).to_be_visible(timeout=90_000)
    at = says(page, '__import__("numpy").frombuffer(explorer.views["all"].children[0].positions, "<u2").reshape(-1, 2)[5].tolist()')
    box = points.bounding_box()
    x,y = (box[k]+(8+v/65535*504)*box['width']/520 for k,v in zip('xy', at))
    page.mouse.click(x, y)
    chosen = says(page, 'explorer.feature')
    expect(view(page).locator('.flx-explorer-bar b')).to_have_text(re.compile(rf'feature {chosen}\b'))
    page.mouse.move(x-60, y-60)
    page.mouse.down()
    for dx,dy in ((60, -60), (60, 60), (-60, 60), (-60, -60)): page.mouse.move(x+dx, y+dy, steps=4)
    page.mouse.up()
    around = says(page, 'explorer.views["all"].children[0].lasso')
    assert chosen in around and len(around)<2048
    view(page).locator('.flx-lassoed button').first.click()
    assert says(page, 'explorer.feature')==around[0]
    points.focus()
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowRight')
    page.keyboard.press('Enter')
    assert says(page, 'explorer.feature')!=around[0]
    view(page).get_by_label('color', exact=True).select_option(index=1)
    check_view(page, '.try-explorer .flx-scatter', 'explorer-all', True)

@pytest.mark.parametrize('dark', [True, False])
def test_bar_at_three_widths(page, dark):
    lab_theme(page, dark)
    for width in (800, 1280, 1920):
        page.set_viewport_size(dict(width=width, height=1200))
        check_view(page, '.try-explorer .flx-explorer-bar', f'explorer-{width}-{"dark" if dark else "light"}', width==1280)
