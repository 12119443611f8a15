"Stores under kill -9, damage, full and read-only disks"
import hashlib, json, os, random, resource, shutil, signal, subprocess, sys, tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mutations import json_mutation, mutations

root = Path(__file__).resolve().parents[1]
sites = ['double.0.image', 'single.0.image.mlp']
args = dict(num_inference_steps=2, batch_size=2, shard_mb=.5, progress=False)

@pytest.fixture(scope='module')
def world(): # a pipeline and prompts
    import fluxinterp as fi
    return fi, fi.load_pipeline('random-flux'), fi.scene_prompts(12)

def files(path): return {p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(path).rglob('*')) if p.is_file()}

def test_kill_9_and_rerun_give_the_files_of_one_run(tmp_path):
    env = os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=str(root))
    done = subprocess.run([sys.executable, root/'tests/scripts/kill_harvests.py', tmp_path],
                          cwd=root, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode==0, done.stderr[-3000:]
    print(done.stdout)

def kill_within(paths): # a process that is killed while it writes these files
    from fluxinterp.safe_files import atomic_path
    pid = os.fork()
    if pid: return os.waitpid(pid, 0)
    with ExitStack() as half:
        for p in paths: half.enter_context(atomic_path(p))
        os._exit(9)

def test_killed_within_a_file_and_rerun(world, tmp_path):
    "Within the first file of all too, when there is no manifest yet"
    fi,pipe,prompts = world
    fi.harvest(pipe, prompts[:4], sites, tmp_path/'whole', **args)
    whole = files(tmp_path/'whole')
    some = {'first': [n for n in whole if n.endswith('jsonl')], 'all': [n for n in whole if n!='.lock']}
    for path,names in some.items():
        kill_within([tmp_path/path/n for n in names])
        assert len(files(tmp_path/path))==len(names)>0
        fi.harvest(pipe, prompts[:4], sites, tmp_path/path, **args)
        assert files(tmp_path/path)==whole

@contextmanager
def at_most(seconds):
    def stop(*_): raise AssertionError('it hangs')
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try: yield
    finally: signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, old)

def test_mutated_stores(world, tmp_path):
    "Damage to a file of a store: a clear error, or exactly the right numbers"
    import torch
    from fluxinterp.activations.store_files import seal_manifest
    from fluxinterp.activations.store_folders import StoreError
    fi,pipe,prompts = world
    fi.harvest(pipe, prompts[:6], sites[:1], tmp_path/'acts', tokens=3, **args|dict(shard_mb=.001))
    def read(path, split=None):
        data = fi.Store(path).site(sites[0])
        return [(b.x, *b.coords.values()) for b in data.batches(100, split=split, seed=0, memory_mb=1)], data.statistics().mean
    want,mean = read(tmp_path/'acts')
    same = lambda got: len(got)==len(want) and all(torch.equal(a, b) for g,w in zip(got, want) for a,b in zip(g, w))
    vectors = lambda got: torch.cat([g[0] for g in got]).float().sort(0).values
    count = dict(error=0, right=0)
    def case(file, what, data, sealed):
        if Path(file).read_bytes()==data: return
        good = file.read_bytes()
        file.write_bytes(data)
        try:
            with at_most(10): got,m = read(tmp_path/'acts')
        except (StoreError, KeyError) as e: # a site of another name is not there
            assert tmp_path.name in str(e) or (sealed and 'not in this store; there are' in str(e)), what
            count['error'] += 1
        else: # whoever seals other coordinates gets them, but no other numbers
            assert torch.equal(vectors(got), vectors(want)) if sealed else same(got) and torch.equal(m, mean), (file.name, what)
            count['right'] += 1
        finally: file.write_bytes(good)
    manifest = tmp_path/'acts/manifest.json'
    for what,data in mutations(manifest.read_bytes(), 800, 0): case(manifest, what, data, False)
    rng,obj = random.Random(1),json.loads(manifest.read_text())
    for _ in range(400): # sealed again, as somebody who edits it on purpose would
        what,new = json_mutation({k: v for k,v in obj.items() if k!='sha256'}, rng)
        try: data = json.dumps(seal_manifest(new)).encode()
        except (ValueError, TypeError): continue
        case(manifest, what, data, True)
    shards = sorted((tmp_path/'acts'/sites[0]).iterdir())
    assert len(shards)==3
    for i,f in enumerate((*shards, tmp_path/'acts/prompts-00000.jsonl', tmp_path/'acts/statistics.safetensors')):
        for what,data in mutations(f.read_bytes(), 160, 2+i): case(f, what, data, False)
    assert sum(count.values())>1900 and count['error']>1500, count
    assert same(read(tmp_path/'acts')[0])
    print(count)

def test_mutated_shards_whose_checksums_fit(world, tmp_path):
    "Headers that lie, with checksums made to fit: an error or numbers, never a crash"
    import torch
    from fluxinterp.activations.store_files import load_manifest, save_manifest
    from fluxinterp.activations.store_folders import StoreError
    fi,pipe,prompts = world
    fi.harvest(pipe, prompts[:2], sites[:1], tmp_path/'acts', tokens=2, dtype='int8', **args)
    file,manifest = tmp_path/'acts'/sites[0]/'00000.safetensors',load_manifest(tmp_path/'acts')
    good,errors = file.read_bytes(),0
    n = int.from_bytes(good[:8], 'little')
    rng,cases = random.Random(0),[]
    for _ in range(150): # JSON of the header changed, its length kept right
        what,new = json_mutation(json.loads(good[8:8+n]), rng)
        try: head = json.dumps(new).encode()
        except UnicodeEncodeError: continue
        cases.append((what, len(head).to_bytes(8, 'little')+head+good[8+n:]))
    cases += list(mutations(good[:8+n], 150, 1))
    for what,data in cases:
        file.write_bytes(data if data[8:]!=good[8:] and len(data)>n+8 else data+good[8+n:])
        manifest['shards'][0]['files'][0] = dict(bytes=file.stat().st_size, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        save_manifest(manifest, tmp_path/'acts')
        try:
            with at_most(10):
                for x,_ in fi.Store(tmp_path/'acts').site(sites[0]).batches(100, seed=0): assert x.shape[1]==32 and x.dtype==torch.float32
        except StoreError: errors += 1
    assert errors>100

@contextmanager
def small_disk(path, megabytes, read_only=False):
    "A file system of its own; False where this user may not mount one"
    path.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', path], capture_output=True)
    try: yield done.returncode==0
    finally:
        if done.returncode==0: subprocess.run(['umount', '-l', path], check=True)

def test_full_disk(world, tmp_path):
    fi,pipe,prompts = world
    fi.harvest(pipe, prompts, sites, tmp_path/'whole', **args)
    whole = files(tmp_path/'whole')
    need = sum(p.stat().st_size for p in (tmp_path/'whole').rglob('*'))/2**20
    with small_disk(tmp_path/'disk', int(need+3)) as mounted:
        calls = 0
        def fill(*_): # somebody else fills the disk meanwhile
            nonlocal calls
            calls += 1
            if calls!=5: return
            if mounted:
                try:
                    with open(tmp_path/'disk/other', 'wb', buffering=0) as f:
                        while f.write(b'x'*4096): pass
                except OSError: pass
            else: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY)) # no right to mount: no file may grow beyond 10 kB
        handle = pipe.transformer.register_forward_pre_hook(fill)
        try:
            with pytest.raises(fi.StoreError, match='could not write .*safetensors.*Everything written before is good') as e: fi.harvest(pipe, prompts, sites, tmp_path/'disk/acts', **args)
        finally:
            handle.remove()
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if mounted: assert 'the disk is full' in str(e.value)
        report = fi.check_store(tmp_path/'disk/acts')
        assert not report.ok and set(report.bad.state)<={'not written yet', 'missing'}
        (tmp_path/'disk/other').unlink(missing_ok=True)
        fi.harvest(pipe, prompts, sites, tmp_path/'disk/acts', **args)
        assert files(tmp_path/'disk/acts')==whole
        if mounted: # more than there is room for is refused at the start
            with pytest.raises(fi.StoreError, match='free there; nothing was written'): fi.harvest(pipe, prompts*9, sites, tmp_path/'disk/large', **args)
            assert [p.name for p in (tmp_path/'disk/large').iterdir()]==['.lock']

def test_file_size_limit(world, tmp_path):
    fi,pipe,prompts = world
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    try:
        with pytest.raises(fi.StoreError, match='File too large.*Everything written before is good'): fi.harvest(pipe, prompts, sites, tmp_path/'acts', **args)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    fi.harvest(pipe, prompts, sites, tmp_path/'acts', **args)
    assert fi.check_store(tmp_path/'acts').ok

def test_read_only_folder(world):
    "As an ordinary user, for whom permission bits hold"
    fi,pipe,prompts = world
    folder = Path(tempfile.mkdtemp())
    try:
        fi.harvest(pipe, prompts[:2], sites, folder/'acts', **args)
        before = files(folder)
        for p in (folder, *folder.rglob('*')): p.chmod(0o555 if p.is_dir() else 0o444)
        user = os.geteuid()
        if user==0: os.seteuid(65534)
        try:
            for out in (folder/'new', folder/'acts'):
                with pytest.raises(fi.StoreError, match='Permission denied.*choose another folder'): fi.harvest(pipe, prompts, sites, out, **args)
            assert len(fi.Store(folder/'acts').site(sites[0]))==2*2*256 # reading needs no writing
        finally: os.seteuid(user)
        assert files(folder)==before
    finally:
        for p in (folder, *folder.rglob('*')):
            if p.is_dir(): p.chmod(0o755)
        shutil.rmtree(folder)

def test_reading_stays_within_its_memory(tmp_path):
    "Ten times the vectors, not more memory"
    code = """
import re, sys, fluxinterp as fi
data = fi.Store(sys.argv[1]).site('single.0.image.mlp')
def status(name): return int(re.search(name+r':\\s+(\\d+) kB', open('/proc/self/status').read())[1])/1024
def use(mb, **kw):
    for b in data.batches(512, seed=0, memory_mb=mb, **kw): pass
use(2, prompts=[0, 29]) # everything is imported and has run
with open('/proc/self/clear_refs', 'w') as f: f.write('5') # the peak starts anew
before = status('VmRSS')
use(6)
print(status('VmHWM')-before)
"""
    import fluxinterp as fi
    pipe = fi.load_pipeline('random-flux')
    grown = []
    for n in (30, 300):
        fi.harvest(pipe, fi.scene_prompts(n), ['single.0.image.mlp'], tmp_path/str(n), num_inference_steps=2, dtype='float32', progress=False, batch_size=20)
        done = subprocess.run([sys.executable, '-c', code, tmp_path/str(n)], cwd=root, capture_output=True, text=True, check=True, env=os.environ|dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1', MALLOC_MMAP_THRESHOLD_='65536')) # what the reader holds, not what the allocator keeps of freed batches
        grown.append(float(done.stdout.split()[-1]))
        size = sum(p.stat().st_size for p in (tmp_path/str(n)).rglob('*'))/2**20
        assert size>.25*n
    print('memory grew by', grown, 'MiB')
    assert max(grown)<9 and grown[1]<grown[0]+2, grown # a budget of 6 MiB; batches come on top
