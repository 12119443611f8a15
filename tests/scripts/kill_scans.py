"""Scans of an atlas, killed at random moments or shared out over two processes: `kill_scans.py FOLDER`

One process imports everything, once; every scan is a fork of it.
"""
import os, random, signal, sys, threading, time, traceback
from pathlib import Path

import torch, tqdm

import fluxinterp as fi
from fluxinterp.atlases.atlas_building import build_atlas

torch.set_num_threads(1)
tqdm.tqdm.set_lock(threading.RLock()) # not shared with a fork that is killed while it holds it
root,site = Path(sys.argv[1]),'double.0.image'
store = fi.harvest(fi.load_pipeline('random-flux'), fi.scene_prompts(40), [site], root/'acts',
                   num_inference_steps=2, dtype='float32', shard_mb=.3, progress=False)
config = fi.SAEConfig(num_latents=96, k=4, steps=40, batch_size=256)
d = fi.train(config, store.site(site), progress=False)
d.b_enc.data[0] = -1e4 # one that never fires
fi.save_dictionary(d, root/'sae')

def fork(f, *args, **env): # -> process id
    pid = os.fork()
    if pid: return pid
    os.environ.update(env)
    try: f(*args)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)

def slow_down(): # so that a scan can be killed in the middle
    from fluxinterp.atlases.scan_statistics import FeaturePass
    update = FeaturePass.update
    def slow(self, *args):
        time.sleep(.03)
        return update(self, *args)
    FeaturePass.update = slow

def build(out):
    if out=='torn': slow_down()
    how = dict(examples=3, checkpoint_every=4, batch_tokens=1024, progress=False)
    build_atlas(d, fi.Store(root/'acts'), root/out, **how)

def whole(*pids):
    for pid in pids: assert os.waitpid(pid, 0)[1]==0, 'a scan failed'

def written(): return max((p.stat().st_mtime_ns for p in (root/'torn').rglob('*')), default=0)

whole(fork(build, 'alone'))
whole(*[fork(build, 'ranks', RANK=str(r), WORLD_SIZE='2') for r in (0, 1)])
rng,kills,ended = random.Random(0),0,False
while kills<6 and not ended: # wait for something to be written, then a random moment more
    pid,had,deadline = fork(build, 'torn'),written(),time.time()+60
    while written()==had and not ended and time.time()<deadline:
        ended = os.waitpid(pid, os.WNOHANG)[0]!=0
        time.sleep(.001)
    time.sleep(rng.random()*.04)
    if not ended and os.waitpid(pid, os.WNOHANG)[0]==0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    else: ended = True
if not ended: whole(fork(build, 'torn'))
print('kills', kills)
