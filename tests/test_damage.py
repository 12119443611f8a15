"Damaged files of every format, and writes that have no room: an error that says what to do, and nothing lost"
import os, resource, sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import fluxinterp as fi
from fluxinterp.atlases.annotations import AtlasError
from fluxinterp.atlases.atlas_files import array_files
from fluxinterp.safe_files import WriteError, load_json, save_json, seal

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here/'scripts'))

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    from damage_files import Made
    return Made(tmp_path_factory.mktemp('good'))

@pytest.mark.parametrize('name', ['dictionary', 'dictionary, forged', 'transcoder', 'other libraries', 'store', 'record', 'atlas, arrays', 'atlas.json', 'atlas.sqlite', 'atlas, forged', 'recipe',
                                  'checkpoint of training', 'checkpoint of ITDA', 'checkpoint of an atlas'])
def test_damaged_files(made, name):
    "A sample of what `scripts/damage_files.py` does 500 times a reader"
    from damage_files import check
    n = 10 if name.startswith('atlas') else 30
    count,faults = check(made, name, n, seed=1)
    assert not faults, '\n'.join(faults)
    assert sum(count.values())>n/2, count

def test_every_reader_is_tried(made):
    assert len(made.readers)==14

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file() and p.suffix!='.lock'}

@contextmanager
def no_room(size=3000):
    "No file may grow beyond `size` bytes"
    soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

@pytest.fixture(scope='module')
def world():
    pipe = fi.load_pipeline('tiny-flux')
    rec = fi.record(pipe, fi.scene_prompts(8), 'double.1.image', images=True, progress=False)
    return pipe,rec,fi.load_dictionary('tiny-flux/double.1.image')

def writes(world, name):
    "A call that writes into a folder -> the call, what its error says"
    pipe,rec,sae = world
    one = rec['double.1.image']
    x = one.tokens[:2000].float()
    return {'save_dictionary': (lambda out: fi.save_dictionary(sae, out/'sae'), 'is as it was; .*save again'),
            'SiteRecord.save': (lambda out: one.save(out/'record.safetensors'), 'is as it was; .*try again'),
            'build_atlas': (lambda out: fi.build_atlas(sae, rec, out/'atlas', examples=2, progress=False), 'What was scanned before is kept; .*the same call goes on from there'),
            'fit_itda': (lambda out: fi.fit_itda(fi.ITDAConfig(k=4, batch_size=256), x, out/'itda', checkpoint_every=2, progress=False), 'There is no older one; .*begin again'),
            'train': (lambda out: fi.train(fi.SAEConfig(num_latents=64, k=4, steps=4, batch_size=64), x, out=out/'train', checkpoint_every=2, progress=False), 'There is no older one; .*begin again'),
            'Atlas.copy': (lambda out: fi.Atlas('tiny-flux/double.1.image').copy(out/'copy'), 'Nothing is left in .*copy it again')}[name]

@pytest.mark.parametrize('name', ['save_dictionary', 'SiteRecord.save', 'build_atlas', 'fit_itda', 'train', 'Atlas.copy'])
def test_a_full_disk(world, name, tmp_path):
    "One sentence with path and remedy, nothing half written; with room the same call ends as it would have"
    call,says = writes(world, name)
    (tmp_path/'out').mkdir()
    with no_room(), pytest.raises(WriteError, match=f'could not write {tmp_path}/out/.*File too large. .*{says}'): call(tmp_path/'out')
    left = contents(tmp_path/'out')
    assert set(left)<={'atlas/plan.json', 'atlas/parts/.lock', 'train/log.csv', 'itda/log.csv'}, left.keys()
    call(tmp_path/'out')
    call(tmp_path/'whole') if name!='train' else None
    def sizes(folder): return {k: len(b) for k,b in contents(folder).items() if not k.endswith(('-wal', '-shm'))} # SQLite's, while an atlas is open
    if name!='train': assert sizes(tmp_path/'out')==sizes(tmp_path/'whole')

def test_what_was_there_stays(world, tmp_path):
    "A save over an older dictionary, explanations of an atlas"
    pipe,rec,sae = world
    fi.save_dictionary(sae, tmp_path/'sae')
    before = contents(tmp_path/'sae')
    with no_room(), pytest.raises(WriteError): fi.save_dictionary(fi.pca(rec['double.1.image'], 8), tmp_path/'sae')
    assert contents(tmp_path/'sae')==before
    atlas = fi.Atlas('tiny-flux/double.1.image').copy(tmp_path/'atlas')
    known = atlas.names()
    with no_room(30_000), pytest.raises(WriteError, match=f'could not write {tmp_path}/atlas/atlas.sqlite: .*is kept; .*again'):
        for i in range(2000): atlas.label(i, 'a name '*20)
    assert [n for n in atlas.names() if n.startswith('a name')], 'labels before it are kept'
    atlas.label(1999, 'the last')
    assert atlas.names()[1999]=='the last' and fi.Atlas(tmp_path/'atlas').names()[1999]=='the last'
    with pytest.raises(FileExistsError, match='another name'): fi.Atlas('tiny-flux/double.1.image').copy(tmp_path/'atlas')

def test_a_hostile_atlas_does_not_kill_the_interpreter(tmp_path):
    "Lengths whose sum overflows, with a checksum that fits: in a process of its own"
    a = fi.Atlas('tiny-flux/double.1.image').copy(tmp_path/'a')
    f = sorted(a.path.glob('blocks/*.safetensors'))[0]
    t = load_file(f)
    t['lengths'][:] = 2**62
    save_file(t, f)
    save_json(seal(load_json(a.path/'atlas.json')|dict(files=array_files(a.path))), a.path/'atlas.json')
    pid = os.fork()
    if not pid:
        try: fi.Atlas(a.path).search('red star')
        except AtlasError as e: os._exit(5 if 'lengths has 4611686018427387904' in str(e) else 1)
        finally: os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==5
