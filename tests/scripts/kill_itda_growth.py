"""ITDA dictionaries whose growth is killed by SIGKILL and resumed: `kill_itda_growth.py tensor|store FOLDER`

One process imports everything, once; every run is a fork of it. tqdm's lock would be shared by all forks, and
a killed one could hold it for ever: a lock of the process's own takes its place.
"""
import os, random, signal, sys, threading, time, traceback
from pathlib import Path

import torch, tqdm

from fluxinterp.activations.store import Store
from fluxinterp.dictionaries.itda import ITDAConfig
from fluxinterp.training.itda_growth import fit_itda

torch.set_num_threads(1)
tqdm.tqdm.set_lock(threading.RLock())
kind,root = sys.argv[1],Path(sys.argv[2])

def fork(f, *args): # -> process id
    pid = os.fork()
    if pid: return pid
    try: f(*args)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)

def harvested():
    from fluxinterp.activations.harvesting import harvest
    from fluxinterp.models.pipelines import load_pipeline
    from fluxinterp.worlds.scenes import scene_prompts
    harvest(load_pipeline('random-flux'), scene_prompts(16), ['double.0.image'], root/'acts',
            num_inference_steps=2, dtype='float32', progress=False)

def tensor():
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(12000, 12, generator=g).relu()**2@torch.randn(12, 48, generator=g)
    return clean+.1*torch.randn(12000, 48, generator=g)+5

def grow(out):
    data = Store(root/'acts').site('double.0.image') if kind=='store' else tensor()
    config = ITDAConfig(k=6, fvu_threshold=.15, batch_size=64)
    fit_itda(config, data, out=root/out, checkpoint_every=4, progress=False)

def whole(pid): assert os.waitpid(pid, 0)[1]==0, 'a run failed'
def newest(): return max((p.name for p in (root/'torn'/'checkpoints').glob('step-*')), default=None)

if kind=='store': whole(fork(harvested))
whole(fork(grow, 'alone'))
rng,kills,ended = random.Random(0),0,False
while kills<6 and not ended: # wait for work to be done, then a random moment more
    pid,had,deadline = fork(grow, 'torn'),newest(),time.time()+60
    while newest()==had and not ended and time.time()<deadline:
        ended = os.waitpid(pid, os.WNOHANG)[0]!=0
        time.sleep(.001)
    time.sleep(rng.random()*.05)
    if not ended and os.waitpid(pid, os.WNOHANG)[0]==0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    else: ended = True
if not ended: whole(fork(grow, 'torn'))
print('kills', kills)
