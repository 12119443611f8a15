"ITDA dictionaries whose growth is killed and resumed: what a notebook cannot do to itself"
import os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file

TENSOR = '''
g = torch.Generator().manual_seed(0)
data = torch.randn(8000, 12, generator=g).relu()**2@torch.randn(12, 48, generator=g)+.1*torch.randn(8000, 48, generator=g)+5
'''
STORE = '''
from fluxinterp.store import Store
data = Store(sys.argv[2]).site('double.0.image')
'''
WORKER = '''
import sys, torch
from fluxinterp.itda import ITDAConfig
from fluxinterp.growing import fit_itda
torch.set_num_threads(1)
DATA
fit_itda(ITDAConfig(k=6, fvu_threshold=.15, batch_size=128), data, out=sys.argv[1], checkpoint_every=4, progress=False)
print('whole')
'''

def run(code, *args):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], env=os.environ|dict(OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def newest(folder): return max((p.name for p in folder.glob('step-*')), default=None) if folder.exists() else None

@pytest.mark.parametrize('kind', ('tensor', 'store'))
def test_kill_and_resume(tmp_path, kind):
    "kill -9 at random moments, three or four times over; the dictionary is that of a run left alone, file by file"
    code,store = WORKER.replace('DATA', TENSOR if kind=='tensor' else STORE),tmp_path/'acts'
    if kind=='store':
        from fluxinterp.harvesting import harvest
        from fluxinterp.pipelines import load_pipeline, scene_prompts
        harvest(load_pipeline('random-flux'), scene_prompts(16), ['double.0.image'], store, num_inference_steps=2, dtype='float32', progress=False)
    p = run(code, tmp_path/'alone', store)
    out,_ = p.communicate(timeout=240)
    assert p.returncode==0 and 'whole' in out, out
    rng,kills,most = random.Random(0),0,4 if kind=='tensor' else 3
    for attempt in range(40):
        p = run(code, tmp_path/'torn', store)
        folder = tmp_path/'torn'/'checkpoints'
        if kills<most: # wait for work to be done, then a random moment more
            had,deadline = newest(folder),time.time()+120
            while p.poll() is None and time.time()<deadline and newest(folder)==had: time.sleep(.002)
            time.sleep(rng.random()*.1)
            if p.poll() is None:
                p.send_signal(signal.SIGKILL); kills += 1
                p.communicate()
                continue
        out,_ = p.communicate(timeout=240)
        assert p.returncode==0, out
        break
    assert kills>=2, kills
    files = lambda d: sorted(q.relative_to(d).as_posix() for q in Path(d).rglob('*') if q.is_file())
    assert files(tmp_path/'alone')==files(tmp_path/'torn')
    for f in files(tmp_path/'alone'):
        if f.endswith('.safetensors'):
            a,b = (load_file(tmp_path/n/f) for n in ('alone', 'torn'))
            assert a.keys()==b.keys() and all(torch.equal(a[k], b[k]) for k in a), f
        assert (tmp_path/'alone'/f).read_bytes()==(tmp_path/'torn'/f).read_bytes(), f
