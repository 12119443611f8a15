"Files of other libraries, damaged files, and the hub's own client against a server on this machine"
import base64, hashlib, json, random, shutil, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
import torch
from safetensors.torch import load_file

import fluxinterp as fi
from fluxinterp.dictionaries.dictionary import DictionaryMeta
from fluxinterp.dictionaries.dictionary import dictionary_fingerprint
from fluxinterp.dictionaries.sae import architectures, make_sae

here = Path(__file__).parent
sys.path.insert(0, str(here/'peers'))
import ours as peers

@pytest.mark.parametrize('folder', sorted((here/'peers/files').iterdir()), ids=lambda p: p.name)
def test_reads_what_other_libraries_wrote(folder, tmp_path):
    "Written by SAELens, sparsify and dictionary_learning themselves (tests/peers/theirs.py), with what they reconstruct"
    assert peers.read_theirs(folder, tmp_path/'copy')<1e-5

def test_every_library_is_there():
    names = {p.name.split('-')[0] for p in (here/'peers/files').iterdir()}
    assert names=={'saelens', 'sparsify', 'dictionary_learning'} # sdxl-unbox is no package: its layout is made by hand in the notebook

def small(architecture='topk', normalizer='standardize', d=6, n=10, k=3):
    g = torch.Generator().manual_seed(0)
    sae = make_sae(d, fi.SAEConfig(num_latents=n, k=k, architecture=architecture, normalizer=normalizer)).eval().requires_grad_(False)
    sae.normalizer.fit(torch.randn(200, d, generator=g)*torch.linspace(.3, 5, d)+2)
    for p in sae.parameters(): p.add_(.3*torch.randn(p.shape, generator=g))
    if architecture in ('batchtopk', 'matryoshka'): sae.threshold.fill_(.4)
    sae.meta = DictionaryMeta('double.1.image', 'abc', [0, 1], [1., .5], (16, 16), 3, 20)
    return sae

@pytest.mark.parametrize('architecture', architectures)
@pytest.mark.parametrize('normalizer', ('none', 'mean-norm', 'standardize', 'whiten'))
def test_a_saved_dictionary_has_the_same_fingerprint(architecture, normalizer, tmp_path):
    sae = small(architecture, normalizer)
    again = fi.load_dictionary(fi.save_dictionary(sae, tmp_path))
    assert dictionary_fingerprint(again)==dictionary_fingerprint(sae)
    again = fi.load_dictionary(fi.save_dictionary(again, tmp_path)) # once more, over itself
    assert dictionary_fingerprint(again)==dictionary_fingerprint(sae)

def test_baselines_keep_theirs(tmp_path):
    x = torch.randn(300, 6)
    for d in (fi.coordinates(x, 2), fi.pca(x, 2), fi.pca(x, 2, fixed=True), fi.random_directions(x, 20, 3)):
        assert dictionary_fingerprint(fi.load_dictionary(fi.save_dictionary(d, tmp_path)))==dictionary_fingerprint(d)

@pytest.mark.parametrize('normalizer', ('none', 'mean-norm', 'standardize', 'whiten'))
def test_an_itda_keeps_its_fingerprint(normalizer, tmp_path):
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))*torch.linspace(.3, 5, 6)+2
    config = fi.ITDAConfig(k=3, normalizer=normalizer)
    d = fi.fit_itda(config, x, progress=False)
    again = fi.load_dictionary(fi.save_dictionary(d, tmp_path))
    assert dictionary_fingerprint(again)==dictionary_fingerprint(d) and again.origins.equals(d.origins)
    d.config.method = 'orthogonal'
    assert dictionary_fingerprint(again)!=dictionary_fingerprint(d)

def test_a_failed_save_leaves_the_old_one(tmp_path, monkeypatch):
    import fluxinterp.dictionaries.files as saving
    sae = small()
    fi.save_dictionary(sae, tmp_path)
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    for name in ('save_tensors', 'save_json'):
        with monkeypatch.context() as m:
            m.setattr(saving, name, full)
            with pytest.raises(OSError, match='No space'): fi.save_dictionary(small('jumprelu'), tmp_path)
        assert dictionary_fingerprint(fi.load_dictionary(tmp_path))==dictionary_fingerprint(sae)
        assert sorted(p.name for p in tmp_path.iterdir())==['cfg.json', 'fluxinterp.safetensors', 'sae_weights.safetensors']

# Mutations: a clear error, or the answer the files now give.

odd = ['0', '-1', '1e999', '1'+'0'*30, '9'*5000, 'NaN', 'null', 'true', '"x"', '[]', '{}', '3.0', '2147483647', '""', '"topk"', '"none"']

def mutate_json(text, rng):
    "One change to JSON text"
    how = rng.randrange(8)
    i = rng.randrange(len(text))
    if how==0: return text[:i]+text[i+1:]
    if how==1: return text[:i]+rng.choice('{}[]",:0123456789-e. \\\x00ü')+text[i:]
    if how==2: return text[:i]+rng.choice('{}[]",:0123456789-etrufalsn ')+text[i+1:]
    if how==3: return text[:i]
    obj = json.loads(text)
    parents = []
    def walk(o):
        if isinstance(o, dict) and o: parents.append(o)
        for v in (o.values() if isinstance(o, dict) else o if isinstance(o, list) else ()): walk(v)
    walk(obj)
    o = rng.choice(parents)
    key = rng.choice(list(o))
    if how==4: del o[key]
    if how==5: o[rng.choice([key+'s', key[:-1], key.upper(), 'fluxinterp', 'k'])] = o.pop(key)
    if how==6: o[key] = '\u2603'; return json.dumps(obj).replace('"\\u2603"', rng.choice(odd))
    if how==7: other = rng.choice(list(o)); o[key],o[other] = o[other],o[key]
    return json.dumps(obj)

def mutate_weights(data, rng):
    "One change to the header of a safetensors file, or to its length"
    size = int.from_bytes(data[:8], 'little')
    how = rng.randrange(4)
    if how==0: return data[:rng.randrange(len(data))]
    if how==1: i = rng.randrange(8+size); return data[:i]+bytes([rng.randrange(256)])+data[i+1:]
    if how==2: header = mutate_json(data[8:8+size].decode(), rng).encode('utf-8', 'surrogatepass'); return len(header).to_bytes(8, 'little')+header+data[8+size:]
    return data+b'\0'*rng.randrange(1, 9)

def reference(folder): # what SAELens' and sparsify's files say, computed densely; x -> reconstruction
    cfg = json.loads((folder/'cfg.json').read_bytes())
    lens = (folder/'sae_weights.safetensors').exists()
    t = {k: v.double() for k,v in load_file(folder/('sae_weights.safetensors' if lens else 'sae.safetensors')).items()}
    W,b = (t['W_enc'],t['b_gate' if 'b_gate' in t else 'b_enc']) if lens else (t['encoder.weight'].T,t['encoder.bias'])
    def f(x):
        x = x.double()
        pre = (x-t['b_dec']*cfg.get('apply_b_dec_to_input', True))@W+b
        length = t['W_dec'].norm(dim=1) if cfg.get('rescale_acts_by_decoder_norm') else 1.
        if lens and cfg['architecture']=='jumprelu': code = pre.relu()*(pre>t['threshold'])
        elif lens and cfg['architecture']=='standard': code = pre.relu()
        elif lens and cfg['architecture']=='gated': code = ((pre-b)*t['r_mag'].exp()+t['b_mag']).relu()*(pre>0)
        elif lens and cfg['architecture']=='abstopk': code = torch.zeros_like(pre).scatter(1, pre.abs().topk(cfg['k']).indices, pre.gather(1, pre.abs().topk(cfg['k']).indices))
        else: code = torch.zeros_like(pre).scatter(1, (pre*length).topk(cfg['k']).indices, (pre*length).topk(cfg['k']).values.relu())/length
        return code@t['W_dec']+t['b_dec']
    return f

def folders(tmp): # name -> (folder, files to damage)
    ours = 'cfg.json','sae_weights.safetensors','fluxinterp.safetensors'
    made = {a: (fi.save_dictionary(small(a, n), tmp/a), ours) for a,n in zip(architectures, cycle(('standardize', 'whiten', 'mean-norm')))}
    made['baseline'] = fi.save_dictionary(fi.pca(torch.randn(300, 6), 2), tmp/'baseline'),ours[:2]
    for name in ('saelens-topk', 'saelens-topk-rescaled', 'saelens-jumprelu', 'saelens-standard', 'saelens-gated', 'sparsify-topk'):
        shutil.copytree(here/'peers/files'/name, tmp/name)
        made[name] = tmp/name,('cfg.json', 'sae.safetensors' if 'sparsify' in name else 'sae_weights.safetensors')
    return made

@pytest.mark.filterwarnings('ignore:.*settings that no known version')
def test_damaged_dictionaries(tmp_path):
    "900 mutations of configurations and weight files: an error that is a ValueError, or the right answer, within two seconds"
    made = folders(tmp_path)
    marks = {n: dictionary_fingerprint(fi.load_dictionary(f)) for n,(f,_) in made.items()}
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    rng,refused,right = random.Random(0),0,0
    for i in range(900):
        name = rng.choice(list(made))
        folder,files = made[name]
        f = folder/(files[0] if rng.random()<.6 or len(files)==1 else rng.choice(files[1:]))
        good = f.read_bytes()
        bad = mutate_json(good.decode(), rng).encode('utf-8', 'surrogatepass') if f.name=='cfg.json' else mutate_weights(good, rng)
        f.write_bytes(bad)
        start = time.monotonic()
        try: d = fi.load_dictionary(folder)
        except ValueError as e: # RecursionError, KeyError, RuntimeError, MemoryError, ... would fail this test
            assert len(str(e))>20
            refused += 1
        else:
            right += bad!=good
            if 'saelens' in name or 'sparsify' in name or 'fluxinterp' not in json.loads((folder/'cfg.json').read_bytes()): # without our key it is a file of SAELens
                xhat = reference(folder)(x)
                assert (d(x).double()-xhat).norm()/xhat.norm()<1e-5, (name, f.name, bad[:600])
            else: assert dictionary_fingerprint(d)==marks[name], (name, f.name, bad[:600])
        assert time.monotonic()-start<2
        f.write_bytes(good)
    assert refused>500 and right>20, (refused, right)

class Hub(BaseHTTPRequestHandler):
    "As much of the hub as pushing and opening a dictionary takes"
    repos = {} # id -> {path: bytes}
    def log_message(self, *args): pass
    def answer(self, body=b'', status=200, **headers):
        body = json.dumps(body).encode() if not isinstance(body, bytes) else body
        self.send_response(status)
        for k,v in ({'Content-Length': str(len(body))}|{k.replace('_', '-'): v for k,v in headers.items()}).items(): self.send_header(k, v)
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(body)

    def do_POST(self):
        body,path = self.rfile.read(int(self.headers.get('Content-Length') or 0)),urlparse(self.path).path
        if path=='/api/validate-yaml': return self.answer({})
        if path=='/api/repos/create':
            about = json.loads(body)
            self.repos.setdefault(f'{about.get("organization") or "somebody"}/{about["name"]}', {})
            return self.answer(dict(url=f'http://{self.headers["Host"]}/somebody/{about["name"]}'))
        repo = '/'.join(path.split('/')[3:5])
        if '/preupload/' in path: return self.answer(dict(files=[dict(path=f['path'], uploadMode='regular', shouldIgnore=False) for f in json.loads(body)['files']]))
        if '/commit/' in path:
            for line in map(json.loads, body.splitlines()):
                if line['key']=='file': self.repos[repo][line['value']['path']] = base64.b64decode(line['value']['content'])
            return self.answer(dict(success=True, commitUrl=f'http://{self.headers["Host"]}/{repo}/commit/{"1"*40}', commitOid='1'*40))
        self.answer({}, 404)

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        if path.startswith('/api/models/'):
            repo = '/'.join(path.split('/')[3:5])
            if repo not in self.repos: return self.answer(dict(error='Repository not found'), 404, X_Error_Code='RepoNotFound')
            files = self.repos[repo]
            if '/tree/' in path: return self.answer([dict(type='file', path=p, size=len(b), oid=hashlib.sha1(b).hexdigest()) for p,b in files.items()])
            return self.answer(dict(id=repo, modelId=repo, sha='1'*40, private=False, siblings=[dict(rfilename=p) for p in files], tags=[], downloads=0, likes=0))
        repo,_,rest = path[1:].partition('/resolve/')
        data = self.repos.get(repo, {}).get(rest.partition('/')[2])
        if data is None: return self.answer(dict(error='Entry not found'), 404, X_Error_Code='EntryNotFound')
        self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit='1'*40)
    do_HEAD = do_GET

def test_push_and_open_through_the_hubs_client(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import HfApi, ModelCard
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_XET', True) # plain HTTP commits
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        api,sae = HfApi(endpoint=f'http://127.0.0.1:{server.server_port}', token='hf_none'),small()
        where = fi.push_to_hub(sae, 'somebody/saes', metrics=dict(fvu=.1), private=True, api=api)
        assert where=='somebody/saes/double.1.image'
        fi.push_to_hub(small('jumprelu'), 'somebody/saes', 'jump/double.1.image', api=api)
        files = Hub.repos['somebody/saes']
        assert sorted(f for f in files if f.startswith('double.1.image/'))==[f'double.1.image/{f}' for f in ('README.md', 'cfg.json', 'fluxinterp.safetensors', 'metrics.json', 'sae_weights.safetensors')]
        assert ModelCard(files['README.md'].decode()).data.library_name=='saelens'
        again = fi.load_dictionary(where, api=api)
        assert dictionary_fingerprint(again)==dictionary_fingerprint(sae) and again.source==where and again.meta==sae.meta
        assert fi.load_dictionary('somebody/saes/jump/double.1.image', api=api).config.architecture=='jumprelu'
        with pytest.raises(FileNotFoundError, match='it has them in double.1.image, jump/double.1.image'): fi.load_dictionary('somebody/saes/elsewhere', api=api)
        with pytest.raises(FileNotFoundError, match='the hub could not give somebody/none'): fi.load_dictionary('somebody/none/x', api=api)
    finally: server.shutdown(); server.server_close()
    with pytest.raises(FileNotFoundError, match='the hub could not give'): fi.load_dictionary('somebody/saes/unseen', api=api) # no network

def test_published_dictionaries_through_the_hubs_client(tmp_path, monkeypatch):
    "Repositories made to the layout of sdxl-unbox, opened by short names: only the files that are needed, the site from the table, and a pickle's code refused"
    import io
    import huggingface_hub
    from huggingface_hub import HfApi
    from fluxinterp.dictionaries.hub import published
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'cache'))
    def files(d, n, k, extra=None):
        g,out,mean = torch.Generator().manual_seed(k),io.BytesIO(),io.BytesIO()
        w = torch.randn(d, n, generator=g)
        torch.save(dict(state_dict={'encoder.weight': w.T.contiguous(), 'decoder.weight': w, 'pre_bias': torch.randn(d, generator=g), 'latent_bias': torch.randn(n, generator=g), 'stats_last_nonzero': torch.zeros(n, dtype=torch.long)}|(extra or {})), out)
        torch.save(torch.rand(n), mean)
        return {'config.json': json.dumps(dict(n_dirs_local=n, d_model=d, k=k, auxk=256, dead_steps_threshold=2441)).encode(), 'state_dict.pth': out.getvalue(), 'mean.pt': mean.getvalue(), 'std.pt': mean.getvalue()}
    repos = {}
    for name,p in published.items():
        monkeypatch.setitem(published, name, p._replace(width=8, latents=200))
        inside = f'{p.folder}/final/' if p.repo=='surokpro2/sdxl-saes' else f'{p.folder}/' if p.folder else ''
        repos.setdefault(p.repo, {}).update({inside+f: b for f,b in files(8, 200, p.k).items()})
    monkeypatch.setattr(Hub, 'repos', repos)
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        api = HfApi(endpoint=f'http://127.0.0.1:{server.server_port}', token='hf_none')
        x = torch.randn(30, 8, generator=torch.Generator().manual_seed(9))
        for name,p in published.items():
            sae = fi.load_dictionary(name, api=api)
            assert (sae.meta.site, sae.config.k, sae.num_latents, sae.width)==(p.site, p.k, 200, 8)
            t = torch.load(io.BytesIO(next(b for f,b in repos[p.repo].items() if f.startswith(p.folder) and f.endswith('state_dict.pth'))), weights_only=True)['state_dict']
            pre = (x-t['pre_bias'])@t['encoder.weight'].T+t['latent_bias'] # their words for it
            top = pre.topk(p.k)
            code = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
            assert torch.allclose(sae(x), code@t['decoder.weight'].T+t['pre_bias'], atol=1e-3)
            assert sae.mean_activations.shape==(200,) and fi.Add(sae, 7, unit='mean').mean_activations=={7: pytest.approx(float(sae.mean_activations[7]))} # their unit
        assert list((tmp_path/'cache').rglob('mean.pt')) and not list((tmp_path/'cache').rglob('std.pt'))
        sdxl = fi.miniature('sdxl')
        assert fi.resolve_site(sdxl, fi.load_dictionary('sdxl-unbox/up.0.1', api=api).meta.site).read=='update'
        assert published['sdxl-unbox-flux/double.18'].site.endswith('.update') and fi.resolve_site(fi.miniature('flux'), 'double.1.image.update').read=='update'
        class Run:
            def __reduce__(self): return (exec, ('raise SystemExit("ran")',))
        repos['somebody/flux-sae'] = files(8, 200, 20, dict(more=Run()))
        with pytest.raises(fi.DictionaryFileError, match='refused'): fi.load_dictionary('somebody/flux-sae', api=api)
        repos['somebody/other-layout'] = {'config.json': b'{"hidden": 3}', 'weights.safetensors': b''}
        with pytest.raises(fi.DictionaryFileError, match='holds no dictionary: looked for'): fi.load_dictionary('somebody/other-layout', api=api)
    finally: server.shutdown(); server.server_close()
