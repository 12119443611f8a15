"Work by several processes: the same to the bit, whoever dies; other arguments are said by which"
import os, re, socket, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]

# one rank; `dies` is the number of shards or blocks after which it ends as if it were killed
child = '''
import os, sys
import fluxinterp as fi
from fluxinterp.activations import group_writer, work_queue
from fluxinterp.atlases import building
work_queue.lease_seconds = 2.
building.block_prompts = lambda about: 10
work,out,dies,seed = sys.argv[1],sys.argv[2],int(sys.argv[3]),int(sys.argv[4])
count = [0]
def counted(f):
    def g(self, *args):
        count[0] += 1
        if count[0]==dies: os._exit(9)
        return f(self, *args)
    return g
if work=='harvest':
    group_writer.GroupWriter.finish_shard = counted(group_writer.GroupWriter.finish_shard)
    how = dict(num_inference_steps=2, tokens=32, batch_size=2, shard_mb=.01)
    fi.harvest(fi.load_pipeline('random-flux'), fi.scene_prompts(24), ['double.0.image', 'single.0.image'], out, seed=seed, **how)
elif work=='live':
    from fluxinterp.training import live_exchange, token_streams, training_run
    live_exchange.lease_seconds = 2.
    token_streams.LiveStream.record = counted(token_streams.LiveStream.record)
    training_run.TrainingRun.update = counted(training_run.TrainingRun.update)
    make = lambda: token_streams.LiveData(fi.load_pipeline('random-flux'), fi.scene_prompts(48), 'double.0.image', round_prompts=4, steps=0, num_inference_steps=1)
    config = fi.SAEConfig(num_latents=64, k=4, steps=60, batch_size=256, precision='fp32')
    with live_exchange.live_ranks(out+'/rounds', int(os.environ.get('TRAINERS', 1)), 2, 'cpu') as ranks:
        data = ranks.data(make)
        if data is not None: fi.train(config, data, out=out+'/sae', device='cpu', normalizer_tokens=2000, checkpoint_every=20, progress=False)
elif work=='studies':
    import time, torch
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
else:
    building.BlockScan.write = counted(building.BlockScan.write)
    store = fi.Store(os.environ['STORE'])
    d = fi.random_directions(store.site(store.sites[0]), 96, 4)
    fi.build_atlas(d, store, out, examples=3+seed, batch_tokens=2048)
'''

def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def ranks(out, dies=(), seeds=None, size=2, work='harvest', **env):
    "(exit status, what was said) of each rank"
    where = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port()), WORLD_SIZE=str(size), OMP_NUM_THREADS='1', PYTHONPATH=str(root), HF_HUB_OFFLINE='1', **env)
    dies = dict(dies)
    some = [subprocess.Popen([sys.executable, '-c', child, work, str(out), str(dies.get(r, 0)), str((seeds or {}).get(r, 0))], env=os.environ|where|dict(RANK=str(r), LOCAL_RANK=str(r)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in range(size)]
    try: said = [p.communicate(timeout=300)[0] for p in some]
    finally: [p.kill() for p in some]
    return [(p.returncode, s) for p,s in zip(some, said)]

def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and p.name!='.lock'}

@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    "The store of one process"
    out = tmp_path_factory.mktemp('alone')/'acts'
    (status,said), = ranks(out, size=1)
    assert status==0, said[-2000:]
    return contents(out)

def test_three_ranks_make_the_store_of_one(tmp_path, alone):
    done = ranks(tmp_path/'acts', size=3)
    assert [s for s,_ in done]==[0, 0, 0], done
    assert contents(tmp_path/'acts')==alone
    assert sum('prompts x' in said for _,said in done)==1 # one line, one bar

def test_what_a_dead_rank_held_is_taken_back(tmp_path, alone):
    (first,said),(second,_) = ranks(tmp_path/'acts', {1: 2})
    assert (first, second)==(0, 9), said[-2000:]
    assert contents(tmp_path/'acts')==alone

def test_without_rank_0_the_others_end_and_the_same_command_goes_on(tmp_path, alone):
    (first,_),(second,said) = ranks(tmp_path/'acts', {0: 2})
    assert first==9 and second==1 and re.search('rank 0 ended|has ended: give the same command again', said), said[-2000:]
    done = ranks(tmp_path/'acts', size=3)
    assert [s for s,_ in done]==[0, 0, 0], done
    assert contents(tmp_path/'acts')==alone

def test_other_arguments_are_said_by_which(tmp_path):
    (first,_),(second,said) = ranks(tmp_path/'acts', seeds={1: 5})
    assert first==0 and second==1, said[-2000:]
    assert "in rank 0 and" in said and 'in rank 1' in said and 'seed' in said, said[-2000:]

def tensors(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.suffix in ('.json', '.safetensors')}

@pytest.fixture(scope='module')
def scanned(tmp_path_factory):
    "A store, and the atlas of one process"
    import fluxinterp as fi
    folder = tmp_path_factory.mktemp('scanned')
    fi.harvest(fi.load_pipeline('random-flux'), fi.scene_prompts(64), 'double.0.image', folder/'acts', num_inference_steps=2, progress=False)
    env = dict(work='atlas', STORE=str(folder/'acts'))
    (status,said), = ranks(folder/'atlas', size=1, **env)
    assert status==0, said[-2000:]
    return env,tensors(folder/'atlas')

def test_blocks_of_dead_ranks(tmp_path, scanned):
    "Rank 1 dies and rank 0 goes on; rank 0 dies, and the same command ends it on another number of ranks"
    env,alone = scanned
    (first,said),(second,_) = ranks(tmp_path/'atlas', {1: 2}, **env)
    assert (first, second)==(0, 9), said[-2000:]
    assert tensors(tmp_path/'atlas')==alone
    (first,_),(second,said) = ranks(tmp_path/'again', {0: 2}, **env)
    assert first==9 and second==1 and re.search('rank 0 ended|has ended: give the same command again', said), said[-2000:]
    done = ranks(tmp_path/'again', size=3, **env)
    assert [s for s,_ in done]==[0, 0, 0], done
    assert tensors(tmp_path/'again')==alone and sum(str(p).startswith('blocks') for p in alone)==7

def test_other_arguments_of_an_atlas(tmp_path, scanned):
    (first,_),(second,said) = ranks(tmp_path/'atlas', seeds={1: 2}, **scanned[0])
    assert first==0 and second==1 and 'examples is 3 in rank 0 and 5 in rank 1' in said, said[-2000:]

def test_explanations_scores_and_sweeps(tmp_path):
    "One rank, and four of which one dies within each"
    import fluxinterp as fi
    from fluxinterp.training.sweeps import read_sweep
    found = {}
    for size,works in ((1, ''), (4, 'explain,score,sweep')):
        out = tmp_path/f'{size}'
        fi.Atlas('tiny-flux/double.1.image').copy(out/'atlas')
        done = ranks(out, size=size, work='studies', DIES_IN=works)
        assert [s for s,_ in done]==[0, 9, 9, 9][:size], done
        atlas,sweep = fi.Atlas(out/'atlas'),out/'sweep'
        found[size] = dict(explanations=fi.explanations(atlas, 'prompts').to_json(), table=read_sweep(sweep).to_json(),
                           scores=fi.scores(atlas, 'prompts', 'localization/reader').to_json(),
                           weights={p.relative_to(sweep): p.read_bytes() for p in sweep.rglob('*.safetensors')})
    assert len(found[1]['weights'])==8
    for what,values in found[4].items(): assert values==found[1][what], what

def test_training_beside_the_pipeline(tmp_path):
    "One process; two that train and two that generate, one of which dies; a trainer that dies, gone on with by fewer"
    from safetensors.torch import load_file
    weights = lambda name: load_file(tmp_path/name/'sae/sae_weights.safetensors')
    (status,said), = ranks(tmp_path/'alone', size=1, work='live')
    assert status==0, said[-2000:]
    alone = weights('alone')
    done = ranks(tmp_path/'two train', {3: 4}, size=4, work='live', TRAINERS='2')
    assert [s for s,_ in done]==[0, 0, 0, 9], done
    for k,v in weights('two train').items(): assert (v-alone[k]).norm()<=1e-5*alone[k].norm()
    (first,_),(second,said) = ranks(tmp_path/'one trains', {0: 35}, work='live')
    assert first==9 and second==1 and 'trains' in said, said[-2000:]
    done = ranks(tmp_path/'one trains', size=3, work='live')
    assert [s for s,_ in done]==[0, 0, 0], done
    for k,v in weights('one trains').items(): assert v.equal(alone[k]), k
