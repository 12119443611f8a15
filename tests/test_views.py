"Views without a browser: they end with the program, and leave nothing behind when they are closed"
import gc, os, subprocess, sys, threading, weakref
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
prompt = 'a large red circle on the left and a small white star on the right'
site = 'double.1.image'

def test_a_program_ends_while_a_view_draws():
    "With 0, or by Ctrl-C: a thread inside torch used to take it down with SIGABRT"
    done = subprocess.run([sys.executable, root/'tests/scripts/end_while_drawing.py', '6'], capture_output=True, text=True, timeout=300,
                          env=os.environ|dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1'))
    assert done.returncode==0, done.stdout+done.stderr[-2000:]

def open_widgets():
    from ipywidgets import Widget
    return len(Widget.get_manager_state(drop_defaults=True)['state'])

def threads(): return [t for t in threading.enumerate() if t.name in ('fluxinterp-work', 'fluxinterp-monitor')]

@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    import fluxinterp as fi
    own = fi.Atlas(f'tiny-flux/{site}').copy(tmp_path_factory.mktemp('views')/'atlas')
    pipe,sae = fi.load_pipeline('tiny-flux'),fi.load_dictionary(f'tiny-flux/{site}')
    rec = fi.record(pipe, [prompt, 'a blue star'], [site], images=True, previews=True, progress=False)
    yield dict(atlas=own, pipe=pipe, sae=sae, rec=rec)
    own.text.close()

makers = dict(
    FeatureBrowser=lambda fi, p: fi.FeatureBrowser(p['atlas'], p['pipe'], p['sae']),
    SteeringStudio=lambda fi, p: fi.SteeringStudio(p['atlas'], p['pipe'], p['sae'], features=[7]),
    EraseView=lambda fi, p: fi.EraseView([fi.Ablate(p['sae'], 17)], p['pipe'], ['a red star'], ['a blue star']),
    TimestepViewer=lambda fi, p: fi.TimestepViewer(p['pipe'], p['sae'], atlases={site: p['atlas']}),
    PromptInspector=lambda fi, p: fi.PromptInspector(p['pipe'], p['sae']),
    LayerStepMatrix=lambda fi, p: fi.LayerStepMatrix(p['pipe'], prompt),
    DictionaryCompare=lambda fi, p: fi.DictionaryCompare(dict(SAE=p['sae'], PCA=fi.pca(p['rec'][site], 16)), p['rec']),
    RunMonitor=lambda fi, p: fi.RunMonitor(p['atlas'].path),
    HumanJudge=lambda fi, p: fi.HumanJudge(p['atlas']),
    Explorer=lambda fi, p: opened(fi.Explorer(p['pipe'], p['atlas'])))

def opened(explorer):
    "With all tabs that record nothing of their own"
    for tab in ('maps', 'place', 'steer'): explorer.tab = tab
    return explorer

@pytest.mark.parametrize('name', makers)
def test_a_closed_view_is_freed(parts, name):
    import fluxinterp as fi
    gc.collect()
    before = open_widgets()
    view = makers[name](fi, parts)
    if hasattr(view, 'wait'): assert view.wait()
    assert not view.error, view.error
    gone = weakref.ref(view)
    assert open_widgets()>before
    view.close()
    assert open_widgets()==before
    for t in threads(): t.join(10) # one that was at work or watched
    del view
    gc.collect()
    assert gone() is None

def test_a_view_closed_while_it_draws_is_freed(parts):
    import fluxinterp as fi
    before = open_widgets()
    view = fi.TimestepViewer(parts['pipe'], parts['sae'], num_inference_steps=400)
    gone = weakref.ref(view)
    view.close()
    for t in threads(): t.join(20)
    assert not threads() and open_widgets()==before
    del view
    gc.collect()
    assert gone() is None

def test_an_exported_page_is_of_a_view_at_rest(parts, tmp_path):
    "Whenever it is asked for"
    import fluxinterp as fi
    from fluxinterp.widgets.base import page_of
    view = fi.TimestepViewer(parts['pipe'], parts['sae'], prompt, features=[17])
    pages = [page_of(view) for _ in range(2)] # at once, and at rest
    view.close()
    assert '"busy": false' in pages[0] and '"message": "generated"' in pages[0]
    assert pages[0]==pages[1]
    browser = fi.FeatureBrowser(parts['atlas'], parts['pipe'], parts['sae'])
    browser.to_html(tmp_path/'page.html', features=1) # a view in it draws
    browser.close()
    assert '"message": "generated"' in (tmp_path/'page.html').read_text()
