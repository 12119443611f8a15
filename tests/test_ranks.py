"Harvests by several processes: the same store to the bit, whoever dies; other arguments are said by which"
import os, re, socket, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]

# one rank; `dies` is the number of shards after which it ends as if it were killed
child = '''
import os, sys
import fluxinterp as fi
from fluxinterp.activations import group_writer, work_queue
work_queue.lease_seconds = 2.
out,dies,seed = sys.argv[1],int(sys.argv[2]),int(sys.argv[3])
finish,count = group_writer.GroupWriter.finish_shard,[0]
def counted(self, *args):
    count[0] += 1
    if count[0]==dies: os._exit(9)
    finish(self, *args)
group_writer.GroupWriter.finish_shard = counted
pipe = fi.load_pipeline('random-flux')
fi.harvest(pipe, fi.scene_prompts(24), ['double.0.image', 'single.0.image'], out, num_inference_steps=2, tokens=32, seed=seed, batch_size=2, shard_mb=.01)
'''

def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

def ranks(out, dies=(), seeds=None, size=2):
    "(exit status, what was said) of each rank"
    where = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port()), WORLD_SIZE=str(size), OMP_NUM_THREADS='1', PYTHONPATH=str(root), HF_HUB_OFFLINE='1')
    dies = dict(dies)
    some = [subprocess.Popen([sys.executable, '-c', child, str(out), str(dies.get(r, 0)), str((seeds or {}).get(r, 0))], env=os.environ|where|dict(RANK=str(r), LOCAL_RANK=str(r)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in range(size)]
    try: said = [p.communicate(timeout=120)[0] for p in some]
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
