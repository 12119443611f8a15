"Edits against a brute-force reference, null edits on the trained model, and recipes that were damaged"
import json, random
from functools import cache

import numpy as np
import pytest
import torch

import fluxinterp as fi
from fluxinterp.dictionaries.baselines import LinearDictionary
from fluxinterp.steering.applying_edits import EditPlan
from fluxinterp.steering.edits import edit_kinds
from fluxinterp.steering.recipes import parse_recipe
from fluxinterp.dictionaries.sae import SAEConfig, TopKSAE

captions = ['a large red striped circle on the left and a small white star on the right', 'a blue heart, beige background']
grid,guidance = (4, 5),['unconditional', 'conditional', 'conditional']

@cache
def small_dictionaries():
    "A sparse autoencoder of random weights and two baselines, on the same random activations"
    g = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 20, 12, generator=g)*torch.linspace(.5, 3, 12)+2)
    sae = TopKSAE(12, SAEConfig(num_latents=40, k=5, normalizer='standardize')).requires_grad_(False)
    sae.normalizer.fit(x.flatten(0, 1)); sae.W_dec.mul_(torch.rand(40, 1, generator=g)+.5); sae.b_enc.add_(.1*torch.randn(40, generator=g))
    return x,dict(sae=sae, coordinates=fi.coordinates(x, 4), pca=fi.pca(x, 4))

def new_code(edit, old, token): # the table of the notebook, latent by latent; old: dense code of one token
    "Dense code after one edit"
    new,d = old.copy(),edit.dictionary
    w = d.write_directions.double().numpy()
    each = lambda v: list(v) if isinstance(v, tuple) else [v]*len(edit.features)
    def unit(i):
        kind = getattr(edit, 'unit', 'activation')
        return {'activation': 1., 'mean': (edit.mean_activations or {}).get(i), 'norm': np.linalg.norm(token)/np.linalg.norm(w[i])}[kind]
    for n,i in enumerate(edit.features):
        kind = type(edit).__name__
        if kind=='Add': new[i] += each(edit.strength)[n]*unit(i)
        if kind=='Scale': new[i] = each(edit.factor)[n]*old[i]
        if kind=='Clamp':
            low,high = each(edit.low)[n],each(edit.high)[n]
            if low is not None and old[i]<low*unit(i): new[i] = low*unit(i)
            if high is not None and old[i]>high*unit(i): new[i] = high*unit(i)
        if kind=='Ablate': new[i] = (1-each(edit.strength)[n])*old[i]
        if kind=='Negate': new[i] = (1-2*each(edit.strength)[n])*old[i]
        if kind=='Replace':
            j = each(edit.by)[n]
            new[i] -= old[i]
            new[j] += each(edit.strength)[n]*old[i]/unit(i)*unit(j)
    return new

def weight(region, t, i, dense): # of token t for latent i; dense: (token, latent) of this image
    "How much of the change is made there"
    if region is None: return 1.
    if isinstance(region, np.ndarray): return float(region.flatten()[t])
    if isinstance(region, fi.Box):
        r,c = divmod(t, grid[1])
        cut = lambda low,high,k,n: max(0., min(high, (k+1)/n)-max(low, k/n))*n
        return cut(region.top, region.bottom, r, grid[0])*cut(region.left, region.right, c, grid[1])
    if isinstance(region, fi.TextTokens): return float(t in region.indices)
    top = np.abs(dense[:,i]).max()
    share = abs(dense[t,i])/top if top else 0.
    return share if share>=region.threshold else 0.

def brute_force(x, edits):
    "x + sum of (new - old) * write direction, with dense codes, token by token in float64"
    y,touched = x.double().numpy().copy(),np.zeros(x.shape[:2], bool)
    for e in edits:
        w,dense = e.dictionary.write_directions.double().numpy(),e.dictionary.encode(x).to_dense().double().numpy()
        for b in range(len(x)):
            if e.guidance not in ('both', guidance[b]): continue
            for t in range(x.shape[1]):
                old,token = dense[b,t],x[b,t].double().numpy()
                change = new_code(e, old, token)-old
                if isinstance(e.region, fi.ActivationMask): # per feature: what is carried over follows its source
                    change = np.zeros_like(old)
                    for n,i in enumerate(e.features):
                        one = {k: (v[n] if isinstance(v, tuple) else v) for k in ('strength', 'factor', 'low', 'high', 'by') if hasattr(e, k) for v in [getattr(e, k)]}
                        one |= {k: getattr(e, k) for k in ('unit', 'mean_activations') if hasattr(e, k)}
                        change += weight(e.region, t, i, dense[b])*(new_code(type(e)(e.dictionary, i, **one), old, token)-old)
                else: change = change*weight(e.region, t, None, dense[b])
                y[b,t] += change@w
                touched[b,t] |= (change!=0).any()
    return y,touched

regions = dict(everywhere=None, mask=np.linspace(0, 1, 20).reshape(4, 5).round(1), box=fi.Box(.2, .1, .8, .55), own='map', strong=fi.ActivationMask(.4), text=fi.TextTokens([0, 7]))

def edits_of(d, kind, region, unit, many, means):
    "One edit of a kind on one latent or three"
    active = d.encode(small_dictionaries()[0]).to_dense().abs().sum((0, 1)).topk(6).indices.tolist()
    f,by = (active[:3],active[3:6]) if many else (active[0],active[3])
    several = (lambda *v: list(v)) if many else (lambda *v: v[0])
    amounts = dict(Add=dict(strength=several(.7, -2., 0.)), Scale=dict(factor=several(2.5, 1., -1.)), Clamp=dict(low=several(.3, -.2, .1), high=several(.9, .4, .1)), Ablate=dict(strength=several(1., .5, 2.)),
                   Negate=dict(strength=several(1., .5, .1)), Replace=dict(by=by, strength=several(1.5, 1., 0.)))[kind]
    if kind in ('Add', 'Clamp', 'Replace'): amounts |= dict(unit=unit, mean_activations=means)
    return edit_kinds[kind](d, f, region=region, **amounts)

@pytest.mark.parametrize('name', ['sae', 'coordinates', 'pca'])
@pytest.mark.parametrize('kind', edit_kinds)
def test_every_edit_against_brute_force(name, kind):
    x,all_ = small_dictionaries()
    d = all_[name]
    means = fi.mean_activations(d, x)
    seen = 0
    for where,region in regions.items():
        for unit in ('activation', 'mean', 'norm') if kind in ('Add', 'Clamp', 'Replace') else ('activation',):
            for many in (False, True):
                e = edits_of(d, kind, region, unit, many, means)
                y,touched = brute_force(x, [e])
                mine = EditPlan([e])(x, None, None if where=='text' else grid, guidance)
                assert mine is not None and touched.any(), (where, unit, many)
                assert np.allclose(mine[0].double().numpy(), y, rtol=1e-5, atol=1e-5), (where, unit, many)
                still = ~torch.as_tensor(touched)
                assert torch.equal(mine[0][still], x[still])
                seen += 1
    assert seen in (12, 36)

def test_many_edits_at_once():
    "Several dictionaries, kinds and guidance policies at one site; the order does not matter"
    x,all_ = small_dictionaries()
    means = {n: fi.mean_activations(d, x) for n,d in all_.items()}
    edits = [edits_of(all_[n], k, regions[r], 'mean', True, means[n]) for n,k,r in (('sae', 'Add', 'box'), ('sae', 'Clamp', 'own'), ('pca', 'Ablate', 'mask'), ('coordinates', 'Replace', 'everywhere'), ('sae', 'Ablate', 'mask'))]
    edits += [fi.Scale(all_['pca'], [0, 1], [2, 3], guidance='conditional'), fi.Clamp(all_['sae'], 3, low=.5, guidance='unconditional'), fi.Clamp(all_['sae'], 3, low=.5, guidance='unconditional')]
    y,_ = brute_force(x, edits)
    for order in range(4):
        random.Random(order).shuffle(edits)
        assert np.allclose(fi.apply_edits(x, edits, grid, guidance).double().numpy(), y, rtol=1e-5, atol=1e-5)

def test_half_precision_and_signed_zeros():
    x,all_ = small_dictionaries()
    x = x.bfloat16(); x[:,3] = -0.
    mask = np.zeros(grid); mask[1] = 1
    y = fi.apply_edits(x, [fi.Add(all_['sae'], 1, strength=.5, region=mask)], grid)
    assert y.dtype==torch.bfloat16 and torch.equal(y[:,:5].view(torch.int16), x[:,:5].view(torch.int16)) # bits, minus signs of zeros too
    w = all_['sae'].write_directions[1]
    assert torch.equal(y[:,5:10], (x[:,5:10].float()+.5*w).bfloat16()) # rounded once

def test_no_dense_code():
    "`x` is encoded in tiles, and only touched latents are gathered"
    class Watched(TopKSAE):
        def encode(self, x, nuisance=None): tiles.append(x.numel()//x.shape[-1]*self.num_latents); return super().encode(x)
    tiles,d = [],Watched(8, SAEConfig(num_latents=65536, k=4)).requires_grad_(False)
    x = torch.randn(2, 1000, 8, generator=torch.Generator().manual_seed(0))
    f = int(d.encode(x[:1,:1]).indices.flatten()[0])
    y = fi.apply_edits(x, [fi.Ablate(d, f)])
    assert max(tiles[1:])<=2**25 and sum(tiles[1:])==2000*65536
    assert torch.allclose(y[0,0], x[0,0]-d.encode(x[0,0]).latent(f)*d.write_directions[f], atol=1e-5)

def hooks_of(pipe): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in pipe.transformer.modules())

@pytest.fixture(scope='module')
def tiny():
    pipe,sae = fi.load_pipeline('tiny-flux'),fi.load_dictionary('tiny-flux/double.1.image')
    acts = fi.record(pipe, captions, ['double.1.image'])['double.1.image']
    def draw(**k): return pipe(captions, generator=[torch.Generator().manual_seed(i) for i in range(2)], output_type='np', **k).images
    return pipe,sae,acts,draw,draw()

def test_null_edits_on_tiny_flux(tiny):
    "Bit-identical images, for the dictionary and the baselines"
    pipe,sae,acts,draw,before = tiny
    for d in (sae, fi.coordinates(acts, 16), fi.pca(acts, 16)):
        f = int(d.encode(acts.tokens[:1024]).to_dense().abs().sum(0).argmax())
        nulls = [[], [fi.Add(d, f, strength=0.)], [fi.Ablate(d, f, strength=0.)], [fi.Negate(d, f, strength=0.)], [fi.Scale(d, [f, 1 if f!=1 else 2], 1)], [fi.Clamp(d, f, low=-1e9, high=1e9)],
                 [fi.Add(d, f, strength=9., region=np.zeros((16, 16)))], [fi.Ablate(d, f, region=fi.Box(.3, .3, .3, 1))], [fi.Add(d, f, strength=9., steps=[])], [fi.Scale(d, f, 0., steps=slice(3, 1))],
                 [fi.Add(d, f, strength=9.), fi.Add(d, f, strength=-9.)]]
        for null in nulls:
            with fi.steer(pipe, null): assert np.array_equal(draw(), before), null
        with fi.steer(pipe, [fi.Add(d, f, strength=9.)]): assert not np.array_equal(draw(), before)
    assert hooks_of(pipe)==0 and np.array_equal(draw(), before)

def test_bad_input_leaves_the_pipeline_as_it_was(tiny):
    pipe,sae,acts,draw,before = tiny
    narrow = LinearDictionary(torch.eye(8), torch.zeros(8), 2)
    bad = [(lambda: fi.Add(narrow, 1, site='double.1.image'), 'width'), (lambda: fi.Add(sae, 1, region=np.ones((8, 8))), '16 x 16 tokens'), (lambda: fi.Add(sae, 1, region=np.ones(255)), '16 x 16 tokens'),
           (lambda: fi.Add(sae, 1, steps=[4]), 'outside the schedule'), (lambda: fi.Ablate(sae, 1, guidance='unconditional'), 'switch guidance on'), (lambda: fi.Add(sae, 1, site='single.1.text', region=fi.TextTokens(99)), 'choose 0 to 31'),
           (lambda: fi.Add(sae, 1, site='dobule.1.image'), 'near it'), (lambda: fi.Add(sae, 1, strength=float('inf')), 'finite'), (lambda: fi.Add(narrow, 1), 'does not know its site')]
    for make,words in bad:
        with pytest.raises(ValueError, match=words):
            with fi.steer(pipe, [make()]): draw()
        assert hooks_of(pipe)==0 and not {'step', 'set_timesteps'}&set(pipe.scheduler.__dict__) and 'prepare_latents' not in pipe.__dict__
    assert np.array_equal(draw(), before)

def test_errors_and_interrupts_inside(tiny):
    pipe,sae,acts,draw,before = tiny
    edits = [fi.Clamp(sae, [3, 4], low=1., region='map'), fi.Replace(sae, 5, by=6, guidance='conditional', steps=fi.noise(.4, 1))]
    for error in (RuntimeError, KeyboardInterrupt):
        def fail(m, a, o): raise error
        h = pipe.transformer.single_transformer_blocks[2].register_forward_hook(fail)
        with pytest.raises(error):
            with fi.steer(pipe, edits, guard=True): draw()
        h.remove()
        assert hooks_of(pipe)==0 and np.array_equal(draw(), before)

def test_guidance_rows_on_tiny_flux(tiny):
    "Recording both rows inside `steer` sees the edit on the rows it was for, and on no others"
    pipe,sae,acts,draw,before = tiny
    call = dict(negative_prompt='a small gray square', true_cfg_scale=2., guidance='both', steps=[0, 1])
    clean = fi.record(pipe, captions, ['double.1.image'], **call)['double.1.image']
    rows = {p: np.flatnonzero(clean.rows.guidance==p) for p in ('conditional', 'unconditional')}
    for p,q in (('conditional', 'unconditional'), ('unconditional', 'conditional')):
        with fi.steer(pipe, fi.Add(sae, 3, strength=2., guidance=p, steps=0)): x = fi.record(pipe, captions, ['double.1.image'], **call)['double.1.image'].x[:,0]
        assert torch.equal(x[rows[q]], clean.x[rows[q],0])
        assert torch.allclose(x[rows[p]]-clean.x[rows[p],0], (2*sae.write_directions[3]).expand(2, 256, -1), atol=1e-4)

# recipes

def recipes(sae):
    "Two recipes that use all there is"
    means = torch.linspace(.1, 3, 2048)
    r = np.random.default_rng(0)
    return [[fi.Add(sae, [17, 4], strength=[8., -.1], region=fi.Box(0, 0, .5, 1), steps=slice(0, 3)), fi.Scale(sae, 9, 1.5, region=r.random((3, 4))), fi.Clamp(sae, 3, high=1., region='map', guidance='conditional', steps=fi.noise(.5, 1))],
            [fi.Ablate(sae, 3, region=fi.TextTokens([1, 2]), site='single.1.text'), fi.Negate(sae, 2, region=[0, 1, 0], steps=2), fi.Replace(sae, [3, 5], by=9, region=np.eye(4), site=['double.1.image', 'single.1.image'], steps=[0, -1], unit='mean', mean_activations=means),
             fi.Clamp(sae, [1, 2], low=[0, 1], unit='norm'), fi.Add(sae, 5, strength=1e-7/3, region=r.random(5), site=fi.Site(path='transformer.transformer_blocks.0'))]]

def places(v, at=()): # every (container, key) in a JSON value
    "All the places of a JSON document"
    for k in (v if isinstance(v, dict) else range(len(v)) if isinstance(v, list) else ()):
        yield v,k
        yield from places(v[k])

odd_values = [None, True, False, 0, -1, 1, 2, 7, 1.5, -3.25, 10**40, -10**400, 1e308, 5e-324, '', 'x', 'NaN', 'Clamp', 'both', [], [1], [[1]], {}, {'box': [0, 0, 1, 1]}, {'noise': [0, 2]}, {'map': .5}, {'mask': [[1, 2]]}, [None], 2**31, 2**63]

def mutate(text, rng):
    "One mutation of a recipe, as bytes"
    how = rng.choice(['flip', 'flips', 'cut', 'drop', 'insert', 'remove', 'change', 'change', 'number', 'rename', 'nan', 'twice', 'swap'])
    b = bytearray(text.encode())
    if how in ('flip', 'flips'):
        for _ in range(1 if how=='flip' else rng.randint(2, 20)): b[rng.randrange(len(b))] ^= 1<<rng.randrange(8)
        return bytes(b)
    if how=='cut': return bytes(b[:rng.randrange(len(b))])
    if how=='drop': i = rng.randrange(len(b)); return bytes(b[:i]+b[i+rng.randint(1, 40):])
    if how=='insert': i = rng.randrange(len(b)); return bytes(b[:i]+bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))+b[i:])
    doc = json.loads(text)
    box,key = rng.choice(list(places(doc)))
    if how=='remove': del box[key]
    if how=='change': box[key] = rng.choice(odd_values)
    if how=='number':
        numbers = [(c, k) for c,k in places(doc) if type(c[k]) in (int, float)]
        box,key = rng.choice(numbers)
        box[key] = rng.choice([-box[key], box[key]*10**30, box[key]+.5, 10**5000 if rng.random()<.1 else 10**300, -1, str(box[key])])
        try: return json.dumps(doc).encode()
        except ValueError: box[key] = 10**4000; return json.dumps(doc).encode()
    if how=='rename' and isinstance(box, dict): box[key+rng.choice(['s', '_', ' '])] = box.pop(key)
    if how=='nan': box[key] = rng.choice([float('nan'), float('inf'), -float('inf')])
    if how=='twice': return text.replace('"unit"', '"guidance": "both", "unit"', 1).encode()
    if how=='swap': other,k = rng.choice(list(places(doc))); box[key] = json.loads(json.dumps(other[k]))
    return json.dumps(doc).encode()

def plain(e): # an edit of a recipe in one spelling
    "Masks as float32, whatever way they are written"
    e = {k: v for k,v in e.items() if k!='dictionary'}
    if isinstance(e['region'], dict) and 'mask' in e['region']:
        row = lambda r: [float(c) for c in r] if isinstance(r, str) else r
        m = e['region']['mask']
        e['region'] = np.array(row(m) if isinstance(m, str) or type(m[0]) in (int, float) else [row(r) for r in m], np.float32).tolist()
    return e

def test_damaged_recipes(tiny):
    "700 mutations: a `RecipeError` each, or the recipe that is written there"
    sae = tiny[1]
    texts = [fi.recipe_json(r) for r in recipes(sae)]
    for t in texts: assert fi.recipe_json(parse_recipe(t))==t
    rng,refused,changed = random.Random(0),0,0
    for i in range(700):
        text = rng.choice(texts)
        damaged = mutate(text, rng)
        try: edits = parse_recipe(damaged, None if i%50==0 else sae)
        except fi.RecipeError as e:
            assert str(e)
            refused += 1
            continue
        written,again = json.loads(damaged)['edits'],fi.recipe_json(edits, {'somewhere': sae})
        assert [plain(e) for e in written]==[plain(e) for e in json.loads(again)['edits']], damaged
        assert json.loads(fi.recipe_json(parse_recipe(again, sae)))['edits']==json.loads(again)['edits']
        changed += damaged!=text.encode()
    assert refused>400 and changed>50 # both kinds occur

def test_a_recipe_draws_the_same_pictures(tiny, tmp_path):
    pipe,sae,acts,draw,before = tiny
    edits = [fi.Add(sae, [17, 4], strength=[3., -1.], region=fi.Box(0, 0, .5, 1), steps=slice(0, 3)), fi.Clamp(sae, 3, low=1., region='map', steps=fi.noise(.5, 1))]
    fi.save_recipe(edits, tmp_path/'r.json')
    with fi.steer(pipe, edits): first = draw()
    with fi.steer(pipe, fi.load_recipe(tmp_path/'r.json')): second = draw()
    assert np.array_equal(first, second) and not np.array_equal(first, before)
    with pytest.raises(FileNotFoundError): fi.load_recipe(tmp_path/'none.json')
    other = fi.load_dictionary('tiny-flux/single.1.image')
    with pytest.raises(fi.RecipeError, match='is for the dictionary'): fi.load_recipe(tmp_path/'r.json', other)
