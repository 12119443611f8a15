"Calls that people bring from other libraries, paths as people write them, names nearly right: they work, or one sentence says what to write"
import ast, os, re, subprocess, sys, warnings
from pathlib import Path

import pytest
import torch

import fluxinterp as fi

root = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def have():
    pipe,sae = fi.load_pipeline('tiny-flux'),fi.load_dictionary('tiny-flux/double.1.image')
    rec = fi.record(pipe, ['a red circle'], ['double.1.image', 'double.1.text'], num_inference_steps=1)
    atlas = fi.Atlas('tiny-flux/double.1.image')
    return dict(fi=fi, torch=torch, pipe=pipe, sae=sae, rec=rec, atlas=atlas, site='double.1.image', x=rec['double.1.image'].x, code=sae.encode(rec['double.1.image'].x))

# what is typed -> part of the answer: of what is shown, or of the error
calls = {
    'atlas[1065]': 'feature 1065 at double.1.image', 'atlas[99999]': 'choose 0 to 2047', 'len(list(zip(range(3), atlas)))': '3',
    'sae.encode(rec[site])': 'record["double.1.image"].x', 'sae.encode(rec)': 'record["double.1.image"].x', 'sae.encode(rec[site].x.numpy())': 'torch.from_numpy', 'sae(x).shape': '128',
    'sae.encode(torch.zeros(()))': 'width 128',
    'fi.activation_map(pipe, sae, [1065, 433], "a red star")': 'fi.maps_from(recording, dictionary, i) for each',
    'fi.train(fi.ITDAConfig(), x)': 'fi.fit_itda(config, data)', 'fi.train("topk", x)': 'give an SAEConfig',
    'fi.SAEConfig(d_sae=512)': 'num_latents=', 'fi.SAEConfig(num_latent=512)': "did you mean 'num_latents'", 'fi.SAEConfig(learning_rate=.1)': 'here it is lr=', 'fi.ITDAConfig(num_latents=9)': 'max_atoms=',
    'fi.load_dictionary("tiny-flux/double.1").meta.site': 'double.1.image', 'fi.load_dictionary("tiny-flux/single.2")': "did you mean 'tiny-flux/single.1.image'", 'fi.load_dictionary("tiny-flux/double.1").source': 'tiny-flux/double.1.image',
    'fi.Atlas("tiny-flux/double.1").site': 'double.1.image', 'fi.Atlas("tiny-flux/doubel.1.image")': "did you mean 'tiny-flux/double.1.image'",
    'rec["double.1"].site.name': 'double.1.image', 'rec["double"]': 'recorded are: double.1.image, double.1.text', 'rec["single.1"]': 'was not recorded',
    'fi.steer(pipe, sae, 1065, 5.0)': 'fi.steer(pipe, [fi.Add(dictionary, 17, strength=5.)])', 'fi.steer(pipe, [fi.Add(sae, 3)], 5)': 'force is True or False', 'fi.steer(pipe, ["red"])': 'use fi.Add', 'fi.steer(pipe, "red")': 'are no edits',
    'fi.SAE.from_pretrained("release", "site")': 'fi.load_dictionary(name)', 'sae.from_pretrained("x")': 'fi.load_dictionary(name)', 'sae.cfg': '`config`', 'sae.d_sae': '`num_latents`', 'sae.d_in': '`width`', 'sae.save_model("x")': 'fi.save_dictionary',
    'sae.W_dec.shape': '2048', 'sae.nothing': "no attribute 'nothing'",
    'code.topk(5)': '`code.values.topk(k)`', 'code.numpy()': '`code.to_dense().numpy()`', 'rec[site].numpy()': '`record.x.numpy()`', 'rec[site].shape': '`record.x.shape`',
    'fi.FeatureBrowser(pipe, sae).atlas.num_features': '2048', 'fi.SteeringStudio(pipe, "red")': "no dictionary 'red'", 'list(fi.TimestepViewer(pipe, "tiny-flux/double.1.image").dictionaries)': 'double.1.image',
    'fi.build_atlas(sae, rec, "x", exmaples=3)': "did you mean 'examples'", 'fi.build_atlas(sae, rec, "x", pipe=pipe)': 'pictures of a store anew',
    'atlas.search("red", n=-1)': 'at least 0', 'atlas.examples(3, n=-2)': 'at least 0', 'len(atlas.search("red", n=0))': '0',
    'fi.record(pipe, ["\\ud800"], site)': 'prompt 0 is no valid text', 'fi.generate(pipe, ["a red star", "\\ud800"])': 'prompt 1 is no valid text', 'fi.Atlas(3)': 'by its folder or its packaged name',
    'fi.load_pipeline("tiny-flu")': "did you mean 'tiny-flux'", 'fi.record(pipe, "a red star", "double.1").keys()': 'double.1.image',
}

@pytest.mark.parametrize('call', calls)
def test_calls_of_habit(call, have):
    try: answer = repr(eval(call, dict(have)))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OSError) as e: answer = str(e)
    assert calls[call] in answer, f'{call}: {answer[:300]}'
    assert len(answer)<2000

def test_labels_that_are_no_text(have, tmp_path):
    "Nothing is lost by a label that cannot be kept"
    mine = have['atlas'].copy(tmp_path/'mine')
    mine.label(3, 'a name')
    for bad in ('\ud800', None, 7):
        with pytest.raises(ValueError, match='a label'): mine.label(3, bad)
    with pytest.raises(ValueError, match='a note'): mine.note(3, '\ud800')
    assert mine.names([3])[3]=='a name' and fi.Atlas(tmp_path/'mine').names([3])[3]=='a name'

def test_long_names_are_no_such_file(have):
    long = 'x'*300
    for name in (long, f'{long}/y', f'~/{long}', '\0'):
        for opener,says in ((fi.load_dictionary, 'no dictionary'), (fi.Atlas, 'is no folder'), (fi.read_prompts, 'is no file'), (fi.SiteRecord.load, 'no such file'), (fi.load_foreign, 'holds no dictionary')):
            if opener is fi.load_dictionary and '/' in name[1:] and name[0]!='~': continue # may be on the hub
            with pytest.raises((FileNotFoundError, ValueError), match=says): opener(name)
        assert re.search('not there yet|too long|null byte', fi.run_status(name).problem)

def test_a_long_prompt_is_a_prompt(have, tmp_path):
    "Of more characters than a file name may have"
    text = 'a red circle '*30
    store = fi.harvest(have['pipe'], text, have['site'], tmp_path/'acts', num_inference_steps=1, progress=False)
    assert store.prompts==[text]

# writes and reads every kind of file at the path that is its argument; run where home is a folder of the test
at_home = '''
import os, sys, torch, fluxinterp as fi
from fluxinterp.training.loggers import CSVLogger
from fluxinterp.training.itda_transcoder import load_transcoder, save_transcoder
pipe,sae = fi.load_pipeline('tiny-flux'),fi.load_dictionary('tiny-flux/double.1.image')
pipe.save_pretrained(os.path.expanduser('~/model'))
open(os.path.expanduser('~/p.txt'), 'w').write('a red circle\\na blue star\\n')
call = dict(num_inference_steps=1, progress=False)
store = fi.harvest(pipe, '~/p.txt', sae.meta.site, '~/acts', **call)
assert fi.Store('~/acts').num_prompts==2 and len(fi.read_prompts('~/p.txt').prompts)==2
fi.save_dictionary(sae, '~/sae'); fi.load_dictionary('~/sae')
atlas = fi.build_atlas(sae, store, '~/atlas', examples=1, progress=False)
fi.Atlas('~/atlas').copy('~/copy')
rec = fi.record(pipe, 'a red circle', sae.meta.site, num_inference_steps=1)[sae.meta.site]
rec.save('~/rec.safetensors'); fi.SiteRecord.load('~/rec.safetensors')
fi.save_recipe(fi.Add(sae, 3), '~/recipe.json'); fi.load_recipe('~/recipe.json', sae)
fi.train(fi.SAEConfig(num_latents=32, k=2, steps=2, batch_size=64), rec, out='~/trained', progress=False); CSVLogger('~/log.csv')(1, dict(loss=1.))
fi.fit_itda(fi.ITDAConfig(k=2, batch_size=64), rec, out='~/itda', progress=False)
fi.sweep(torch.randn(256, 8), '~/sweep', fi.SAEConfig(num_latents=16, k=2, steps=1, batch_size=64), held_out=torch.randn(64, 8), baseline=False, progress=False)
save_transcoder(fi.fit_transcoder(fi.ITDAConfig(k=2, batch_size=64), torch.randn(256, 8), torch.randn(256, 8), progress=False), '~/transcoder'); load_transcoder('~/transcoder')
fi.Endpoint('http://127.0.0.1:1', 'm', cache='~/answers.sqlite')
fi.RunMonitor('~/acts').to_html('~/page.html')
assert not any(fi.run_status(f'~/{p}').problem for p in ('acts', 'atlas')), [fi.run_status(f'~/{p}').problem for p in ('acts', 'atlas')]
assert fi.load_pipeline('~/model') is not None
print(*sorted(os.listdir(os.path.expanduser('~'))))
'''

def test_tilde_is_the_home_folder(tmp_path):
    home,here = tmp_path/'home',tmp_path/'here'
    home.mkdir()
    here.mkdir()
    done = subprocess.run([sys.executable, '-c', at_home], cwd=here, env=os.environ|dict(HOME=str(home), PYTHONPATH=str(root)), capture_output=True, text=True)
    assert done.returncode==0, done.stderr[-2000:]
    made = done.stdout.splitlines()[-1].split()
    assert made=='acts answers.sqlite atlas copy itda log.csv model p.txt page.html rec.safetensors recipe.json sae sweep trained transcoder'.split()
    assert not os.listdir(here)

def test_no_path_of_a_person_is_taken_as_it_is():
    "`Path(argument)` in what people call forgets `~`: `core.user_path(argument)` does not"
    wrong = []
    for wing,modules in fi.surface.items():
        for module,names in modules.items():
            tree = ast.parse((root/'fluxinterp'/wing/f'{module}.py').read_text(encoding='utf-8'))
            methods = [f for c in tree.body if isinstance(c, ast.ClassDef) and c.name in names for f in c.body]
            patched = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.args.args and getattr(f.args.args[0].annotation, 'id', '') in names]
            for f in [f for f in [*tree.body, *methods] if isinstance(f, ast.FunctionDef) and (f.name in names or f in methods)]+patched:
                args = {a.arg for a in [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]}
                wrong += [f'{module}.{f.name}: {ast.unparse(n)}' for n in ast.walk(f) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') in ('Path', 'open', 'safe_open', 'load_file') and n.args and getattr(n.args[0], 'id', '') in args]
    assert not wrong, wrong

kinds = {'topk': fi.SAEConfig(num_latents=32, k=3, steps=2, batch_size=64), 'batchtopk': fi.SAEConfig(num_latents=32, k=3, steps=2, batch_size=64, architecture='batchtopk'), 'jumprelu': fi.SAEConfig(num_latents=32, k=3, steps=2, batch_size=64, architecture='jumprelu')}

@pytest.mark.parametrize('kind', [*kinds, 'itda', 'pca', 'coordinates', 'random', 'pursuit', 'matching over pca'])
def test_no_vectors_have_an_empty_code(kind):
    x = torch.randn(256, 16, generator=torch.Generator().manual_seed(0))
    if kind in kinds: d = fi.train(kinds[kind], x, progress=False)
    elif kind=='itda': d = fi.fit_itda(fi.ITDAConfig(k=3, batch_size=64), x, progress=False)
    else: d = dict(pca=lambda: fi.pca(x, 3), coordinates=lambda: fi.coordinates(x, 3), random=lambda: fi.random_directions(x, 20, 3)).get(kind, lambda: None)()
    if kind=='pursuit': d = fi.pursuit_encoder(fi.train(kinds['topk'], x, progress=False))
    if kind=='matching over pca': d = fi.pursuit_encoder(fi.pca(x, 3), 3, 'matching')
    for shape in ((0, 16), (2, 0, 16), (0, 3, 16)):
        none = torch.zeros(shape)
        for code in (d.encode(none), d.encode_tiled(none)):
            assert code.values.shape[:-1]==code.indices.shape[:-1]==shape[:-1] and code.values.dtype==torch.float32 and code.indices.dtype==torch.int64, (kind, shape)
            assert d.decode(code).shape==shape and code.to_dense().shape==(*shape[:-1], d.num_latents) and 'latents' in repr(code)
        assert d(none).shape==shape and fi.reconstruct(d, none).shape==shape

def test_words_that_tiny_models_do_not_know():
    "Said once, by whatever draws"
    for name,draw in (('tiny-flux', lambda p,t: fi.record(p, [t, 'a red star'], 'double.0.image', num_inference_steps=1)), ('tiny-flux', lambda p,t: fi.generate(p, t, num_inference_steps=1)), ('tiny-sdxl-turbo', lambda p,t: fi.generate(p, t, num_inference_steps=1))):
        pipe = fi.load_pipeline(name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            for _ in range(2): draw(pipe, 'a photo of a cat')
            draw(pipe, 'a red star')
        said = [str(w.message) for w in caught if 'does not know' in str(w.message)]
        assert len(said)==1 and said[0].startswith(f'{name} does not know: photo, cat; it knows: a an and'), said
