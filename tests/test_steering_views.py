"The views of steering in a page of their own, in Chromium: they choose, mark and switch without a kernel"
import pytest
from playwright.sync_api import expect

from browser import check_view, open_page, pixels, screenshot
import fluxinterp as fi
from fluxinterp.steering.steering_comparison import compare_steering
from fluxinterp.steering.steering_methods import along, rewritten
from fluxinterp.dictionaries.concept_directions import mean_differences
from fluxinterp.steering.referee import steering_tasks
from fluxinterp.evaluation.concepts import record_scenes
from fluxinterp.widgets.base import write_page
from fluxinterp.widgets.edit_controls import EditList, new_row

pytestmark = pytest.mark.browser

@pytest.fixture(scope='module')
def parts():
    pipe = fi.load_pipeline('tiny-flux')
    acts = record_scenes(pipe, ['double.1.image'], n=48)
    return pipe,mean_differences(acts.recording['double.1.image'], acts.labels_of(), acts.names)

def opened(page, view, path):
    write_page(view, path)
    page.goto(path.as_uri())
    page.wait_for_selector('.flx[data-drawn]')

def test_slider_snaps_to_found_strengths(browser, tmp_path):
    rows = [new_row(17, 'red', 10., steps=4, found=dict(steps=[4., 7., 16.], says='found on “a star”'))]
    with open_page(browser) as page:
        opened(page, EditList(steps=4, rows=rows), tmp_path/'page.html')
        slide,exact = page.get_by_label('red: strength', exact=True),page.get_by_label('red: strength, as a number')
        expect(page.locator('.flx-ticks line')).to_have_count(4) # no change and three steps
        slide.focus()
        page.keyboard.press('ArrowRight')
        expect(exact).to_have_value('16')
        for _ in range(2): page.keyboard.press('ArrowLeft')
        expect(exact).to_have_value('4')
        slide.evaluate('(e) => { e.value = 6; e.dispatchEvent(new Event("input")); e.dispatchEvent(new Event("change")); }')
        expect(exact).to_have_value('7')
        check_view(page, shot='strengths')
        page.get_by_label('sliders snap to the strengths found').uncheck()
        slide.evaluate('(e) => { e.value = 6; e.dispatchEvent(new Event("input")); e.dispatchEvent(new Event("change")); }')
        expect(exact).to_have_value('6')
        page.get_by_label('red: kind').select_option('Scale') # other strengths
        expect(page.locator('.flx-ticks')).to_have_count(0)

def test_methods_side_by_side(browser, parts, tmp_path):
    pipe,dense = parts
    tasks = [t for f,v in dict(color=['yellow'], background=['navy']).items() for t in steering_tasks(pipe, f, ['a large blue star in the center'], v, seed=3)]
    compared = compare_steering(pipe, {'direction': along(dense), 'rewritten': rewritten}, tasks, (1., 4.), progress=False)
    view = fi.SteeringCompare(compared, strength=1.)
    for dark in (False, True):
        with open_page(browser, dark=dark) as page:
            opened(page, view, tmp_path/'page.html')
            page.wait_for_selector('.flx-methods canvas')
            check_view(page, shot=f'methods_{"dark" if dark else "light"}')
            expect(page.locator('.flx-methods section')).to_have_count(3)
            expect(page.locator('.flx-ring')).to_have_count(2)
            before = pixels(page.locator('canvas').nth(1))
            page.get_by_role('slider', name='strength').focus()
            page.keyboard.press('ArrowRight')
            expect(page.locator('.flx-methods')).to_have_attribute('data-strength', '4')
            assert (pixels(page.locator('canvas').nth(1))!=before).any()
            page.locator('.flx-pick').first.click()
            expect(page.locator('.flx-methods')).to_have_attribute('data-strength', '1')
            expect(page.get_by_role('slider', name='strength')).to_have_value('0')
            page.get_by_label('factor').select_option('background')
            expect(page.locator('.flx-methods figcaption').filter(has_text='navy').first).to_be_visible()

def test_a_concept_before_and_after(browser, parts, tmp_path):
    pipe,dense = parts
    erasures = {'strong': [fi.Add(dense, dense['color: red'], strength=-4.)], 'none': []}
    view = fi.EraseView(erasures, pipe, ['a large red star in the center'], ['a large blue heart in the center'], seed=3)
    assert view.wait() and not view.status.error, view.status.error
    for dark in (False, True):
        with open_page(browser, dark=dark) as page:
            write_page(view, tmp_path/'page.html')
            page.goto((tmp_path/'page.html').as_uri())
            expect(page.locator('.flx-erased canvas')).to_have_count(4)
            check_view(page, '.flx-erased', shot=f'erased_{"dark" if dark else "light"}')
            page.get_by_label('erasure', exact=True).select_option('none')
            expect(page.locator('.flx-erased h4').first).to_have_text('should change: 0 of 1 changed')
    view.close()
