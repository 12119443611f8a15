"""Damaged copies of every kind of file that is read: `damage_files.py [N] [READER ...]`

N mutations a reader (500), each in place of a good file and read by a fork of this process, so that a crash, a
hang, or memory taken is told from an error; and an error that says what is wrong from one that does not. A file
of our own that reads as something else is a fault too; whoever makes its checksums fit (`forged`) gets what he
wrote, but no crash either.
"""
import contextlib, hashlib, io, json, os, random, resource, shutil, signal, sys, tempfile, time, warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

here = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(here))
import fluxinterp as fi
from fluxinterp.atlases.atlas_files import array_files, atlas_key
from fluxinterp.atlases.building import BlockScan, kept_state, plan_atlas
from fluxinterp.atlases.image_sources import image_source
from fluxinterp.dictionaries.dictionary import dictionary_fingerprint
from fluxinterp.dictionaries.sae import architectures, make_sae
from fluxinterp.safe_files import SeldomSaves, seal
from fluxinterp.training.checkpoints import newest_state, save_checkpoint
from fluxinterp.training.itda_transcoder import fit_transcoder, load_transcoder, save_transcoder
from fluxinterp.training.training_run import TrainingRun
from mutations import json_mutation, mutations

seconds,megabytes = 20,400
for_people = (fi.DictionaryFileError, fi.StoreError, fi.AtlasError, fi.RecipeError, FileNotFoundError,
              FloatingPointError) # the last: numbers that are not finite, of weights that were forged
site = 'double.0.image'

def digest(*values): # of arrays, tables and texts
    h = hashlib.sha1()
    for v in values:
        if isinstance(v, torch.Tensor): v = v.detach().float().numpy()
        plain = isinstance(v, np.ndarray) and v.dtype!=object
        h.update(v.tobytes() if plain else str(v).encode('utf-8', 'replace'))
    return h.hexdigest()

class Made:
    "A good file of every kind, and how each is read"
    def __init__(self, root):
        self.root,self.readers = Path(root),{}
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(300, 6, generator=g)@torch.randn(6, 6, generator=g)+3
        for add in (self.dictionaries, self.foreign, self.stores, self.atlases, self.texts, self.checkpoints):
            with contextlib.redirect_stdout(io.StringIO()): add()

    def put(self, name, files, read, ours=True, forge=None):
        self.readers[name] = files,read,ours,forge

    def dictionaries(self):
        made = {'itda': fi.fit_itda(fi.ITDAConfig(k=3, max_atoms=20), self.x, progress=False),
                'itda-whiten': fi.fit_itda(fi.ITDAConfig(k=3, max_atoms=20, normalizer='whiten'), self.x,
                                           progress=False),
                'pca': fi.pca(self.x, 2)}
        for a in architectures:
            sae = make_sae(6, fi.SAEConfig(num_latents=10, k=3, architecture=a, normalizer='standardize'))
            sae.normalizer.fit(self.x)
            if a in ('batchtopk', 'matryoshka'): sae.threshold.fill_(.4)
            sae.meta = fi.pca(self.x, 2).meta
            made[a] = sae.eval().requires_grad_(False)
        made['topk'].mean_activations = torch.linspace(0, 1, 10)
        folders = [fi.save_dictionary(d, self.root/'ours'/name) for name,d in made.items()]
        def read(folder):
            d = fi.load_dictionary(folder)
            more = [d.origins, d.growth, d.stored] if isinstance(d, fi.ITDA) else []
            return digest(dictionary_fingerprint(d), d.meta, d.mean_activations, d(self.x), *more)
        files = [f for d in folders for f in sorted(d.iterdir())]
        self.put('dictionary', files, lambda f: read(f.parent))
        def forge(f): # the checksums of a folder made to fit
            from fluxinterp.dictionaries import files as F
            cfg = json.loads((f.parent/'cfg.json').read_bytes())
            for name in cfg['fluxinterp']['files']:
                cfg['fluxinterp']['files'][name] = F.file_checksum(f.parent/name)
            cfg['fluxinterp']['crc32'] = F._cfg_crc(cfg)
            (f.parent/'cfg.json').write_text(json.dumps(cfg))
        self.put('dictionary, forged', files, lambda f: read(f.parent), False, forge)
        a,b = self.x,torch.tanh(self.x)
        t = save_transcoder(fit_transcoder(fi.ITDAConfig(k=3, max_atoms=20), a, b, progress=False),
                            self.root/'transcoder')
        def transcoder(f):
            t = load_transcoder(f.parent)
            return digest(t(self.x), t.config, t.meta, t.y_meta, t.origins)
        self.put('transcoder', sorted(t.iterdir()), transcoder)

    def foreign(self):
        folders = []
        for p in sorted((here/'peers/files').iterdir()):
            folders.append(Path(shutil.copytree(p, self.root/'foreign'/p.name)))
            if (folders[-1]/'ae.safetensors').exists():
                torch.save(load_file(folders[-1]/'ae.safetensors'), folders[-1]/'ae.pt')
                (folders[-1]/'ae.safetensors').unlink()
            (folders[-1]/'expected.safetensors').unlink()
        unbox = self.root/'foreign'/'unet.up_blocks.0.attentions.1_k3_hidden10'/'final'
        unbox.mkdir(parents=True)
        (unbox/'config.json').write_text(json.dumps(dict(d_model=6, n_dirs_local=10, k=3, auxk=4)))
        w = torch.randn(10, 6)
        torch.save(dict(state_dict={'encoder.weight': w, 'decoder.weight': w.T.contiguous(),
                                    'pre_bias': torch.zeros(6), 'latent_bias': torch.zeros(10)}),
                   unbox/'state_dict.pth')
        torch.save(torch.rand(10), unbox/'mean.pt')
        def read(f):
            d = fi.load_dictionary(f.parent)
            return digest(d(self.x), d.meta, d.mean_activations)
        self.put('other libraries', [f for d in (*folders, unbox) for f in sorted(d.iterdir())], read, False)

    def stores(self):
        self.pipe = fi.load_pipeline('random-flux')
        args = dict(num_inference_steps=2, dtype='float32', shard_mb=.3, progress=False)
        self.store = fi.harvest(self.pipe, fi.scene_prompts(8), [site], self.root/'acts', **args)
        def read(f):
            s = fi.Store(self.root/'acts')
            data = s.site(site)
            parts = [v for b in data.batches(1000, seed=0) for v in (b.x, *b.coords.values())]
            return digest(*parts, data.statistics().mean, s.prompts)
        files = [f for f in sorted((self.root/'acts').rglob('*')) if f.is_file() and f.name!='.lock']
        self.put('store', [f for f in files if 'backup' not in f.name], read)
        rec = fi.record(self.pipe, fi.scene_prompts(2), [site], num_inference_steps=1)[site]
        rec.save(self.root/'record.safetensors')
        def record(f):
            r = fi.SiteRecord.load(f)
            return digest(r.x, r.rows, r.steps, r.levels, r.timesteps, r.grid, r.site, r.model)
        self.put('record', [self.root/'record.safetensors'], record)

    def atlases(self):
        atlas = fi.Atlas('tiny-flux/double.1.image').copy(self.root/'atlas')
        atlas.label(3, 'a label')
        atlas.note(4, 'a note')
        on = [int(i) for i in atlas.array('totals/fired').argsort(descending=True)[:3]]
        atlas.text.close()
        def read(f):
            a = fi.Atlas(self.root/'atlas')
            try:
                t,found = a.table(),a.search('red star')
                shown = [(e.caption, e.half, e.values.tolist(), e.image.tobytes()) for i in on
                         for e in a.examples(i, half=None)]
                more = [a.neighbors(on[0], by) for by in ('direction', 'firing')]
                return digest(t.to_csv(), found.to_csv(), shown, *more, a.profile(on[0]), a.histogram(on[1]), a.peaks(on),
                              a.names(on), a.pictures.to_csv(), a.thumbnail(200).tobytes(), a.about['key'])
            finally: a.text.close()
        arrays = [self.root/'atlas'/n for n in array_files(self.root/'atlas')]
        self.put('atlas, arrays', arrays, read)
        self.put('atlas.json', [self.root/'atlas/atlas.json'], read)
        self.put('atlas.sqlite', [self.root/'atlas/atlas.sqlite'], read)
        def forge(f):
            path = self.root/'atlas/atlas.json'
            about = json.loads(path.read_bytes())
            if f.suffix=='.safetensors': about['files'] = array_files(self.root/'atlas')
            path.write_text(json.dumps(seal(about|dict(key=atlas_key(about)))))
        self.put('atlas, forged', [*arrays, self.root/'atlas/atlas.json'], read, False, forge)

    def texts(self):
        sae = fi.load_dictionary('tiny-flux/double.1.image')
        edits = [fi.Add(sae, [17, 4], strength=[8., -.1], region=fi.Box(0, 0, .5, 1), steps=slice(0, 3)),
                 fi.Clamp(sae, 3, high=1., region='map', steps=fi.noise(.5, 1))]
        fi.save_recipe(edits, self.root/'recipe.json')
        # people write recipes by hand: one that says something else is something else
        self.put('recipe', [self.root/'recipe.json'], lambda f: digest(fi.load_recipe(f, sae)), False)

    def checkpoints(self):
        folder = self.root/'training'
        runs = [TrainingRun(fi.SAEConfig(num_latents=16, k=2, batch_size=32), 6, torch.device('cpu'))]
        for step in (1, 2): runs[0].update(self.x[32*step:32*step+32])
        save_checkpoint(folder, runs, 2, dict(epoch=0, taken=2, seed=0), 2)
        def read(f): # None: passed over, and said so
            found = newest_state(f.parents[1])
            return None if found is None else digest(found[0], *[found[1][k] for k in sorted(found[1])])
        def files(folder): # of the newest checkpoint, alone
            newest = sorted(folder.rglob('step-*'))[-1]
            return sorted(shutil.copytree(newest, self.root/f'{folder.name}-alone'/newest.name) and
                          (self.root/f'{folder.name}-alone'/newest.name).iterdir())
        self.put('checkpoint of training', files(folder), read)
        data = torch.randn(2048, 32, generator=torch.Generator().manual_seed(0))
        def stops_growth(batch, values):
            if batch>8: raise RuntimeError
        with contextlib.suppress(RuntimeError):
            fi.fit_itda(fi.ITDAConfig(k=4, batch_size=128), data, self.root/'growth', checkpoint_every=3,
                        loggers=[stops_growth], progress=False)
        self.put('checkpoint of ITDA', files(self.root/'growth'), read)
        sae = fi.train(fi.SAEConfig(num_latents=32, k=4, steps=5, batch_size=64), self.store.site(site),
                       progress=False)
        source = image_source(sae, self.store)
        about = plan_atlas(sae, source, 2)
        scan = BlockScan(self.root/'scan', about, source.captions, 0)
        with tqdm(disable=True) as bar: scan.run(sae, source, 8192, bar, SeldomSaves())
        scan.save()
        def scanned(f): # None: passed over, and said so
            t = kept_state(f)
            return None if t is None else digest(*[t[k] for k in sorted(t)])
        self.put('checkpoint of an atlas', [self.root/'scan/parts/000000000.safetensors'], scanned)

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024 # MiB

def outcome(read, file, ours, want): # of one damaged file
    before = peak()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter('always')
            got = read(file)
    except BaseException as e:
        if isinstance(e, KeyboardInterrupt): raise
        res = 'error' if isinstance(e, for_people) or (type(e) is ValueError and str(file) in str(e)) else None
        res = res or f'BARE {type(e).__name__}: {str(e)[:150]}'
        if len(str(e))>1000: res = f'LONG error of {len(str(e))} characters'
    else:
        res = 'same' if got==want else 'another'
        if res=='another' and any('settings that no known' in str(w.message) for w in warned): return 'warned'
        if got is None: res = 'error' # passed over, with a line that says so
        if res=='another' and ours: res = 'SILENT change'
        if res=='another' and ours is None: res = 'another, silent'
    return f'MEMORY {peak()-before:.0f} MiB' if peak()-before>megabytes else res

def cases(files, n, seed): # (file, what was done, new bytes)
    rng = random.Random(seed)
    each = Counter(rng.randrange(len(files)) for _ in range(n))
    for i,count in sorted(each.items()):
        good = files[i].read_bytes()
        for what,data in mutations(good, count, rng.randrange(2**31)):
            if files[i].suffix=='.safetensors' and rng.random()<.4: # of the header, its length kept right
                size = int.from_bytes(good[:8], 'little')
                try:
                    what,header = json_mutation(json.loads(good[8:8+size]), rng)
                    head = json.dumps(header).encode()
                    data = len(head).to_bytes(8, 'little')+head+good[8+size:]
                except (ValueError, UnicodeEncodeError): pass
            if data!=good: yield files[i],what,data

def run(files, read, ours, forge, n, seed, say): # in the fork: a line a case
    warnings.simplefilter('ignore')
    want = {f: read(f) for f in files}
    def stop(*_): raise TimeoutError
    signal.signal(signal.SIGALRM, stop)
    for f,what,data in cases(files, n, seed):
        around = {p: p.read_bytes() for p in f.parent.iterdir() if p.is_file()}
        atlas = f.parents[1]/'atlas.json'
        if f.parent.name=='blocks': around[atlas] = atlas.read_bytes()
        f.write_bytes(data)
        say(f'begin {f.name}: {what}')
        try:
            if forge:
                try: forge(f)
                except Exception: continue # cannot be made to fit
            signal.setitimer(signal.ITIMER_REAL, seconds)
            res = outcome(read, f, ours, want[f])
            signal.setitimer(signal.ITIMER_REAL, 0)
            say(f'end {res}')
        finally:
            for p in f.parent.iterdir():
                if p.is_file() and p not in around: p.unlink()
            for p,b in around.items(): p.write_bytes(b)

def check(made, name, n=500, seed=0): # -> Counter of outcomes, lines of what is at fault
    files,read,ours,forge = made.readers[name]
    r,w = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(r)
            run(files, read, ours, forge, n, seed, lambda line: os.write(w, (line.encode('utf-8', 'replace')[:3000]+b'\0')))
            code = 0
        except BaseException as e: os.write(w, f'broken {type(e).__name__} {e}'.encode()[:500]+b'\0')
        finally: os._exit(code)
    os.close(w)
    with os.fdopen(r, 'rb') as f: lines = f.read().decode('utf-8', 'replace').split('\0')[:-1]
    status = os.waitpid(pid, 0)[1]
    count,faults,last = Counter(),[],''
    for line in lines:
        kind,_,text = line.partition(' ')
        if kind=='begin': last = text
        if kind=='broken': faults.append(f'the check itself: {text} (after {last})')
        if kind=='end':
            count[text.split(':')[0]] += 1
            if text.split()[0].isupper(): faults.append(f'{last} -> {text}')
    if status: faults.append(f'CRASH with status {status} at {last}')
    return count,faults

if __name__=='__main__':
    torch.set_num_threads(1)
    n = int(sys.argv[1]) if len(sys.argv)>1 else 500
    with tempfile.TemporaryDirectory() as d:
        made,wrong = Made(d),0
        for name in sys.argv[2:] or made.readers:
            start = time.time()
            count,faults = check(made, name, n)
            wrong += len(faults)
            print(f'{name:24s} {time.time()-start:5.0f} s  {dict(count)}', flush=True)
            for f in faults[:20]: print('    ', f[:400])
    sys.exit(wrong>0)
