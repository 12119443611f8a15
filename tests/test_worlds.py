"Studies take any world with known truth: a made-up one goes through them, and none forgets to ask which world is meant"
import ast
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.filterwarnings('ignore:.*does not know')
root = Path(__file__).resolve().parents[1]
package = root/'fluxinterp'
studies = [p for wing in ('evaluation', 'steering', 'autointerp') for p in sorted((package/wing).glob('*.py'))]

# modules of studies that know the tiny world itself, and why
of_the_tiny_world = {'steering/image_distances.py': 'reader_features: convolutions that serve as a perceptual network for any images'}
# what uses something that depends on a world and does not ask for one, and why
do_not_ask = {'remake_packaged': 'each packaged pipeline has its own world',
              'scene_objects': 'is given the names of the concepts'}

@cache
def tree_of(path): return ast.parse(path.read_text(encoding='utf-8'))

def asks(node):
    "Whether a function has a parameter `world`, or a class a field or a parameter of its `__init__`"
    if isinstance(node, ast.FunctionDef):
        return 'world' in {a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
    if any(isinstance(b, ast.AnnAssign) and getattr(b.target, 'id', '')=='world' for b in node.body): return True
    return any(isinstance(b, ast.FunctionDef) and b.name=='__init__' and asks(b) for b in node.body)

def definitions(path): return [o for o in tree_of(path).body if isinstance(o, (ast.FunctionDef, ast.ClassDef))]

def used(node):
    "Names that are used, but for annotations"
    stack,names = [node],set()
    while stack:
        o = stack.pop()
        if isinstance(o, ast.Name): names.add(o.id)
        stack += [v for f,v in ast.iter_fields(o) if f not in ('annotation', 'returns') and isinstance(v, ast.AST)]
        stack += [v for f,some in ast.iter_fields(o) if isinstance(some, list) for v in some if isinstance(v, ast.AST)]
    return names

def patched(node):
    "Name of the class that a `@patch`ed method belongs to"
    if not isinstance(node, ast.FunctionDef) or not any(getattr(d, 'id', '')=='patch' for d in node.decorator_list): return None
    return node.args.args[0].annotation.id

def test_studies_are_of_any_world():
    wrong = []
    for path in studies:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or '').endswith(('worlds.scenes', 'worlds.reader', 'worlds.stickers', 'worlds.sticker_reader')):
                wrong.append(path.relative_to(package).as_posix())
    assert set(wrong)==set(of_the_tiny_world), f'import `as_world` of worlds.world instead: {wrong}'

def test_studies_ask_which_world_is_meant():
    every = [*studies, package/'packaged.py', package/'demo.py', package/'worlds/world.py']
    takers = {d.name for p in every for d in definitions(p) if asks(d)}
    assert {'as_world', 'record_scenes', 'reader_judge', 'SceneWriter'}<=takers
    wrong = []
    for path in every:
        by_name = {d.name: d for d in definitions(path)}
        reachable = {*by_name, *(a.asname or a.name for o in ast.walk(tree_of(path)) if isinstance(o, ast.ImportFrom) for a in o.names)}
        owner = {d.name: patched(d) for d in by_name.values()}
        names = {n: used(d) for n,d in by_name.items()}
        for n,d in by_name.items():
            if n.startswith('_') or asks(d) or (owner[n] and asks(by_name[owner[n]])): continue
            seen,new = {n},names[n]
            while new: # what its private helpers use is used
                seen |= new
                new = set().union(*(names[m] for m in new if m in names and m.startswith('_')))-seen
            found = (seen-{n})&takers&reachable
            if found and n not in do_not_ask: wrong.append(f'{path.relative_to(package).as_posix()}: {n} uses {", ".join(sorted(found))}')
    assert not wrong, 'give it world=None and hand it on, or say in this test why not:\n'+'\n'.join(wrong)

# a world of bars, of another size and other concepts than the bundled ones
values = dict(way=('upright', 'lying'), paint=('ruby', 'azure'), ground=('light', 'dark'))
colors = dict(ruby=(210, 40, 60), azure=(50, 110, 220), light=(225, 225, 220), dark=(35, 35, 45))

def draw_bar(way, paint, ground, at, concepts):
    from fluxinterp.worlds.world import LabeledScene
    mask = np.zeros((32, 32), np.float32)
    mask[(slice(4, 28), slice(at, at+8)) if way=='upright' else (slice(at, at+8), slice(4, 28))] = 1
    array = (mask[...,None]*colors[paint]+(1-mask[...,None])*np.array(colors[ground])).astype(np.uint8)
    cover = {('way', way): mask, ('paint', paint): mask, ('ground', ground): 1-mask}
    o = SimpleNamespace(way=way, paint=paint)
    scene = LabeledScene(array, f'an {way} {paint} bar, {ground}', cover, concepts, (o,), mask[None], dict(objects=[vars(o)]))
    object.__setattr__(scene, 'ground', ground)
    object.__setattr__(scene, 'at', at)
    return scene

def seen(image): # by the pixels' nearest color
    a = np.asarray(image, float)
    near = np.stack([np.linalg.norm(a-c, axis=-1) for c in colors.values()])
    maps = {n: (near.argmin(0)==i).astype(np.float32) for i,n in enumerate(colors)}
    paint = max(('ruby', 'azure'), key=lambda n: maps[n].sum())
    ground = max(('light', 'dark'), key=lambda n: maps[n].sum())
    bar = maps[paint]
    way = 'upright' if bar.any(1).sum()>bar.any(0).sum() else 'lying'
    there = {('way', way): bar, ('paint', paint): bar, ('ground', ground): maps[ground]}
    every = np.stack([there.get((f, v), 0*bar) for f,some in values.items() for v in some])
    return SimpleNamespace(probabilities=(every.max((1, 2))>0).astype(np.float32), ground=ground, present=[dict(way=way, paint=paint)] if bar.any() else [],
                           maps=every.reshape(6, 8, 4, 8, 4).mean((2, 4)))

@pytest.fixture(scope='module')
def bars():
    from fluxinterp.worlds.world import World
    concepts = tuple((f, v) for f,some in values.items() for v in some)
    def make_scene(seed, split='train', objects=None, drop=.15):
        rng = np.random.default_rng((seed, split=='train'))
        return draw_bar(*(some[rng.integers(2)] for some in values.values()), int(rng.integers(4, 21)), concepts)
    def redraw(scene, changes):
        o = vars(scene.objects[0])|changes
        return draw_bar(o['way'], o['paint'], scene.ground, scene.at, concepts)
    return World('bars', values, make_scene, ('way', 'paint'), pixels=32, redraw=redraw, reader=lambda images: [seen(i) for i in images])

@pytest.fixture(scope='module')
def recorded(bars):
    import fluxinterp as fi
    pipe = fi.load_pipeline('random-flux')
    site = 'double.0.image'
    a,b = (fi.record_scenes(pipe, [site], 24, split, noise_level=.1, world=bars, progress=False) for split in ('train', 'test'))
    return SimpleNamespace(pipe=pipe, site=site, train=a, test=b, pca=fi.pca(a.recording[site], 4))

def test_concepts_of_a_made_up_world(bars, recorded):
    import fluxinterp as fi
    from fluxinterp.evaluation.concepts import concept_labels, coverage_labels, reader_labels
    a,b = recorded.train,recorded.test
    assert a.names==bars.concepts and a.world is bars and a.labels.shape==(6, 24, 64) and a.recording[recorded.site].grid==(8, 8)
    found = fi.find_concepts(recorded.pca, a, b, candidates=16, bootstrap=0)
    assert set(zip(found.factor, found.value))==set(bars.concepts)
    assert list(fi.recovered(found, world=bars).index[:3])==['way', 'paint', 'ground']
    ceiling = fi.probe_ceiling(a, b)
    assert len(ceiling)==6 and ceiling.auroc.mean()>.7
    assert len(fi.sparse_probes(recorded.pca, a, b, k=(1, 2), candidates=16))==12
    compared = fi.compare_methods(dict(pca=recorded.pca), a, b, k=(2,), candidates=16, progress=False)
    assert len(compared.shares())==2
    splitting = fi.concept_splitting(recorded.pca, a, b, candidates=16)
    absorbed = fi.concept_absorption(recorded.pca, a, b, splitting, least=1, candidates=16)
    assert set(absorbed.parent)<={'upright', 'lying', 'ruby', 'azure'} # grounds are of no object
    truth = reader_labels([s.image for s in b.scenes], (8, 8), bars)
    assert (truth==concept_labels(b.scenes, (8, 8), bars)).all() and (truth==b.labels).all()
    with pytest.raises(ValueError, match='give names= or world='): coverage_labels(np.zeros((6, 2, 4)))
    with pytest.raises(ValueError, match='unknown world'): fi.record_scenes(recorded.pipe, [recorded.site], 2, world='bar')
    with pytest.raises(ValueError, match='unknown split'): fi.record_scenes(recorded.pipe, [recorded.site], 2, 'novel', world=bars)

def test_interchange_in_a_made_up_world(bars, recorded):
    import fluxinterp as fi
    kwargs = dict(world=bars, attributes=('paint', 'way'), progress=False)
    pairs = fi.record_pairs(recorded.pipe, recorded.site, 12, noise_level=.1, **kwargs)
    for base,source in pairs.scenes:
        a,b = vars(base.objects[0]),vars(source.objects[0])
        assert a['way']!=b['way'] and a['paint']!=b['paint'] and base.ground==source.ground
    table = fi.cause_and_isolation(dict(pca=recorded.pca), recorded.train, pairs, k=(1,), readouts=('code',), candidates=8, resamples=20)
    assert set(table.attribute)=={'paint', 'way'}
    everything = table[table.method=='everything interchanged']
    assert (everything.cause==1).all() # of the pairs that the probes read rightly
    with pytest.raises(ValueError, match='attributes= takes some of way, paint'): fi.record_pairs(recorded.pipe, recorded.site, 2, world=bars)

def test_judges_of_a_made_up_world(bars):
    from fluxinterp.autointerp.embedding_scorer import ReaderEmbedder
    from fluxinterp.autointerp.generative_scorers import SceneWriter
    from fluxinterp.autointerp.judges import ReaderVerdicts, Task, named_concepts
    from fluxinterp.steering.image_distances import texture_score
    from fluxinterp.steering.image_judges import reader_judge
    scenes = bars.make_scenes(12)
    images = [s.image for s in scenes]
    labels = reader_judge(images, bars).labels
    assert labels.to_dict('records')==[vars(s.objects[0])|dict(ground=s.ground) for s in scenes]
    for s in scenes: assert [bars.concepts[i] for i in named_concepts(s.caption, bars)]==[bars.concepts[i] for i in s.shown]
    judge = ReaderVerdicts(bars)
    assert judge.name=='reader of bars' and ReaderVerdicts().name=='reader'
    for a in judge([Task(i, 'detect', 'ruby things', [(s.image, s.masks[0][::4,::4])]) for i,s in enumerate(scenes)]):
        assert (a.value>.5)==(scenes[a.id].objects[0].paint=='ruby')
    a, = SceneWriter(bars)(['an azure bar'], 5)
    assert all('azure' in c for c in a.value[0]) and all('ruby' in c for c in a.value[1])
    e = ReaderEmbedder(bars)
    near = e.embed_texts([s.caption for s in scenes])@e.embed_images(images).T
    assert (near.diag()>=near.max(1).values-1e-6).all()
    with pytest.raises(ValueError, match='no textures in the world bars'): texture_score(images, world=bars)

def test_explanations_in_a_made_up_world(bars, recorded, tmp_path):
    import fluxinterp as fi
    from fluxinterp.evaluation.concepts import concept_labels
    site,scenes = recorded.site,bars.make_scenes(48, start=9000)
    rec = fi.record(recorded.pipe, [s.caption for s in scenes], [site], images=[s.image for s in scenes], noise_levels=.5, progress=False)
    rec.images = [s.image for s in scenes]
    atlas = fi.build_atlas(recorded.pca, rec, tmp_path/'atlas', progress=False)
    labels = fi.read_labels(atlas, world=bars)
    assert (labels==concept_labels(scenes, (8, 8), bars)).all()
    features = atlas.firing_counts('explain').argsort()[-4:].tolist()
    said = fi.explain(atlas, fi.LabelMaps(labels, world=bars), features, progress=False)
    assert set(said.text)<={*(v for _,v in bars.concepts), 'no known map'}
    scored = fi.score(atlas, explainer='maps', features=features, progress=False, world=bars)
    assert len(scored)==len(features)
    assert len(fi.scores(atlas, 'maps', 'detection/reader of bars'))==len(features)
