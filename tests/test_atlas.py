"Atlases whose scan is killed, or shared out over processes: what a notebook cannot do to itself; and files that are not what they should be"
import json, os, sqlite3, subprocess, sys
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file

import fluxinterp as fi
from fluxinterp.atlases.annotations import AtlasError

repo = Path(__file__).resolve().parents[1]

@pytest.fixture(scope='module')
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp('atlas')
    env = os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=str(repo))
    p = subprocess.run([sys.executable, repo/'tests/scripts/kill_runs.py', root, 'atlas'],
                       env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert p.returncode==0, p.stdout
    return root/'atlas',int(p.stdout.split('kills')[1].split(',')[0])

def arrays(out): return {f'{n}/{k}': v for n in ('features', 'examples') for k,v in load_file(out/f'{n}.safetensors').items()}

def test_kill_and_rerun(built):
    "kill -9 and Ctrl-C at random moments; every array is that of a scan left alone, byte by byte"
    root,kills = built
    assert kills>=2
    files = lambda d: sorted(q.relative_to(d).as_posix() for q in (root/d).rglob('*.safetensors'))
    a,b = arrays(root/'alone'),arrays(root/'torn')
    assert a.keys()==b.keys() and all(torch.equal(v, b[k]) for k,v in a.items())
    assert (root/'alone/atlas.json').read_bytes()==(root/'torn/atlas.json').read_bytes()
    x,y = fi.Atlas(root/'alone'),fi.Atlas(root/'torn')
    assert x.pictures.equals(y.pictures) and (x.peaks()==y.peaks()).all()
    assert not list((root/'torn').rglob('*.tmp'))

def test_refused(built, tmp_path):
    "An atlas of another dictionary, files torn or foreign, a feature without examples"
    root,_ = built
    d,store = fi.load_dictionary(root/'sae'),fi.Store(root/'acts')
    other = fi.random_directions(store.site('double.0.image'), 96, 4)
    with pytest.raises(AtlasError, match='made otherwise: dictionary'): fi.build_atlas(other, store, root/'alone', examples=3, progress=False)
    atlas = fi.Atlas(root/'alone')
    with pytest.raises(AtlasError, match='of another dictionary'): atlas.check_dictionary(other)
    assert atlas.check_dictionary(d) is None
    import shutil
    shutil.copytree(root/'alone', tmp_path/'copy')
    file = tmp_path/'copy'/'atlas.sqlite'
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(AtlasError, match='damaged'): fi.Atlas(tmp_path/'copy')
    file.unlink()
    with sqlite3.connect(file) as db: db.execute('create table mine(x)')
    with pytest.raises(AtlasError, match='some other program'): fi.Atlas(tmp_path/'copy')
    file.unlink()
    with pytest.raises(AtlasError, match='is missing'): fi.Atlas(tmp_path/'copy')
    assert len(fi.build_atlas(d, store, tmp_path/'copy', examples=3, progress=False))==96 # writes the words anew
    (tmp_path/'copy'/'examples.safetensors').write_bytes(b'torn')
    with pytest.raises(AtlasError, match='does not match its checksum'): fi.Atlas(tmp_path/'copy').examples(int(atlas.array('totals/fired').argmax()))
    assert atlas.examples(0)==[] and 'dead' in repr(atlas.feature(0)) and atlas.array('totals/fired')[0]==0
    said = fi.explain(atlas, fi.PromptStatistics(), [0], progress=False)
    assert said.status[0]=='dead' and said.text[0]==''
    assert fi.score(atlas, fi.Localization(), features=[0], progress=False).status[0]=='dead'
