"Training that is killed and resumed, on two processes, on a full disk, with loggers of others: what a notebook cannot do to itself"
import json, os, shutil, signal, socket, subprocess, sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest, torch

import fluxinterp as fi
from fluxinterp.training.training_run import TrainingRun

here = Path(__file__).parent
WORKER = '''
import json, os, resource, signal, sys, time, torch, tqdm, threading
from pathlib import Path
from fluxinterp.dictionaries.sae import SAEConfig
from fluxinterp.training.sae_training import train
from fluxinterp.training.training_run import joined_processes, TrainingRun
import torch.distributed.checkpoint.hf_storage, torch.distributed.tensor
torch.set_num_threads(1)
common = dict(num_latents=97, k=4, steps=40, batch_size=256, dead_after=600, precision='fp32', warmup=10)
kinds = [dict(ema=.99, k_start=8, grad_clip=.5), dict(architecture='batchtopk', dead='resample', resample_every=10, ema=.9),
         dict(architecture='jumprelu', grad_clip=.5), dict(architecture='batchtopk', frozen='soft decoder', tied=False),
         dict(architecture='jumprelu', dead='resample', resample_every=10, frozen='decoder', center='geometric median'),
         dict(architecture='gated', ema=.9), dict(architecture='relu', dead='resample', resample_every=10)]
configs = [SAEConfig(**common|o) for o in kinds]
nested = [SAEConfig(**common, architecture=a, nested_weights=w) for a,w in (('matryoshka', 'uniform'), ('msae', 'reverse'))] # whose latents are not shared out
step = TrainingRun.update
def work(rank, size, out, shard, end, at): # one of several processes
    def update(self, x):
        last = rank==size-1
        if self.step==at and 'killed' in end and last and self.config in configs: os._exit(9)
        if self.step==at and end=='pressed' and last and self.config==configs[1]: signal.raise_signal(signal.SIGINT)
        step(self, x)
        if self.step==2 and self.config.k_start==0: # a fifth of the latents falls silent, and is to come back
            numbers = torch.arange(97)[self.shard or slice(None)]
            self.sae.b_enc.data[numbers%5==0] -= 4.
    TrainingRun.update = update
    g = torch.Generator().manual_seed(1) # data without ties: no pre-activation is nearer than 4e-6 to where one would be chosen in another's place
    x = torch.randn(4000, 12, generator=g)@torch.randn(12, 24, generator=g)+5
    how = dict(progress=False, shard_latents=shard, checkpoint_every=10)
    def full_disk(): # on one process, while the others have room
        if rank: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        try: train(configs[0], x, out/'full', **how)
        except OSError as e: assert 'step-00000010' in str(e) and 'There is no older one' in str(e) and 'too large' in str(e), str(e)
        else: raise AssertionError('no error')
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert rank or not [p for p in (out/'full').rglob('*') if p.name!='.lock' and not p.is_dir()]
    with joined_processes('cpu'):
        if 'full' in end: full_disk()
        if not shard: train(nested, x, out/'nested', progress=False)
        train(configs, x, out/'saes', **how)
    def name_of(thread):
        try: return (thread/'comm').read_text()
        except OSError: return '' # it ended just now
    for _ in range(100): # one that has ended can be listed a moment longer
        left = [t for t in map(name_of, Path('/proc/self/task').glob('*')) if 'gloo' in t]
        if not left: break
        time.sleep(.05)
    assert not left, left # a thread left over can abort the process as it ends

def fork(rank, size, port, out, *how):
    pid = os.fork()
    if pid: return pid
    try:
        with open(out/f'said-{rank}', 'w') as f: os.dup2(f.fileno(), 1), os.dup2(f.fileno(), 2)
        os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, WORLD_SIZE=str(size), RANK=str(rank))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work(rank, size, out, *how)
        status = 0
    except BaseException:
        import traceback
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for line in sys.stdin: # everything is imported once; every process is a fork
    port,size,out,*how = json.loads(line)
    pids = [fork(r, size, port, Path(out), *how) for r in range(size)]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]), flush=True)
'''

def port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return str(s.getsockname()[1])

@pytest.fixture(scope='module')
def ranks():
    "A function: several processes train in one folder -> (exit status, what was said) of each"
    p = subprocess.Popen([sys.executable, '-c', WORKER], env=os.environ|dict(OMP_NUM_THREADS='1'), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def run(size, out, shard, end='', at=0):
        print(json.dumps([port(), size, str(out), shard, end, at]), file=p.stdin, flush=True)
        return [(s, (out/f'said-{r}').read_text()) for r,s in enumerate(json.loads(p.stdout.readline()))]
    yield run
    p.stdin.close()
    p.wait(60)

def test_kill_and_resume(tmp_path):
    "kill -9 and Ctrl-C at random moments of three kinds on one stream; weights and log are those of a run left alone"
    p = subprocess.run([sys.executable, here/'scripts/kill_runs.py', tmp_path, 'several', '--times', '4'], env=os.environ|dict(OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=240)
    assert p.returncode==0 and 'several: kills ' in p.stdout, p.stdout+p.stderr

@pytest.fixture(scope='module')
def of_one(ranks, tmp_path_factory):
    "Every kind of SAE, as one process trains them: folder -> tensors"
    out = tmp_path_factory.mktemp('one')
    (status,said), = ranks(1, out, False)
    assert status==0, said
    return weights(out)|weights(out, 'nested')

def weights(out, folder='saes'): return {f.name: fi.load_dictionary(f).state_dict() for f in sorted((out/folder).iterdir())}
def stored(out): return sorted(p.relative_to(out/'saes/checkpoints').as_posix() for p in (out/'saes/checkpoints').rglob('*.*') if p.is_file())

def same_weights(one, several):
    assert len(several)>1
    for kind in several:
        for k,t in one[kind].items(): assert float((t-several[kind][k]).norm())<=1e-5*float(t.norm()), (kind, k, float((t-several[kind][k]).norm()/t.norm()))
    return several

def test_latents_shared_out(ranks, tmp_path, of_one):
    "Begun on two processes, one with a full disk, and killed; interrupted on three; ended by one: the single process's weights. No pickle is written"
    first,second = ranks(2, tmp_path, True, 'full, then killed', 15)
    assert second[0]==9 and first[0]==1 and 'peer' in first[1], (first, second)
    assert stored(tmp_path)==[f'step-00000010/{f}' for f in ('shard-00001-model-00001-of-00001.safetensors', 'shard-00002-model-00001-of-00001.safetensors', 'state.json')]
    found = ranks(3, tmp_path, True, 'pressed', 24)
    assert [s for s,_ in found]==[0, 0, 0] and ''.join(s for _,s in found).count('interrupted after 25 of 40')==1, found
    assert len(stored(tmp_path))==8 and stored(tmp_path)[-1].startswith('step-00000025')
    (status,said), = ranks(1, tmp_path, False)
    assert status==0, said
    same_weights(of_one, weights(tmp_path))
    assert not (tmp_path/'saes/checkpoints').exists()

def test_tokens_shared_out(ranks, tmp_path, of_one):
    "Killed on three processes, ended by two that share out the latents instead: the single process's weights"
    *others,last = ranks(3, tmp_path, False, 'killed', 25)
    assert last[0]==9 and [s for s,_ in others]==[1, 1], others
    same_weights(of_one, weights(tmp_path, 'nested')) # trained to the end before
    assert stored(tmp_path)==[f'step-000000{s}0/{f}' for s in (1, 2) for f in ('state.json', 'state.safetensors')]
    found = ranks(2, tmp_path, True)
    assert [s for s,_ in found]==[0, 0], found
    assert len(same_weights(of_one, weights(tmp_path)))==7

@pytest.fixture(scope='module')
def acts(tmp_path_factory):
    "A store of 36 prompts, of every split, at two sites of a random pipeline"
    folder = tmp_path_factory.mktemp('store')/'acts'
    prompts = [f'a {c} {s} {p}' for c in ('red', 'blue', 'green', 'white') for s in ('circle', 'star', 'cross') for p in ('at the top', 'on the left', 'on the right')]
    fi.harvest(fi.load_pipeline('random-flux'), prompts, ['double.0.image', 'single.0.image'], folder, num_inference_steps=1, progress=False)
    return folder

def cli_train(acts, out, *options, before=()):
    p = subprocess.run([sys.executable, '-m', *before, 'fluxinterp.cli', 'train', str(acts), str(out), *'--site single.0.image --num-latents 128 --k 4 --steps 80 --batch-size 512 --dead-after 4000 --device cpu --checkpoint-every 30'.split(), '--csv', f'{out}.csv', *options],
                       env=os.environ|dict(OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=240)
    assert p.returncode==0, p.stdout+p.stderr
    return p.stdout

@pytest.fixture(scope='module')
def alone(acts, tmp_path_factory):
    "What one process makes of it: the folder, and what the command said"
    out = tmp_path_factory.mktemp('alone')/'sae'
    return out,cli_train(acts, out)

@pytest.mark.parametrize('options', ([], ['--shard-latents']))
def test_torchrun(acts, alone, tmp_path, options):
    "`torchrun -m fluxinterp.cli train` on two processes against `fluxinterp train` on one, tokens or latents shared out"
    two,(one,said) = tmp_path/'two',alone
    says = cli_train(acts, two, *options, before=['torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m'])
    assert 'TopKSAE at single.0.image: 128 latents' in says and says.count('TopKSAE')==1 and said.count('FVU')==says.count('FVU')>0, says # one process speaks
    assert sorted(p.name for p in two.iterdir())==sorted(p.name for p in one.iterdir())==['cfg.json', 'fluxinterp.safetensors', 'sae_weights.safetensors']
    a,b = fi.load_dictionary(one),fi.load_dictionary(two)
    assert a.meta==b.meta
    for (n,p),(_,q) in zip(a.state_dict().items(), b.state_dict().items(), strict=True): assert (p-q).norm()<=2e-3*p.norm()+1e-5, (n, float((p-q).norm()/p.norm()))
    rows = [Path(f'{f}.csv').read_text().splitlines() for f in (one, two)]
    assert len(rows[0])==len(rows[1])==2 and rows[0][0]==rows[1][0]

def test_a_finished_folder_on_the_command_line(acts, alone, tmp_path):
    "The same command says that it is finished and touches nothing; another configuration ends with 1 and names what differs; --again replaces"
    from typer.testing import CliRunner
    from fluxinterp.cli import app
    out = shutil.copytree(alone[0], tmp_path/'sae')
    def command(*more):
        r = CliRunner().invoke(app, ['train', str(acts), str(out), *'--site single.0.image --num-latents 128 --k 4 --batch-size 512 --dead-after 4000 --device cpu'.split(), *more])
        return r.exit_code,' '.join(r.output.split())
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    code,said = command('--steps', '80')
    assert code==0 and 'is finished, since' in said and 'FVU 0.' in said and 'TopKSAE' not in said, said
    code,said = command('--steps', '80', '--k', '8', '--lr', '.001')
    assert code==1 and '(--k 4, here 8; --lr 0.002, here 0.001): give another folder, or --again to train anew' in said, said
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}==before
    code,said = command('--steps', '90')
    assert code==0 and 'goes on from its 80 steps' in said and fi.load_dictionary(out).config.steps==90, said
    code,said = command('--steps', '10', '--k', '8', '--again')
    assert code==0 and fi.load_dictionary(out).config.k==8 and 'FVU' in said, said

# Bad input: a clear error, and nothing lost

g = torch.Generator().manual_seed(0)
x = torch.randn(3000, 8, generator=g)@torch.randn(8, 12, generator=g)+3
config = fi.SAEConfig(num_latents=32, k=3, steps=60, batch_size=256, precision='fp32')
def train(c=config, data=x, **options): return fi.train(c, data, progress=False, **options)
def checkpoints(folder): return sorted(p.name for p in (Path(folder)/'checkpoints').iterdir())

signal.signal(signal.SIGINT, signal.default_int_handler) # a job in the background may have it ignored

def stopping(at, error=None): # an error at a step, or Ctrl-C while the step before it is taken
    class Stopping(TrainingRun):
        def update(self, x):
            if error is None and self.step==at-1: signal.raise_signal(signal.SIGINT)
            if error is not None and self.step==at: raise error
            super().update(x)
    return Stopping

def test_odd_but_good_input():
    "Numbers of any kind, more than a batch asks for, no steps, other sizes beside each other"
    usual = train()
    for data in (x.double(), x.clone().requires_grad_(), x.view(30, 100, 12)): assert torch.equal(train(data=data).W_dec, usual.W_dec)
    for data in ((100*x).int(), x.bfloat16(), x.half(), x>3): assert fi.evaluate(train(data=data), data.float()).fvu<.9
    assert torch.isfinite(train(replace(config, batch_size=10_000)).W_dec).all()
    none = train(replace(config, steps=0))
    assert none.normalizer.mean.abs().sum()>0 and torch.allclose(none.W_dec.norm(dim=1), torch.ones(32))
    assert [s.config.k for s in train([replace(config, k=2), replace(config, k=5, num_latents=64, steps=20)])]==[2, 5]
    for data in (x[:1], torch.ones(500, 12), torch.zeros(500, 12), x*1e30): assert torch.isfinite(train(data=data).W_dec).all()

def test_bad_calls(tmp_path):
    (tmp_path/'file').write_text('x')
    for error,why,options in ((ValueError, 'is a file', dict(out=tmp_path/'file')), (ValueError, 'keep=0', dict(keep=0)), (ValueError, 'checkpoint_every=-1', dict(checkpoint_every=-1)),
                              (TypeError, 'is no logger', dict(loggers=[3])), (ValueError, 'split', dict(split='train')), (ValueError, 'no activations', dict(validation=x[:0], eval_every=10)),
                              (ValueError, 'validation= has no use', dict(validation=x)), (TypeError, 'not NoneType', dict(data=None)), (ValueError, r'not \(5, 0\)', dict(data=torch.zeros(5, 0))),
                              (ValueError, 'complex64', dict(data=x.cfloat())), (ValueError, 'whitening 12 coordinates', dict(c=replace(config, normalizer='whiten'), data=x[:50]))):
        with pytest.raises(error, match=why): train(**options)
    assert sorted(p.name for p in tmp_path.iterdir())==['file']

def test_another_run_leaves_the_checkpoints_alone(tmp_path, monkeypatch):
    "Another width, other data, another configuration: refused; then the run goes on to the bit"
    with monkeypatch.context() as m:
        m.setattr('fluxinterp.training.sae_training.TrainingRun', stopping(35))
        train(out=tmp_path, checkpoint_every=10)
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert checkpoints(tmp_path)==['step-00000030', 'step-00000035']
    for why,options in (('width 12, these have width 7', dict(data=x[:,:7])), ('tokens 3000, here 2000', dict(data=x[:2000])), ('k=3, here 4', dict(c=replace(config, k=4))), ('1 dictionaries, not 2', dict(c=[config]*2))):
        with pytest.raises(ValueError, match=why): train(out=tmp_path, **options)
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}==before
    again = train(out=tmp_path)
    assert torch.equal(again.W_dec, train().W_dec) and not (tmp_path/'checkpoints').exists()

@contextmanager
def full_disk(largest): # no file may become larger: what a full disk does to a writer
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def test_full_disk(tmp_path, monkeypatch):
    "A checkpoint or a dictionary that does not fit: an error that says so, no torn files, the older checkpoint whole; with room again, the same result"
    out = tmp_path/'out'
    with full_disk(4000), pytest.raises(OSError, match='could not write .*step-00000020.*There is no older one'): train(out=out, checkpoint_every=20)
    assert not list(out.rglob('*.*')) # nothing torn
    with monkeypatch.context() as m, full_disk(2**30):
        import resource
        class Filling(TrainingRun):
            def update(self, x):
                if self.step==30: resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
                super().update(x)
        m.setattr('fluxinterp.training.sae_training.TrainingRun', Filling)
        with pytest.raises(OSError, match='could not write .*step-00000040.*step-00000020 is whole'): train(out=out, checkpoint_every=20)
    assert checkpoints(out)==['step-00000020'] and sorted(p.name for p in out.iterdir())==['checkpoints']
    with full_disk(2000), pytest.raises(OSError, match='could not write .*step-00000020'): train(out=out, checkpoint_every=500) # the dictionary itself
    assert checkpoints(out)==['step-00000020'] and sorted(p.name for p in out.iterdir())==['checkpoints']
    assert torch.equal(train(out=out).W_dec, train().W_dec)
    assert sorted(p.name for p in out.iterdir())==['cfg.json', 'fluxinterp.safetensors', 'sae_weights.safetensors']

def test_numbers_that_are_no_numbers(acts, tmp_path):
    "In a store: file and row are named. With far too high a learning rate: an error that says so, or a warning"
    bad = tmp_path/'acts'
    shutil.copytree(acts, bad)
    store = fi.Store(acts)
    data = store.site('single.0.image')
    file = next(p for p in sorted((bad/'single.0.image').glob('*.safetensors')))
    from safetensors.torch import load_file, save_file
    t = load_file(file)
    t['x'][5,0,77,3] = float('nan')
    save_file(t, file)
    with pytest.raises(fi.StoreError, match='damaged'): train(data=fi.Store(bad).site('single.0.image')) # no checksum would let it pass
    broken = fi.Store(bad, verify=False).site('single.0.image')
    where = rf'prompt {int(t["rows"][5,0])}, step 0, token 77, in .*single.0.image/{file.name}, row 5'
    with pytest.raises(FloatingPointError, match=where): train(data=broken)
    with pytest.raises(FloatingPointError, match=where): fi.moments(broken)
    with pytest.raises(FloatingPointError, match='lr=1e\\+38.*Take a lower lr'): train(replace(config, lr=1e38, warmup=0))
    with pytest.warns(UserWarning, match='lr'): assert train([replace(config, lr=1e38, warmup=0), config])[0] is None

# Loggers of others

def log_twice(logger_of, tmp_path):
    "A run stopped at step 230 of 300, whose last checkpoint is of step 200, and taken up again"
    from unittest.mock import patch
    long = replace(config, steps=300)
    class Killed(BaseException): pass
    with patch('fluxinterp.training.sae_training.TrainingRun', stopping(280, Killed)), pytest.raises(Killed): train(long, out=tmp_path/'sae', checkpoint_every=100, loggers=[logger_of()])
    train(long, out=tmp_path/'sae', checkpoint_every=100, loggers=[logger_of()], validation=x[:500], eval_every=150)

def test_tensorboard(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    log_twice(lambda: fi.tensorboard_logger(tmp_path/'events'), tmp_path)
    events = EventAccumulator(str(tmp_path/'events')).Reload()
    assert [e.step for e in events.Scalars('error')]==[50, 100, 150, 200, 250, 300] and [e.step for e in events.Scalars('fvu')]==[300]
    alone = {}
    train(replace(config, steps=300), loggers=lambda step,values: alone.update({step: values['error']}))
    for e in events.Scalars('error'): assert abs(e.value-alone[e.step])<1e-6

def test_wandb_offline(tmp_path, monkeypatch):
    "With wandb itself where it is installed: what it wrote is read back from its file"
    wandb = pytest.importorskip('wandb')
    from wandb.proto.wandb_internal_pb2 import Record
    for k in ('WANDB_DIR', 'WANDB_CACHE_DIR', 'WANDB_DATA_DIR'): monkeypatch.setenv(k, str(tmp_path))
    monkeypatch.setenv('WANDB_SILENT', 'true')
    logger = fi.wandb_logger(mode='offline', project='fluxinterp', id='one')
    log_twice(lambda: logger, tmp_path)
    assert wandb.run is None # closed
    def records(data, at=7, part=b''): # LevelDB's log format: blocks of 32 kB, in them checksum, length, kind, bytes
        while at<len(data):
            if 2**15-at%2**15<7: at += 2**15-at%2**15
            n,kind = int.from_bytes(data[at+4:at+6], 'little'),data[at+6]
            part,at = part+data[at+7:at+7+n],at+7+n
            if kind in (1, 4): yield part; part = b''
    steps,names = [],set()
    for file in sorted(tmp_path.rglob('*.wandb')):
        for data in records(file.read_bytes()):
            r = Record(); r.ParseFromString(data)
            if r.WhichOneof('record_type')=='history':
                items = {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
                steps.append(items['_step'])
                names |= set(items)
    assert sorted(steps)==[50, 100, 150, 200, 250, 300] and {'loss', 'error', 'fvu', 'dead'}<=names, (steps, names)
