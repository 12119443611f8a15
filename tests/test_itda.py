"ITDA dictionaries whose growth is killed, interrupted and resumed: what a notebook cannot do to itself"
import os, subprocess, sys
from pathlib import Path

import pytest

repo = Path(__file__).resolve().parents[1]

@pytest.mark.parametrize('kind', ('itda', 'itda-store'))
def test_kill_and_resume(tmp_path, kind):
    "kill -9 and Ctrl-C at random moments; the dictionary is that of a run left alone, file by file"
    env = os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=str(repo))
    p = subprocess.run([sys.executable, repo/'tests/scripts/kill_runs.py', tmp_path, kind, '--times', '4'],
                       env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert p.returncode==0 and f'{kind}: kills ' in p.stdout, p.stdout
