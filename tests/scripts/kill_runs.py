"""Runs that are killed (SIGKILL) and interrupted (Ctrl-C) at random moments and run again, until they end: the files of a run left alone

`kill_runs.py FOLDER WORK... [--times 6] [--seed 0]`, WORK being among harvest, topk, batchtopk, jumprelu, several, itda, itda-store,
atlas, explain, score. One process imports everything, once; every run is a fork of it. tqdm's lock would be shared by all forks, and
a killed one could hold it for ever: a lock of the process's own takes its place.
"""
import argparse, os, random, shutil, signal, sys, threading, time, traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch, tqdm

import fluxinterp as fi
from fluxinterp.activations.harvesting import harvest
from fluxinterp.atlases.atlas_building import build_atlas
from fluxinterp.training.itda_growth import fit_itda
from fluxinterp.training.loggers import CSVLogger
from fluxinterp.training.sae_training import train

torch.set_num_threads(1)
tqdm.tqdm.set_lock(threading.RLock())
site = 'double.0.image'

def fork(f, *args, **env): # -> process id
    pid = os.fork()
    if pid: return pid
    os.environ.update(env)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler) # a job in the background has it ignored
        f(*args)
        os._exit(0)
    except KeyboardInterrupt: os._exit(130)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)

def end(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def whole(*pids): # runs that must end by themselves
    for pid in pids: assert end(pid)==0, 'a run failed'

def slowly(cls, name, seconds): # so that it can be hit in the middle
    old = getattr(cls, name)
    def slow(self, *args, **kwargs):
        time.sleep(seconds)
        return old(self, *args, **kwargs)
    setattr(cls, name, slow)

# What is run, into a folder `out`; `root` is that of the work

def acts(root):
    how = dict(num_inference_steps=2, dtype='float32', shard_mb=.3, progress=False)
    return harvest(fi.load_pipeline('random-flux'), fi.scene_prompts(40), [site], root/'acts', **how)

def vectors(width=24):
    g = torch.Generator().manual_seed(0)
    return torch.randn(4000, 12, generator=g).relu()**2@torch.randn(12, width, generator=g)+.1*torch.randn(4000, width, generator=g)+5

def configs(kinds):
    c = fi.SAEConfig(num_latents=96, k=4, steps=160, batch_size=256, dead_after=2000, precision='fp32')
    of_kind = dict(topk=dict(ema=.99, k_start=8), batchtopk=dict(dead='resample', resample_every=40), jumprelu={})
    return [replace(c, architecture=k, **of_kind[k]) for k in kinds]

def training(kinds, out, root):
    x = vectors()
    config = configs(kinds) if len(kinds)>1 else configs(kinds)[0]
    train(config, x[:3500], out, validation=x[3500:], eval_every=40, patience=4, checkpoint_every=25,
          loggers=CSVLogger(out/'log.csv'), progress=False)

def growing(kind, out, root):
    data = fi.Store(root/'acts').site(site) if kind=='itda-store' else vectors(48)
    fit_itda(fi.ITDAConfig(k=6, fvu_threshold=.15, batch_size=64), data, out, checkpoint_every=4, progress=False)

def scanning(out, root, slow=True):
    from fluxinterp.atlases import building
    from fluxinterp.atlases.scan_statistics import FeaturePass
    from fluxinterp.safe_files import SeldomSaves
    SeldomSaves.pause = .05
    building.block_prompts = lambda about: 12
    if slow: slowly(FeaturePass, 'update', .03)
    how = dict(examples=3, batch_tokens=1024, progress=False)
    build_atlas(fi.load_dictionary(root/'sae'), fi.Store(root/'acts'), out, **how)

def before_scanning(root):
    sae = train(fi.SAEConfig(num_latents=96, k=4, steps=40, batch_size=256), acts(root).site(site), progress=False)
    sae.b_enc.data[0] = -1e4 # one that never fires
    fi.save_dictionary(sae, root/'sae')

def loading(root): # once, for all forks
    acts.pipe = fi.load_pipeline('random-flux')
    fi.record(acts.pipe, fi.scene_prompts(2), site, num_inference_steps=2)

def harvesting(out, root):
    how = dict(num_inference_steps=2, batch_size=4, shard_mb=1.6, progress=False)
    harvest(acts.pipe, fi.scene_prompts(48), [site, f'{site}.mlp'], out, **how)

def an_atlas(out): # a copy of a packaged one, and some of its features
    atlas = fi.Atlas(out)
    return atlas,atlas.array('totals/fired').topk(40).indices.tolist()

def explaining(out, root):
    atlas,some = an_atlas(out)
    slowly(fi.PromptStatistics, '_say', .02)
    fi.explain(atlas, fi.PromptStatistics(), some, every=4, progress=False)

def scoring(out, root):
    atlas,some = an_atlas(out)
    fi.score(atlas, fi.Localization(), features=some[:12], every=2, progress=False)

def before_explaining(root): shutil.copytree(fi.Atlas('tiny-flux/double.1.image').path, root/'start')

def before_scoring(root):
    before_explaining(root)
    atlas,some = an_atlas(root/'start')
    fi.explain(atlas, fi.PromptStatistics(), some, progress=False)

# What must be the same

def files(out): # by name; a store keeps its lock
    paths = [p for p in sorted(out.rglob('*')) if p.is_file() and p.name!='.lock' and '.saving-' not in p.as_posix()]
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in paths}

def arrays(out): # all but the database, of which the text is compared
    atlas = fi.Atlas(out)
    whole = {k: v for k,v in files(out).items() if not k.endswith('.sqlite')}
    return whole|dict(text=atlas.pictures.to_json(), peaks=atlas.peaks().tobytes())
def said(out): return dict(said=fi.explanations(fi.Atlas(out), 'prompts').to_json())
def scored(out): return dict(scored=fi.scores(fi.Atlas(out), 'prompts', 'localization').to_json())

works = {k: (partial(training, [k]), None, files) for k in ('topk', 'batchtopk', 'jumprelu')}
works |= {'several': (partial(training, ['topk', 'batchtopk', 'jumprelu']), None, files), 'harvest': (harvesting, loading, files),
          'itda': (partial(growing, 'itda'), None, files), 'itda-store': (partial(growing, 'itda-store'), acts, files),
          'atlas': (scanning, before_scanning, arrays), 'explain': (explaining, before_explaining, said), 'score': (scoring, before_scoring, scored)}

def hit(name, root, times, rng): # -> (kills, interrupts, folders that came to their end)
    run,before,read = works[name]
    root.mkdir(parents=True)
    if before: before(root)
    def fresh(out):
        shutil.rmtree(out, ignore_errors=True)
        if (root/'start').exists(): shutil.copytree(root/'start', out)
        else: out.mkdir()
        return out
    fresh(root/'alone')
    began = time.time()
    whole(fork(run, root/'alone', root))
    seconds = time.time()-began
    expected,hits,ended = read(root/'alone'),{signal.SIGKILL: 0, signal.SIGINT: 0},0
    while sum(hits.values())<times:
        out = fresh(root/'torn')
        for s in rng.sample([signal.SIGKILL, signal.SIGINT]*3, 4): # then it is left alone
            pid = fork(run, out, root)
            time.sleep(rng.random()*seconds)
            if os.waitpid(pid, os.WNOHANG)[0]: # it was faster than alone
                seconds *= .8
                break
            os.kill(pid, s)
            code = end(pid)
            assert code in (-9, 0, 130), (name, s, code)
            hits[s] += code!=0 or s==signal.SIGINT
        whole(fork(run, out, root))
        got = read(out)
        assert got.keys()==expected.keys(), (name, sorted(got.keys()^expected.keys()))
        other = [k for k,v in expected.items() if got[k]!=v]
        assert not other, f'{name}: {other} differ after {hits}, in {out}'
        ended += 1
    return *hits.values(),ended

if __name__=='__main__':
    p = argparse.ArgumentParser()
    p.add_argument('folder', type=Path)
    p.add_argument('work', nargs='+', choices=works)
    p.add_argument('--times', type=int, default=6)
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    for name in a.work:
        kills,interrupts,ended = hit(name, a.folder/name, a.times, random.Random(a.seed))
        print(f'{name}: kills {kills}, interrupts {interrupts}, the same {ended} of {ended}', flush=True)
