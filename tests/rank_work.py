"Processes that work together, forked from one that has imported everything: a tenth of a second each instead of ten"
import multiprocessing, os, socket, sys, time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

root = Path(__file__).resolve().parents[1]
context = multiprocessing.get_context('forkserver')
context.set_forkserver_preload(['rank_work'])

if os.environ.get('PRELOAD_RANKS'): # in the process that they are forked from
    import torch
    from diffusers import FluxPipeline
    import fluxinterp as fi
    from fluxinterp.activations import group_writer, work_queue
    from fluxinterp.atlases import building
    from fluxinterp.training import live_exchange, token_streams, training_run
    from fluxinterp.worlds import flux

def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def start(out, size, work, dies={}, seeds={}, **env):
    "Ranks that do some work; `dies` has the number of shards, blocks, rounds or updates after which one ends as if it were killed"
    inside = dict(OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', PRELOAD_RANKS='1', PYTHONPATH=os.pathsep.join((str(root), str(root/'tests'))))
    with mock.patch.dict(os.environ, inside): forkserver.ensure_running()
    shared = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port()), WORLD_SIZE=str(size), **env)
    if dies and work!='live': shared['ONE_DIES'] = '1'
    out = Path(out)
    res = []
    for r in range(size):
        log = out.parent/f'{out.name}-{shared["MASTER_PORT"]}-{r}.log'
        res.append(context.Process(target=rank, args=(work, str(out), dies.get(r, 0), seeds.get(r, 0), shared|dict(RANK=str(r), LOCAL_RANK=str(r)), str(log))))
        res[-1].log = log
        res[-1].start()
    return res

def said(process): # what it has printed
    return process.log.read_text() if process.log.exists() else '' # one may be killed before it has begun

def rank(work, out, dies, seed, env, log):
    os.environ |= env
    with open(log, 'w') as f:
        for stream in (1, 2): os.dup2(f.fileno(), stream)
    sys.stdout,sys.stderr = (os.fdopen(stream, 'w', buffering=1) for stream in (1, 2))
    work_queue.lease_seconds = live_exchange.lease_seconds = 4.
    dict(harvest=harvest, atlas=atlas, live=live, studies=studies)[work](out, dies, seed)

def counted(f, dies): # the same function; its process ends in its n-th call
    count = [0]
    def g(self, *args):
        count[0] += 1
        store = work_queue.work_group().store if 'ONE_DIES' in os.environ else None
        if count[0]==dies:
            if store: store.set('gone', '')
            os._exit(9)
        while store and count[0]==2 and not store.check(['gone']): time.sleep(.05) # something is left for whoever is to die
        return f(self, *args)
    return g

def harvest(out, dies, seed):
    group_writer.GroupWriter.finish_shard = counted(group_writer.GroupWriter.finish_shard, dies)
    how = dict(num_inference_steps=2, tokens=32, batch_size=2, shard_mb=.01)
    fi.harvest(fi.load_pipeline('random-flux'), fi.scene_prompts(24), ['double.0.image', 'single.0.image'], out, seed=seed, **how)

def atlas(out, dies, seed):
    building.block_prompts = lambda about: 10
    building.BlockScan.write = counted(building.BlockScan.write, dies)
    store = fi.Store(os.environ['STORE'])
    d = fi.random_directions(store.site(store.sites[0]), 96, 4)
    fi.build_atlas(d, store, out, examples=3+seed, batch_tokens=2048)

def live(out, dies, seed): # some train, the others generate for them
    token_streams.LiveStream.record = counted(token_streams.LiveStream.record, dies)
    training_run.TrainingRun.update = counted(training_run.TrainingRun.update, dies)
    def data():
        pipe = fi.load_pipeline('random-flux')
        return token_streams.LiveData(pipe, fi.scene_prompts(48), 'double.0.image', round_prompts=4, steps=0, num_inference_steps=1)
    config = fi.SAEConfig(num_latents=64, k=4, steps=60, batch_size=256, precision='fp32')
    with live_exchange.live_ranks(out+'/rounds', int(os.environ.get('TRAINERS', 1)), 2, 'cpu') as ranks:
        mine = ranks.data(data)
        if mine is None: return
        fi.train(config, mine, out=out+'/sae', device='cpu', normalizer_tokens=2000, checkpoint_every=20, progress=False)

def studies(out, dies, seed): # explanations, scores and a sweep; in each of them another rank dies
    tell,doing = work_queue.WorkQueue.done,['']
    dies_in = dict(enumerate(os.environ['DIES_IN'].split(','), 1)) # rank -> work
    def done(self, *args): # the others leave something to whoever is to die
        if dies_in.get(self.rank)==doing[0]:
            self.store.set('gone', '')
            os._exit(9)
        while doing[0] in dies_in.values() and not self.store.check(['gone']): time.sleep(.05)
        return tell(self, *args)
    work_queue.WorkQueue.done = done
    atlas = fi.Atlas(out+'/atlas')
    some = atlas.array('totals/fired').topk(24).indices.tolist()
    doing[0] = 'explain'
    fi.explain(atlas, fi.PromptStatistics(), some, again=True, every=4)
    doing[0] = 'score'
    fi.score(atlas, fi.Localization(), features=some[:8], again=True, every=2)
    doing[0] = 'sweep'
    x = torch.randn(1000, 12, generator=torch.Generator().manual_seed(0))
    fi.sweep(x, out+'/sweep', fi.SAEConfig(steps=20, batch_size=64), held_out=x[:200], num_latents=[16, 24], k=[2, 4], together=1, device='cpu')
