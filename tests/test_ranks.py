"Work by several processes: the same to the bit, whoever dies; other arguments are said by which"
import re, time

import pytest

from rank_work import said, start

def ranks(out, dies=None, seeds=None, size=2, work='harvest', patience=300, **env):
    "(exit status, what was said) of each rank"
    some,end = start(out, size, work, dies or {}, seeds or {}, **env),time.monotonic()+patience
    try:
        for p in some: p.join(max(0, end-time.monotonic()))
        return [(p.exitcode, said(p)) for p in some]
    finally:
        for p in some: p.kill()

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

def studied(out):
    "What is known after the studies of a packaged atlas"
    import fluxinterp as fi
    from fluxinterp.training.sweeps import read_sweep
    atlas,sweep = fi.Atlas(out/'atlas'),out/'sweep'
    return dict(explanations=fi.explanations(atlas, 'prompts').to_json(), table=read_sweep(sweep).to_json(),
                scores=fi.scores(atlas, 'prompts', 'localization/reader').to_json(),
                weights={p.relative_to(sweep): p.read_bytes() for p in sweep.rglob('*.safetensors')})

def test_explanations_scores_and_sweeps(tmp_path):
    "One rank, and four of which one dies within each"
    import fluxinterp as fi
    found = {}
    for size,works in ((1, ''), (4, 'explain,score,sweep')):
        out = tmp_path/f'{size}'
        fi.Atlas('tiny-flux/double.1.image').copy(out/'atlas')
        done = ranks(out, size=size, work='studies', DIES_IN=works)
        assert [s for s,_ in done]==[0, 9, 9, 9][:size], done
        found[size] = studied(out)
    assert len(found[1]['weights'])==8
    for what,values in found[4].items(): assert values==found[1][what], what

def test_training_beside_the_pipeline(tmp_path):
    "One process; two that train and two that generate, one of which dies; a trainer that dies, gone on with by fewer"
    from safetensors.torch import load_file
    weights = lambda name: load_file(tmp_path/name/'sae/sae_weights.safetensors')
    (status,said), = ranks(tmp_path/'alone', size=1, work='live')
    assert status==0, said[-2000:]
    alone = weights('alone')
    done = ranks(tmp_path/'two train', {3: 2}, size=4, work='live', TRAINERS='2')
    assert [s for s,_ in done]==[0, 0, 0, 9], done
    for k,v in weights('two train').items(): assert (v-alone[k]).norm()<=1e-5*alone[k].norm()
    (first,_),(second,said) = ranks(tmp_path/'one trains', {0: 35}, work='live')
    assert first==9 and second==1 and 'trains' in said, said[-2000:]
    done = ranks(tmp_path/'one trains', size=3, work='live')
    assert [s for s,_ in done]==[0, 0, 0], done
    for k,v in weights('one trains').items(): assert v.equal(alone[k]), k
