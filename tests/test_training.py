"Training that is killed and resumed, and training on two processes: what a notebook cannot do to itself"
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest, torch

here = Path(__file__).parent
WORKER = '''
import sys, torch
from fluxinterp.sae import SAEConfig
from fluxinterp.training import train
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
x = torch.randn(4000, 12, generator=g)@torch.randn(12, 24, generator=g)+5
common = dict(num_latents=96, k=4, steps=STEPS, batch_size=256, dead_after=2000, precision='fp32')
configs = [SAEConfig(**common, architecture=a, **o) for a,o in (('topk', dict(ema=.99, k_start=8)), ('batchtopk', dict(dead='resample', resample_every=40)), ('jumprelu', {}))][:KINDS]
'''

def run(code, *args, **env):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], env=os.environ|dict(OMP_NUM_THREADS='1')|env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def weights(folder):
    from safetensors.torch import load_file
    return {f'{p.parent.name}/{k}': v for p in sorted(Path(folder).rglob('*.safetensors')) for k,v in load_file(p).items()}

def same(a, b):
    assert a.keys()==b.keys() and len(a)>0
    for k in a: assert torch.equal(a[k], b[k]), k

def test_kill_and_resume(tmp_path):
    "kill -9 at random moments, five times over; the weights are those of a run left alone"
    code = WORKER.replace('STEPS', '700').replace('KINDS', '3')+"train(configs, x, out=sys.argv[1], checkpoint_every=35, progress=False)\nprint('whole')"
    p = run(code, tmp_path/'alone')
    out,_ = p.communicate(timeout=240)
    assert p.returncode==0 and 'whole' in out, out
    rng,kills = random.Random(0),0
    for attempt in range(40):
        p = run(code, tmp_path/'torn')
        folder = tmp_path/'torn'/'checkpoints'
        if kills<5: # wait for work to be done, then a random moment more
            had = len(list(folder.glob('step-*'))) and max(folder.glob('step-*')).name
            deadline = time.time()+120
            while p.poll() is None and time.time()<deadline and (not folder.exists() or not list(folder.glob('step-*')) or max(folder.glob('step-*')).name==had): time.sleep(.005)
            time.sleep(rng.random()*.3)
            if p.poll() is None:
                p.send_signal(signal.SIGKILL); kills += 1
                p.communicate()
                continue
        out,_ = p.communicate(timeout=240)
        assert p.returncode==0, out
        break
    assert kills>=3, kills
    same(weights(tmp_path/'alone'), weights(tmp_path/'torn'))

@pytest.mark.parametrize('shard', (False, True))
def test_two_processes(tmp_path, shard):
    "Training on two gloo processes, tokens or latents shared out, gives the single process's result within rounding"
    body = WORKER.replace('STEPS', '60').replace('KINDS', '1')
    p = run(body+"train(configs, x, out=sys.argv[1], progress=False)", tmp_path/'one')
    out,_ = p.communicate(timeout=120)
    assert p.returncode==0, out
    code = body+"torch.distributed.init_process_group('gloo')\ntrain(configs, x, out=sys.argv[1], progress=False, shard_latents=bool(int(sys.argv[2])))\ntorch.distributed.destroy_process_group()"
    env = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(29617+shard), WORLD_SIZE='2')
    ps = [run(code, tmp_path/'two', int(shard), RANK=str(r), **env) for r in (0, 1)]
    for p in ps:
        out,_ = p.communicate(timeout=240)
        assert p.returncode==0, out
    from fluxinterp.hub import load_dictionary
    a,b = ({k: v for k,v in load_dictionary(next((tmp_path/n).rglob('cfg.json')).parent).state_dict().items()} for n in ('one', 'two'))
    assert a.keys()==b.keys() and 'W_dec' in a
    for k in a: assert float((a[k]-b[k]).norm())<=2e-3*float(a[k].norm())+1e-5, (k, float((a[k]-b[k]).norm()/a[k].norm()))
