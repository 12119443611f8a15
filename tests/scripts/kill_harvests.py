"""Harvests killed by SIGKILL at random moments and run again: `kill_harvests.py FOLDER`

One process loads everything, then forks for each harvest, so that twenty kills cost one start.
"""
import os, random, shutil, signal, sys, threading, time
from pathlib import Path

import torch
from tqdm import tqdm

import fluxinterp as fi
from fluxinterp.activations.harvesting import harvest
from fluxinterp.activations.store_folders import StoreError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_store import files

tqdm.set_lock(threading.RLock()) # its own is shared by forks, and whoever is killed holding it stops them all
torch.set_num_threads(1)
out = Path(sys.argv[1])
sites = ['double.0.image', 'double.0.image.mlp', 'single.0.image']
pipe,prompts = fi.load_pipeline('random-flux'),fi.scene_prompts(48)
fi.record(pipe, prompts[:4], sites, num_inference_steps=2)

def start(path): # -> process id of a harvest
    pid = os.fork()
    if pid: return pid
    how = dict(num_inference_steps=2, batch_size=4, shard_mb=1.6, progress=False)
    try: harvest(pipe, prompts, sites, path, **how)
    except StoreError as e: os._exit(7 if 'being written by another harvest' in str(e) else 1)
    except BaseException: os._exit(1)
    os._exit(0)

def end(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

began = time.time()
assert end(start(out/'whole'))==0
seconds = time.time()-began
whole = files(out/'whole')

def finish(path): # run again: the files of a harvest left alone
    assert end(start(path))==0, path
    assert files(path)==whole, path
    shutil.rmtree(path)

def kill(path, when): # start a harvest, kill it when `when(seconds)` -> its exit code
    pid,began = start(path),time.time()
    while not when(time.time()-began): time.sleep(.0003)
    os.kill(pid, signal.SIGKILL)
    return end(pid)

def look(path): # how far it came: number of files, whether one is half written
    there = [p.name for p in path.rglob('*') if p.is_file()] if path.exists() else []
    return len([n for n in there if n[:5].isdigit()]),any(n[0]=='.' and n!='.lock' for n in there)

rng,states,killed = random.Random(0),set(),0
for i in range(20): # moments all over the run
    path,moment = out/f'random-{i}',seconds*(i+rng.random())/20
    while kill(path, lambda s: s>moment)!=-signal.SIGKILL: # it was faster this time
        shutil.rmtree(path)
        moment *= .9
    killed += 1
    states.add(look(path)[0])
    if i%4==0: kill(path, lambda s: s>seconds*rng.random()/2)
    finish(path)
assert killed==20 and len(states)>=5, (killed, states)

def writing(path, target): # whether a file is half written, `target` files being there
    n,half = look(path)
    return half and n>=target

torn = 0
for i in range(6): # in the middle of writing a file
    path,target = out/f'write-{i}',(3, 7, 1)[i%3]
    kill(path, lambda s: s>20 or writing(path, target))
    torn += look(path)[1]
    finish(path)
assert torn>=1

pid = start(out/'two') # two writers
while not (out/'two/manifest.json').exists(): time.sleep(.001)
assert end(start(out/'two'))==7
assert end(pid)==0
assert files(out/'two')==whole
print(f'{killed} of 20 killed at random moments with {sorted(states)} files there, '
      f'{torn} of 6 within a file; {seconds:.2f} s a harvest')
