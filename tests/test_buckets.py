"Stores in a bucket and on a web server, both on 127.0.0.1: the same bytes, no more than needed, failing, denying, slow"
import hashlib, sys

import pytest

import servers

sites = ['double.0.image', 'single.0.image.mlp']
args = dict(num_inference_steps=2, batch_size=2, shard_mb=.5, progress=False)

@pytest.fixture(scope='module')
def bucket(): # the server, and a function that makes an empty bucket
    import boto3
    from s3fs import S3FileSystem
    with pytest.MonkeyPatch.context() as m, servers.served(servers.bucket_app()) as (url,server):
        for k,v in dict(ACCESS_KEY_ID='test', SECRET_ACCESS_KEY='test', DEFAULT_REGION='us-east-1', ENDPOINT_URL=url).items(): m.setenv(f'AWS_{k}', v)
        m.setattr('fluxinterp.activations.store_folders._pause', .001)
        S3FileSystem.clear_instance_cache()
        def new(name):
            server.calm()
            boto3.client('s3').create_bucket(Bucket=name)
            server.calm()
            return f's3://{name}/acts'
        server.new = new
        yield server
        S3FileSystem.clear_instance_cache()

@pytest.fixture(scope='module')
def world(tmp_path_factory): # a pipeline, prompts, and a store of them on disk
    import fluxinterp as fi
    pipe,prompts = fi.load_pipeline('random-flux'),fi.scene_prompts(12)
    path = tmp_path_factory.mktemp('local')/'acts'
    fi.harvest(pipe, prompts, sites, path, **args)
    return fi, pipe, prompts, path

def files(path): # of a folder or a bucket
    from fluxinterp.activations.store_folders import StoreFolder
    folder = StoreFolder(path)
    return {n: hashlib.sha256(folder.read(n)).hexdigest() for n in folder.sizes()}

def same(a, b, **kw): # what two stores give
    import torch
    pairs = zip(a.batches(300, seed=0, memory_mb=1, **kw), b.batches(300, seed=0, memory_mb=1, **kw), strict=True)
    return all(torch.equal(p.x, q.x) and torch.equal(p.coords['token'], q.coords['token']) for p,q in pairs)

def test_harvest_read_and_train(bucket, world, tmp_path):
    "In a bucket, on a web server and on a disk: the same files, the same batches, the same dictionary"
    fi,pipe,prompts,path = world
    url = bucket.new('road')
    fi.harvest(pipe, prompts, sites, url, **args)
    assert files(url)==files(path)
    here,there = fi.Store(path),fi.Store(url)
    assert there.prompts==prompts and fi.check_store(url).ok
    config = fi.SAEConfig(num_latents=64, k=4, steps=12, batch_size=256)
    weights = [fi.train(config, s.site(sites[0]), tmp_path/n) for s,n in ((here, 'here'), (there, 'there'))]
    assert (weights[0].write_directions==weights[1].write_directions).all()
    with servers.served(servers.files_of(path.parent)) as (web,server):
        read = fi.Store(f'{web}/acts')
        assert all(same(here.site(s), there.site(s)) and same(here.site(s), read.site(s)) for s in sites)
        with pytest.raises(fi.StoreError, match='can only be read'): fi.harvest(pipe, prompts, sites, f'{web}/new', **args)
        server.failing = .05
        assert same(here.site(sites[0]), fi.Store(f'{web}/acts').site(sites[0]))
        server.failing,server.denied = 0,('GET',)
        with pytest.raises(fi.StoreError, match=r'cannot read http.*The server gives no right to read'): fi.Store(f'{web}/acts')
        with pytest.raises(fi.StoreError, match='is no store: it has no manifest.json'): server.calm() or fi.Store(f'{web}/nothing')

def test_only_what_is_needed_is_fetched(bucket, world):
    "By ranges of bytes: rows and heads of files, and each byte of an epoch once"
    fi,pipe,prompts,path = world
    url = bucket.new('ranges')
    fi.harvest(pipe, prompts, sites, url, **args)
    data = fi.Store(url).site(sites[0])
    bucket.calm()
    for _ in data.batches(300, prompts=[1, 7], memory_mb=1): pass
    assert bucket.sent<2*(data.per_prompt*data.width*2+1000)<data.nbytes
    assert all(r is not None for _,_,r in bucket.calls)
    bucket.calm()
    for _ in data.batches(300, seed=0, memory_mb=64): pass
    assert bucket.sent==data.nbytes # here all pieces are in one buffer
    bucket.calm()
    for _ in fi.Store(url, verify=True).site(sites[0]).batches(300, prompts=[1], memory_mb=1): pass
    assert bucket.sent>data.nbytes/6 # the whole file, for its checksum

def test_failing_and_interrupted(bucket, world):
    "One call in twenty fails, the harvest is interrupted and goes on: the same files"
    fi,pipe,prompts,path = world
    url,drawn = bucket.new('failing'),0
    bucket.failing = .05
    def interrupt(*_):
        nonlocal drawn
        drawn += 1
        if drawn==7: raise KeyboardInterrupt
    handle = pipe.transformer.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt): fi.harvest(pipe, prompts, sites, url, **args)
        with pytest.raises(fi.StoreError, match='not written yet'): fi.Store(url)
        first = drawn
        fi.harvest(pipe, prompts, sites, url, **args)
    finally: handle.remove()
    assert drawn-first<2*6 # what was there is not drawn again
    assert len(bucket.calls)>20 and files(url)==files(path)
    assert same(fi.Store(url).site(sites[1]), fi.Store(path).site(sites[1]))
    bucket.failing = 1.
    with pytest.raises(fi.StoreError, match=r'cannot read s3://failing/acts/manifest.json: .*\(the last of 5 tries\)'): fi.Store(url)

def test_denied(bucket, world):
    "The bucket and the missing right are named before anything is drawn, and nothing is lost"
    fi,pipe,prompts,path = world
    url = bucket.new('denying')
    fi.harvest(pipe, prompts[:4], sites, url, **args)
    before,drawn = files(url),[]
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: drawn.append(1))
    try:
        for denied,right in ((('PUT',), 's3:PutObject'), (('GET', 'HEAD'), 's3:ListBucket')):
            for out in (url, url+'-new'):
                bucket.denied = denied
                with pytest.raises(fi.StoreError, match=f"'denying' gives these credentials no {right}"): fi.harvest(pipe, prompts, sites, out, **args)
        with pytest.raises(fi.StoreError, match="'denying' gives these credentials no s3:GetObject"): fi.Store(url)
        bucket.calm()
        nosuch = 's3://nosuch-bucket/acts'
        for call in (lambda: fi.harvest(pipe, prompts, sites, nosuch, **args), lambda: fi.Store(nosuch)):
            with pytest.raises(fi.StoreError, match="there is no bucket 'nosuch-bucket'"): call()
        other = fi.load_pipeline('stickers-flux')
        with pytest.raises(fi.StoreError, match='another model'): fi.harvest(other, prompts, ['double.0.image'], url, append=True, **args)
    finally: handle.remove()
    assert not drawn and files(url)==before
    def deny(*_): # the right is taken away in the middle of a harvest
        drawn.append(1)
        if len(drawn)==5: bucket.denied = ('PUT',)
    handle = pipe.transformer.register_forward_pre_hook(deny)
    try:
        with pytest.raises(fi.StoreError, match='no s3:PutObject.*Everything written before is good'): fi.harvest(pipe, prompts, sites, url, **args)
    finally: handle.remove()
    bucket.calm()
    assert {n: s for n,s in before.items() if '.safetensors' in n and '/' in n}.items()<=files(url).items()
    fi.harvest(pipe, prompts, sites, url, **args)
    assert fi.check_store(url).ok

def test_slow(bucket, world, monkeypatch):
    "Calls wait side by side, within their limits; a server that does not answer is given up on"
    from s3fs import S3FileSystem
    fi,pipe,prompts,path = world
    url = bucket.new('slow')
    bucket.latency = .03
    fi.harvest(pipe, prompts, sites, url, **args)
    assert 2<=bucket.most<=8+1 # files, and the manifest
    assert files(url)==files(path)
    bucket.most = 0
    assert same(fi.Store(url).site(sites[0]), fi.Store(path).site(sites[0]))
    assert 2<=bucket.most<=32
    monkeypatch.setattr(S3FileSystem, 'read_timeout', .1)
    S3FileSystem.clear_instance_cache()
    bucket.latency = .3
    with pytest.raises(fi.StoreError, match='the last of 5 tries'): fi.Store(url)
    S3FileSystem.clear_instance_cache()

def test_cache(bucket, world, tmp_path):
    "Every file is fetched once by all readers together, within the cap; a torn copy is noticed"
    from torch.utils.data import DataLoader
    from fluxinterp.activations.token_dataset import TokenDataset
    fi,pipe,prompts,path = world
    url = bucket.new('cached')
    fi.harvest(pipe, prompts, sites, url, **args)
    here,cache = fi.Store(path).site(sites[1]),tmp_path/'copies'
    def copies(): return [p for p in cache.iterdir() if p.suffix=='.safetensors']
    def fetched(): return {p for m,p,_ in bucket.calls if m=='GET' and p.startswith(f'/cached/acts/{sites[1]}')}
    data = fi.Store(url, cache=cache, cache_gb=.01).site(sites[1])
    bucket.calm()
    loader = DataLoader(TokenDataset(data, 100, seed=0), batch_size=None, num_workers=2)
    whole = list(loader)
    assert sum(len(b.x) for b in whole)==len(data) and len(fetched())==6==len(copies()) and bucket.sent==data.nbytes
    rest = list(DataLoader(TokenDataset(data, 100, seed=0).go_on(loader.dataset.state_after(11, 2)), batch_size=None, num_workers=2))
    assert len(rest)==len(whole)-11 and all((a.x==b.x).all() for a,b in zip(rest, whole[11:]))
    assert same(data, here) and len(bucket.calls)==6
    torn = copies()[2]
    torn.write_bytes(torn.read_bytes()[:-100])
    flipped = copies()[4]
    flipped.write_bytes(flipped.read_bytes()[:-1]+b'x')
    assert same(fi.Store(url, cache=cache, cache_gb=.01).site(sites[1]), here)
    assert sum(p.startswith(f'/cached/acts/{sites[1]}') for _,p,_ in bucket.calls)==8
    size = max(p.stat().st_size for p in copies())
    small = fi.Store(url, cache=cache, cache_gb=2.5*size/1e9)
    with pytest.warns(UserWarning, match='fewer than the 6 files that are mixed at a time'): assert same(small.site(sites[1]), here)
    assert 1<=len(copies())<=2
    with pytest.raises(fi.StoreError, match='less than the largest file of the store.*give that at least'): fi.Store(url, cache=cache, cache_gb=.5*size/1e9)
    with pytest.raises(ValueError, match='cache_gb'): fi.Store(url, cache=cache, cache_gb=-1)

def test_damage_in_a_bucket(bucket, world, tmp_path):
    "A wrong byte is noticed in a copy and on demand; without a copy only ranges are read"
    fi,pipe,prompts,path = world
    url = bucket.new('damaged')
    store = fi.harvest(pipe, prompts, sites, url, **args)
    name = f'{sites[0]}/00002.safetensors'
    good = store.folder.read(name)
    store.folder.write(name, good[:-1]+b'x')
    for kw in (dict(cache=tmp_path/'copies'), dict(verify=True)):
        with pytest.raises(fi.StoreError, match='00002.safetensors is damaged'):
            for _ in fi.Store(url, **kw).site(sites[0]).batches(300): pass
    assert fi.check_store(url).bad.file.tolist()==[name]
    fi.harvest(pipe, prompts, sites, url, verify=True, **args)
    assert files(url)==files(path)
    store.folder.fs.rm(store.folder.at(name))
    with pytest.raises(fi.StoreError, match='missing: '+name): fi.Store(url)

def test_without_the_packages(monkeypatch):
    import fluxinterp as fi
    for url,package,extra in (('s3://bucket/acts', 's3fs', 's3'), ('https://127.0.0.1/acts', 'aiohttp', 'http')):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules['fsspec.registry']._registry, url.split(':')[0], raising=False) # as in a new process
        with pytest.raises(fi.StoreError, match=fr'{url} needs a package that is not installed: pip install "fluxinterp\[{extra}\]"'): fi.Store(url)

def test_max_gb_is_checked_before_more_than_a_batch_is_drawn(world, tmp_path):
    fi,pipe,prompts,_ = world
    drawn = []
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: drawn.append(1))
    try:
        with pytest.raises(fi.StoreError, match='more than max_gb=1e-05.*nothing was written'): fi.harvest(pipe, prompts, sites, tmp_path/'acts', max_gb=1e-5, **args)
    finally: handle.remove()
    assert len(drawn)==2 and [p.name for p in (tmp_path/'acts').iterdir()]==['.lock']
