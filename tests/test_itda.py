"ITDA dictionaries whose growth is killed and resumed: what a notebook cannot do to itself"
import os, subprocess, sys
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file

repo = Path(__file__).resolve().parents[1]

@pytest.mark.parametrize('kind', ('tensor', 'store'))
def test_kill_and_resume(tmp_path, kind):
    "kill -9 at random moments, six times over; the dictionary is that of a run left alone, file by file"
    env = os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=str(repo))
    p = subprocess.run([sys.executable, repo/'tests/scripts/kill_itda_growth.py', kind, tmp_path],
                       env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert p.returncode==0, p.stdout
    assert int(p.stdout.split('kills')[1].split()[0])>=3, p.stdout
    files = lambda d: sorted(q.relative_to(d).as_posix() for q in Path(d).rglob('*') if q.is_file())
    assert files(tmp_path/'alone')==files(tmp_path/'torn')!=[]
    for f in files(tmp_path/'alone'):
        if f.endswith('.safetensors'):
            a,b = (load_file(tmp_path/n/f) for n in ('alone', 'torn'))
            assert a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a), f
        assert (tmp_path/'alone'/f).read_bytes()==(tmp_path/'torn'/f).read_bytes(), f
