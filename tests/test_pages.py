"The views in a page of their own, from a file, in Chromium: what they draw is what numpy says, whatever is done to them"
import re
from contextlib import contextmanager

import ipywidgets as widgets
import numpy as np
import pytest
import traitlets
from PIL import Image
from playwright.sync_api import expect

from browser import check_view, open_page, pixels
from fluxinterp.features.feature_maps import FeatureMaps
from fluxinterp.dashboards.layer_step_matrix import MapMatrix
from fluxinterp.features.across_layers import SiteMaps
from fluxinterp.widgets.map_player import MapPlayer
from fluxinterp.overlays import overlay
from fluxinterp.widgets.page import view_script
from fluxinterp.widgets.base import Dashboard, StatusBar, View, map_bytes, write_page

pytestmark = pytest.mark.browser
hostile = '<img src=x onerror="window.harmed=1"></script><script>window.harmed=1</script>'

def picture(s, pixels=64): # smooth, so that JPEG changes little
    y,x = np.mgrid[:pixels,:pixels]/(pixels-1)
    return Image.fromarray(np.stack([60+120*x, 50+100*y, 80+20*s+0*x], -1).astype(np.uint8))

def values(peak=3., signed=False, shape=(4, 16, 16), seed=0): # what a byte can hold, with the peak in it
    "Random maps, half of the tokens silent"
    rng = np.random.default_rng(seed)
    top = 127 if signed else 255
    q = rng.integers(-top if signed else 0, top+1, shape)*(rng.random(shape)<.5)
    q[0,0,0] = top
    return (q/top*peak).astype(np.float32)

def maps(v, feature=17, **kwargs): return FeatureMaps(v[None], feature, 'double.1.image', [1-s/len(v) for s in range(len(v))], ['a red circle'], **dict(previews=[[picture(s) for s in range(len(v))]])|kwargs)
def player(*vs, load={}, signed=False, **kwargs): # size: 12 pixels a token
    m = MapPlayer(**dict(size=192, step=0)|kwargs)
    m.load([maps(v, 17+i, signed=signed) for i,v in enumerate(vs)], **load)
    return m

@pytest.fixture
def shown(browser, tmp_path):
    "Opens views in a page from a file"
    @contextmanager
    def f(view, clock=False, **kwargs):
        write_page(view, tmp_path/'page.html')
        with open_page(browser, **kwargs) as page:
            if clock: page.clock.install()
            page.goto((tmp_path/'page.html').as_uri())
            if isinstance(view, MapPlayer): page.wait_for_selector('.flx-player[data-ready]')
            else: page.wait_for_selector('.flx')
            yield page
            assert not page.errors and not page.outside, (page.errors, page.outside)
            assert page.evaluate('window.harmed === undefined')
    return f

def box(page): return page.locator('.flx-player')
def canvases(page): return page.locator('.flx-player canvas[tabindex]') # of the features; the image's takes no keys
def note(page, i=0): return canvases(page).nth(i).locator('xpath=..').locator('.flx-quiet')
def step_to(page, s):
    page.get_by_role('slider', name='step').fill(str(s))
    expect(box(page)).to_have_attribute('data-step', str(s))
def said(page, name='feature 17'): # the number in the line below
    return float(re.search(re.escape(name)+r' (\S+?)(,|$| ·)', page.locator('.flx-says').inner_text())[1].replace('–', 'nan'))
def digits(v): return float(f'{v:.3g}') # as `show` writes it

def test_steps(shown):
    v = values()
    with shown(player(v)) as page:
        seen = []
        for s in range(4):
            step_to(page, s)
            seen.append(pixels(canvases(page)))
            expect(note(page)).to_have_text(f'largest here {digits(v[s].max()):g}, on {100*(v[s]>0).mean():.0f} % of tokens')
            expect(page.locator('output').first).to_have_text(f'{s+1} of 4, noise {1-s/4:.2f}')
            expect(page.locator('.flx-frame[aria-pressed=true]')).to_have_count(2)
        assert all((a!=b).any() for a,b in zip(seen, seen[1:]))
        page.get_by_role('button', name='feature 17, step 2 of 4, noise 0.75').click()
        expect(page.get_by_role('slider', name='step')).to_have_value('1')
        assert (pixels(canvases(page))==seen[1]).all()
        page.get_by_role('slider', name='step').press('ArrowRight')
        assert (pixels(canvases(page))==seen[2]).all()
        assert page.locator('canvas').count()==2*(1+4)+1

def test_play(shown):
    with shown(player(values()), clock=True) as page:
        page.get_by_role('button', name='play').click()
        expect(page.get_by_role('button', name='pause')).to_have_attribute('aria-pressed', 'true')
        page.clock.pause_at(page.evaluate('Date.now()')+60_000)
        drawn = int(box(page).get_attribute('data-drawn'))
        page.clock.run_for(6000)
        expect(box(page)).to_have_attribute('data-drawn', str(drawn+10)) # 600 ms each
        page.get_by_role('button', name='pause').click()
        at = box(page).get_attribute('data-step'),box(page).get_attribute('data-drawn')
        page.clock.run_for(6000)
        assert (box(page).get_attribute('data-step'), box(page).get_attribute('data-drawn'))==at
        canvases(page).press(' ')
        expect(page.get_by_role('button', name='pause')).to_be_visible()

def test_less_motion(shown):
    "Somebody who asked for less motion gets a step a press"
    with shown(player(values()), clock=True, still=True) as page:
        for s in (1, 2, 3, 0):
            page.get_by_role('button', name='play').click()
            page.clock.run_for(5000)
            expect(box(page)).to_have_attribute('data-step', str(s))
            expect(page.get_by_role('button', name='play')).to_have_attribute('aria-pressed', 'false')

def test_keys(shown):
    v = values()
    with shown(player(v, values(5., seed=1))) as page:
        step_to(page, 1)
        before,c = pixels(canvases(page).first),canvases(page).first
        c.focus()
        at = [0, 0]
        for key in ['ArrowDown']+['ArrowDown', 'ArrowRight', 'ArrowRight', 'ArrowDown', 'ArrowUp', 'ArrowLeft', 'ArrowRight']: # the first enters
            page.keyboard.press(key)
        expect(page.locator('.flx-says')).to_have_text(re.compile(r'^row 1, column 2: '))
        assert (said(page), said(page, 'feature 18'))==(digits(v[1,1,2]), digits(values(5., seed=1)[1,1,2]))
        changed = np.argwhere((pixels(c)!=before).any(-1))
        assert changed.min(0).tolist()>=[12-2, 24-2] and changed.max(0).tolist()<=[24+1, 36+1] # the ring, around the token of 12 pixels
        for _ in range(5): page.keyboard.press('ArrowUp')
        expect(page.locator('.flx-says')).to_have_text(re.compile(r'^row 0, column 2: ')) # and not outside
        page.keyboard.press('Enter')

def words_player(**kwargs): return player(values(2., shape=(4, 1, 4)), load=dict(words=['a', 'red', 'circle', '</s>']), **kwargs)
def test_keys_over_words(shown):
    "Space plays and Enter chooses, once, and nobody outside hears of it; with Ctrl they are the page's"
    for name,view in (('tokens of the text', words_player()), ('feature 17', player(values()))):
        with shown(view, still=True) as page:
            page.evaluate('() => { window.heard = []; document.addEventListener("keydown", (e) => heard.push(e.key)); }')
            page.locator('.flx-player figure [tabindex="0"]').focus()
            for s in (1, 2):
                page.keyboard.press(' ')
                expect(box(page)).to_have_attribute('data-step', str(s))
            page.keyboard.press('ArrowLeft')
            page.keyboard.press('Enter')
            assert page.evaluate('heard')==[]
            page.keyboard.press('Control+Enter')
            assert page.evaluate('heard')==['Control', 'Enter']

def test_word_is_chosen(shown):
    "A click on a word is a choice, as one on a map"
    class Told(View): # what the player says, in the page
        script = view_script('const render = ({ model, el }) => { const p = make("p", { class: "told" }); el.append(p); return listen(model, { cell: () => { p.textContent = JSON.stringify(model.get("cell")); } }); };')
        cell = traitlets.Dict({}).tag(sync=True)
    told,m = Told(),words_player(step=2)
    both = Dashboard([m, told])
    both.links = [(m, 'cell', told, 'cell')]
    with shown(widgets.VBox([both])) as page: # links hold in a box too
        page.wait_for_selector('.flx-player[data-ready]')
        page.locator('.flx-word').nth(1).click()
        expect(page.locator('.told')).to_have_text('{"row":0,"col":1,"step":2}')

@pytest.mark.parametrize('signed', [False, True])
def test_values_of_every_token(shown, signed):
    "Bytes there and numbers back: under the pointer stands what numpy has"
    v = values(7.3, signed)
    data,peaks = map_bytes(v, signed)
    assert peaks==pytest.approx(7.3) and len(data)==v.size
    with shown(player(v, signed=signed)) as page:
        for s in (0, 3):
            step_to(page, s)
            texts = canvases(page).evaluate('''(c) => { const b = c.getBoundingClientRect(), res = [];
              for (let i = 0; i < 256; i++) { c.dispatchEvent(new PointerEvent("pointermove", { clientX: b.left + (i % 16 + .5) * 12, clientY: b.top + (Math.floor(i / 16) + .5) * 12 })); res.push(document.querySelector(".flx-says").textContent); }
              return res; }''')
            assert [t.split(':')[0] for t in texts]==[f'row {i//16}, column {i%16}' for i in range(256)]
            np.testing.assert_allclose([float(t.rsplit(' ', 1)[1]) for t in texts], v[s].ravel(), atol=1e-6, rtol=.006)

@pytest.mark.parametrize('cmap,signed,gain', [('inferno', False, 1.), ('viridis', False, 1.), ('cividis', False, .4), ('inferno', True, 1.), ('inferno', True, .6)])
def test_colors_are_those_of_overlay(shown, cmap, signed, gain):
    "Image, shadow, color map, opacity: the page blends as `maps.overlay` does"
    v = values(signed=signed)
    with shown(player(v, signed=signed, load=dict(largest=[3/gain]))) as page:
        if not signed: page.get_by_label('colors').select_option(cmap)
        step_to(page, 2)
        got,want = pixels(canvases(page))[...,:3],np.asarray(overlay(picture(2), v[2], 3/gain, .85, 3, signed, cmap)).astype(int)
        off = np.abs(got-want)
        assert off.mean()<2 and off.max()<=12, (off.mean(), off.max())

def test_scales(shown):
    v = values(3.)
    with shown(player(v, load=dict(largest=[6.]))) as page:
        bar = page.locator('.flx-scale')
        def look(): return pixels(canvases(page))[...,:3]
        def like(vmax): return np.abs(look()-np.asarray(overlay(picture(0), v[0], vmax, .85, 3)).astype(int)).mean()<2
        expect(bar).to_have_text('06'); assert like(6.)
        page.get_by_label('scale', exact=True).select_option('picture')
        expect(bar).to_have_text('03'); assert like(3.)
        assert page.get_by_label('value drawn in full color').is_hidden()
        page.get_by_label('scale', exact=True).select_option('fixed')
        expect(bar).to_have_text('01'); assert like(1.)
        page.get_by_label('value drawn in full color').fill('12')
        page.keyboard.press('Tab')
        expect(bar).to_have_text('012'); assert like(12.)
        expect(bar.locator('canvas')).to_have_attribute('aria-label', 'color scale from 0 to 12')
        page.get_by_role('slider', name='overlay').fill('0')
        assert np.abs(look()-np.asarray(picture(0).resize((192, 192), Image.NEAREST))).mean()<2 # the image itself
        page.get_by_role('slider', name='overlay').fill('0.85')
        sharp = look()
        page.get_by_label('smooth').check()
        assert (look()!=sharp).any()

def test_signed_scale(shown):
    with shown(player(values(2., True), signed=True)) as page:
        expect(page.locator('.flx-scale')).to_have_text('-22')
        expect(page.locator('.flx-scale canvas')).to_have_attribute('aria-label', 'color scale from -2 to 2')

def test_dead(shown):
    "A map without activity is said to be dead, and is the grey image; one that is silent at a step says that"
    v = values()
    v[2] = 0
    with shown(player(v, 0*v)) as page:
        expect(note(page, 1)).to_have_text('not active in this image')
        expect(page.locator('.flx-scale')).to_have_count(1) # there is nothing to scale
        assert 'not active in this image' in canvases(page).nth(1).get_attribute('aria-label')
        step_to(page, 2)
        expect(note(page, 0)).to_have_text('not active at this step')
        got,want = pixels(canvases(page).nth(1))[...,:3],np.asarray(overlay(picture(2), 0*v[2], 1., scale=3)).astype(int)
        assert np.abs(got-want).mean()<2 and np.ptp(got, axis=-1).max()<=2
        check_view(page, shot='dead')

def test_weak_is_not_silent(shown):
    "Below what a byte holds there is still a value, and it is said"
    v = values(3.)
    v[1],v[2] = v[1]*1e-4,0
    with shown(player(v)) as page:
        step_to(page, 1)
        expect(note(page)).to_have_text(f'largest here {digits(v[1].max()):.1e}, too weak to be drawn'.replace('e-04', 'e-4'))
        step_to(page, 2)
        expect(note(page)).to_have_text('not active at this step')

def test_words(shown):
    "Maps over the tokens of a text"
    words,v = ['a', 'red', 'circle', '</s>'],values(2., shape=(4, 1, 4))
    with shown(player(v, load=dict(words=words))) as page:
        spans = page.locator('.flx-word')
        assert spans.all_inner_texts()==words
        looks = []
        for s in (0, 1):
            step_to(page, s)
            looks.append(spans.evaluate_all('(ws) => ws.map((w) => w.style.background)'))
            for i in range(4):
                spans.nth(i).hover()
                expect(page.locator('.flx-says')).to_contain_text(f'token {i} “{words[i]}”: ')
                assert said(page)==digits(v[s,0,i]) and float(spans.nth(i).get_attribute('title'))==digits(v[s,0,i])
        assert looks[0]!=looks[1]
        page.get_by_role('group', name='tokens of the text').focus()
        for i in (2, 1, 0, 0): # from the last, and not beyond the first
            page.keyboard.press('ArrowLeft')
            expect(page.locator('.flx-says')).to_contain_text(f'token {i} “{words[i]}”: ')
            expect(page.locator('.flx-word[data-at]')).to_have_text(words[i])
        picked = pixels(page.locator('figure canvas').first)[...,:3]-np.asarray(picture(1).resize((192, 192), Image.NEAREST)).astype(int)
        assert np.abs(picked).max()<60 # no ring of a word on the image
        check_view(page, shot='words')

def test_hostile_names(shown):
    words = [hostile, 'b']
    with shown(player(values(shape=(2, 1, 2)), load=dict(names=[hostile], words=words), title=hostile)) as page:
        expect(page.locator('figure b').last).to_have_text(hostile)
        assert page.locator('.flx-word').first.inner_text()==hostile and box(page).get_attribute('aria-label')==hostile
        page.locator('.flx-word').first.hover()
        expect(page.locator('.flx-says')).to_contain_text(hostile)
        assert page.locator('.flx img').count()==0
    m = player(values(), load=dict(names=[hostile]))
    m.error = hostile
    with shown(m) as page:
        expect(page.get_by_role('alert')).to_have_text(hostile)
        canvases(page).press('ArrowDown')
        expect(page.locator('.flx-says')).to_contain_text(hostile)

def test_thousand_moves(shown):
    "Steps, colors, scales and opacity, wildly: no error, and what is shown in the end is right"
    v = values()
    with shown(player(v, values(9., seed=2))) as page:
        page.evaluate('''async () => { let x = 1; const random = (n) => (x = (x * 48271) % 2147483647) % n, fire = (e, v, kind) => { e.value = v; e.dispatchEvent(new Event(kind, { bubbles: true })); };
          const [step, alpha] = document.querySelectorAll("input[type=range]"), [style, colors, scale] = document.querySelectorAll("select");
          for (let i = 0; i < 1000; i++) {
            fire(step, random(4), "input");
            if (i % 10 === 0) { fire(alpha, random(21) / 20, "input"); fire(style, ["outline", "heat"][random(2)], "change"); fire(colors, ["inferno", "viridis", "cividis"][random(3)], "change"); fire(scale, ["feature", "picture", "fixed"][random(3)], "change"); }
            if (i % 100 === 0) await new Promise(requestAnimationFrame); }
          fire(step, 3, "input"); fire(alpha, .85, "input"); fire(style, "heat", "change"); fire(colors, "viridis", "change"); fire(scale, "feature", "change"); }''')
        want = np.asarray(overlay(picture(3), v[3], 3., .85, 3, cmap='viridis')).astype(int)
        assert np.abs(pixels(canvases(page).first)[...,:3]-want).mean()<2
        expect(note(page)).to_have_text(re.compile(f'^largest here {digits(v[3].max()):g}'))

def test_outlines_leave_the_colors(shown):
    "The image in its own colors but at the borders of strong cells; bare while h is held"
    v = np.zeros((4, 16, 16), np.float32)
    v[3,4:8,4:8] = 3.
    with shown(player(v)) as page:
        page.evaluate('() => { const e = document.querySelector("select"); e.value = "outline"; e.dispatchEvent(new Event("change", { bubbles: true })); }')
        page.evaluate('() => { const e = document.querySelector("input[type=range]"); e.value = 3; e.dispatchEvent(new Event("input", { bubbles: true })); }')
        plain = np.asarray(picture(3).resize((192, 192))).astype(int)
        drawn = pixels(canvases(page).first)[...,:3]
        changed = np.abs(drawn-plain).max(-1)>40
        assert changed[47:50,50:94].any(0).all() and not changed[54:90,54:90].any() and not changed[110:,110:].any()
        canvases(page).first.focus()
        page.keyboard.down('h')
        assert not (np.abs(pixels(canvases(page).first)[...,:3]-plain).max(-1)>40).any()
        page.keyboard.up('h')
        assert (np.abs(pixels(canvases(page).first)[...,:3]-drawn).max(-1)<=1).all()

def test_answers_without_a_kernel(shown):
    "A page has the answers it was given, and says so where it has none"
    class Kept(MapPlayer):
        def replies(self): return [('strongest', dict(step=0, row=0, col=0))]
    m = Kept(asks=True, size=192, step=0)
    m.strongest = lambda step,row,col: [(5, 2.5, 'red'), (9, 1.25, hostile)]
    m.load([maps(values())])
    with shown(m) as page:
        canvases(page).press('ArrowDown')
        expect(page.locator('.flx-says')).to_contain_text(f'strongest here: 5 (red) 2.5, 9 ({hostile}) 1.25')
        canvases(page).press('ArrowDown')
        expect(page.locator('.flx-says')).to_contain_text('row 1, column 0')
        expect(page.locator('.flx-says')).to_contain_text('this page has no kernel')

def test_strongest_is_that_of_the_step(shown):
    "Another step, another list: the old one is gone at once, the new one is asked for when the step rests"
    class Kept(MapPlayer):
        def replies(self): return [('strongest', dict(step=s, row=0, col=0)) for s in (0, 2, 3)]
    m = Kept(asks=True, size=192, step=0)
    m.strongest = lambda step,row,col: [(step, 1., '')]
    m.load([maps(values())])
    with shown(m, clock=True) as page:
        line = page.locator('.flx-says')
        canvases(page).press('ArrowDown')
        page.clock.run_for(1000)
        expect(line).to_contain_text('strongest here: 0 1')
        page.clock.pause_at(page.evaluate('Date.now()')+60_000)
        for s in (1, 2, 3):
            step_to(page, s)
            expect(line).not_to_contain_text('strongest here')
        page.clock.run_for(1000)
        expect(line).to_contain_text('strongest here: 3 1')
        page.get_by_role('button', name='play').click()
        page.clock.run_for(1800) # three steps
        expect(box(page)).to_have_attribute('data-step', '2')
        expect(line).not_to_contain_text('strongest here')
        page.get_by_role('button', name='pause').click()
        page.clock.run_for(1000)
        expect(line).to_contain_text('strongest here: 2 1')

def driven(m, **acts): # of each: trait -> value
    "A player with buttons that do to it what a kernel does"
    class Kernel(View):
        script = view_script('const render = ({ model, el }) => { for (const [name, traits] of Object.entries(model.get("acts"))) el.append(button(name, () => { for (const [k, v] of Object.entries(traits)) model.set(k, v); })); };')
        acts = traitlets.Dict({}).tag(sync=True)
    names,k = list(dict.fromkeys(t for a in acts.values() for t in a)),Kernel(acts=acts)
    k.add_traits(**{t: traitlets.Any(getattr(m, t)).tag(sync=True) for t in names})
    both = Dashboard([k, m])
    both.links = [(k, t, m, t) for t in names]
    return both

def test_look_follows_the_kernel(shown):
    m = player(values())
    with shown(driven(m, weaker=dict(alpha=.5), other=dict(colors='viridis', scale='fixed', fixed=6., smooth=True))) as page:
        page.wait_for_selector('.flx-player[data-ready]')
        page.get_by_label('colors').select_option('cividis')
        before = pixels(canvases(page))
        page.get_by_role('button', name='weaker').click()
        expect(page.get_by_role('slider', name='overlay')).to_have_value('0.5')
        expect(page.get_by_label('colors')).to_have_value('cividis') # the page's own stays
        assert (pixels(canvases(page))!=before).any()
        page.get_by_role('button', name='other').click()
        for label,value in (('colors', 'viridis'), ('scale', 'fixed'), ('value drawn in full color', '6')): expect(page.get_by_label(label, exact=True)).to_have_value(value)
        expect(page.get_by_label('smooth')).to_be_checked()
        expect(page.locator('.flx-scale')).to_have_text('06')

def test_cleared_while_it_plays(shown):
    m = player(values())
    with shown(driven(m, clear=dict(shape=[0, 0, 0, 0], features=[]), fill=dict(shape=m.shape, features=m.features))) as page:
        page.wait_for_selector('.flx-player[data-ready]')
        page.get_by_role('button', name='play').click()
        expect(box(page)).not_to_have_attribute('data-step', '0')
        page.get_by_role('button', name='clear').click()
        expect(page.get_by_text('Nothing to show yet.')).to_be_visible()
        page.wait_for_timeout(700)
        page.get_by_role('button', name='fill').click()
        expect(canvases(page)).to_have_count(1)
        expect(box(page)).to_have_attribute('data-step', '3')
        expect(page.get_by_role('button', name='play')).to_be_visible()
        expect(page.locator('output').first).to_have_text('4 of 4, noise 0.25')

def test_matrix_hands_a_negative_map_over(shown):
    "Values below zero are drawn and told as such, also in the player that a click opens without a kernel"
    v,m,p = abs(values(5., True)),MapMatrix(),player(values())
    v[2] = 0
    m.load(SiteMaps('a red circle', {'down.0': values(3., seed=1), 'mid.0': -v}, p.levels, [picture(s) for s in range(4)]))
    p.clear()
    both = Dashboard([m, p])
    both.links = [(m, f'handed_{k}', p, k) for k in ('maps', 'shape', 'features', 'signed', 'step')]
    with shown(both) as page:
        page.wait_for_selector('.flx-matrix[data-ready="2"]')
        row = page.locator('.flx-matrix canvas[data-row="1"]')
        row.click(position=dict(x=97+2.5*6, y=3.5*6)) # maps of 96 pixels with one between: step 1, row 3, column 2
        expect(page.locator('.flx-matrix .flx-says')).to_contain_text(f'row 3, column 2: {-digits(v[1,3,2]):g}')
        expect(note(page)).to_have_text(f'largest here {digits(v[1].max()):g}, on {100*(v[1]>0).mean():.0f} % of tokens')
        step_to(page, 2)
        expect(note(page)).to_have_text('not active at this step')
        step_to(page, 0)
        canvases(page).press('ArrowDown')
        expect(page.locator('.flx-player .flx-says')).to_have_text('row 0, column 0: mid.0 -5')
        check_view(page, shot='matrix_negative')

def test_last_pictures_win(shown):
    "Of two sheets under way the later one is kept, however long each takes to be decoded"
    class Loads(View):
        script = view_script(r'''const render = ({ model, el }) => { const p = make("p", { class: "flx" }); el.append(p); let shown = 0;
          const sheet = tileLoader(model, "pictures", () => { shown++; }), closed = [], waiting = [], first = window.createImageBitmap;
          window.createImageBitmap = () => new Promise((done) => waiting.push(done));
          const late = (k) => { waiting[k]({ close: () => closed.push(k) }); return new Promise((r) => setTimeout(r)); };
          (async () => { const all = [sheet.load(), sheet.load(), sheet.load()]; await Promise.resolve(); await late(1); await late(2); await late(0); await Promise.all(all);
            const kept = [shown, String(closed)]; const last = sheet.load(); await Promise.resolve(); sheet.done(); await late(3); await last; window.createImageBitmap = first; p.textContent = [...kept, shown, String(closed)].join(" | "); })(); };''')
        tiles = traitlets.Dict(dict(count=1, columns=1, width=1, height=1)).tag(sync=True)
        pictures = traitlets.Bytes(b'x').tag(sync=True)
    with shown(Loads()) as page: expect(page.locator('.flx')).to_have_text('1 | 1,0 | 1 | 1,0,2,3')

def test_any_words_in_a_page(shown):
    "Letters of any language in a question, and what would begin a script or a comment"
    class Word(View):
        script = view_script('const render = ({ model, el }) => { const p = make("p", { class: "flx" }); el.append(p); ask(model, "word", { of: model.get("word") }).then((r) => { p.textContent = r.is; }, (e) => { p.textContent = e.message; }); };')
        word = traitlets.Unicode('').tag(sync=True)
        def answer_word(self, of): return {'is': f'{of}!'}
        def replies(self): return [('word', dict(of=self.word))]
    for words in ('grüße, 赤い丸 🔴', '<!--<script>'):
        with shown(Word(word=words)) as page: expect(page.locator('.flx')).to_have_text(f'{words}!')

def test_nothing_to_show(shown):
    with shown(MapPlayer(empty=f'Choose a feature {hostile}')) as page:
        expect(page.get_by_text('Choose a feature')).to_have_text(f'Choose a feature {hostile}')
        assert page.get_by_role('slider').count()==0
        check_view(page)

def test_status(shown):
    bar = StatusBar()
    bar.show(True, .25, f'drawing {hostile}', '')
    with shown(bar) as page:
        expect(page.get_by_role('status')).to_have_text(f'drawing {hostile}')
        assert page.get_by_role('progressbar', name='progress').evaluate('(b) => b.value')==.25
        page.get_by_role('button', name='Cancel').click()
        expect(page.get_by_role('button', name='Cancel')).to_be_disabled()
        check_view(page)
    bar.show(False, 0., '', 'out of memory: draw a smaller image')
    with shown(bar) as page:
        expect(page.get_by_role('alert')).to_have_text('out of memory: draw a smaller image')
        expect(page.get_by_role('button')).to_have_count(0)
        check_view(page)

@pytest.mark.parametrize('dark,width', [(False, 1280), (True, 1280), (False, 1920), (True, 1920)])
def test_looks(shown, dark, width):
    "Readable in light and dark, at both widths; nothing cut off, nothing that axe takes seriously"
    m,bar = player(values(), values(5., seed=1), values()*0, load=dict(names=['feature 17: red circles', 'feature 18: the sky, upper half', 'feature 19']), size=240),StatusBar()
    bar.show(True, .4, 'drawing image 2 of 5', '')
    both = Dashboard([bar, m])
    with shown(both, dark=dark, width=width) as page:
        page.wait_for_selector('.flx-player[data-ready]')
        canvases(page).first.press('ArrowDown')
        step_to(page, 2)
        check_view(page, shot=f'player_{"dark" if dark else "light"}_{width}')
        tops = page.locator('figure').nth(1).locator('.flx-frame').evaluate_all('(bs) => bs.map((b) => b.getBoundingClientRect().top)')
        assert len(set(tops))==1, 'four steps stand in a row'

def test_latency(shown):
    "28 steps of 64 x 64 over images of 1024 pixels: a step is drawn within two frames of a 60 Hz screen"
    v = values(shape=(28, 64, 64))
    m = MapPlayer(size=512)
    m.load([maps(v, previews=[[picture(0, 1024)]*28])])
    with shown(m) as page:
        times = page.evaluate('''async () => { const step = document.querySelector("input[type=range]"), res = [], frame = () => new Promise(requestAnimationFrame);
          const move = (s) => { step.value = s; step.dispatchEvent(new Event("input", { bubbles: true })); };
          for (let s = 0; s < 28; s++) move(s); // grey shadows are made when first needed
          for (let i = 0; i < 100; i++) { await frame(); const t = performance.now(); move(i * 11 % 28); const drawn = performance.now() - t; await frame(); await frame(); res.push([drawn, performance.now() - t]); }
          return res; }''')
        draw,frame = np.percentile(times, [50, 95], axis=0).T
        print(f'\nstep of 64 x 64: drawn in {draw[0]:.1f} ms (p50), {draw[1]:.1f} ms (p95); on the screen after {frame[0]:.0f} ms, {frame[1]:.0f} ms')
        assert draw[1]<33

def test_the_check_itself(browser):
    "What `check_view` is for, it finds"
    faults = {'clipped': '<p style="width: 40px; overflow: hidden; white-space: nowrap">words that do not fit here</p>', 'empty canvas': '<canvas width="0" aria-label="a map"></canvas>', 'canvas without words': '<canvas width="9" height="9"></canvas>',
              'no label': '<input type="range">', 'wider than its place': '<div style="width: 3000px">wide</div>', 'color-contrast': '<p style="color: #aaa; background: #fff">pale</p>',
              'no such thing': '<script>throw new Error("no such thing")</script>', 'example.com': '<img alt="" src="http://example.com/a.png">'}
    with open_page(browser) as page:
        for words,html in faults.items():
            page.set_content(f'<html lang="en"><div class="flx" style="overflow-x: auto"><style>.flx {{ color: #000; background: #fff; }}</style><p>a view</p>{html}</div></html>')
            with pytest.raises(AssertionError, match=words): check_view(page)
            page.errors.clear(); page.outside.clear()

def test_styles_keep_apart():
    "Views share a page, and so their style sheets: no view restyles what another has named"
    import fluxinterp as fi
    from fluxinterp.widgets.page import page_style
    from fluxinterp.widgets.base import View
    for name in ('FeatureBrowser', 'PromptInspector', 'SteeringStudio', 'DictionaryCompare', 'LayerStepMatrix', 'RunMonitor'): getattr(fi, name)
    def kinds(c): return [k for s in c.__subclasses__() for k in (s, *kinds(s)) if k.__module__.startswith('fluxinterp.')]
    named = {}
    for c in kinds(View):
        css = re.sub(r'\{[^}]*\}', '{}', str(c._css).removeprefix(page_style))
        for name in set(re.findall(r'(?:^|[},])\s*\.(flx-[\w-]+)\s*\{', css)): named.setdefault(name, set()).add(c.__name__)
    assert not {n: v for n,v in named.items() if len(v)>1}
