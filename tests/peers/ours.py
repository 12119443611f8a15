"""Runs in the environment of fluxinterp (`make interop`).
`ours.py write FOLDER` writes dictionaries of every kind with what they reconstruct; `ours.py read FOLDER` reads what `theirs.py write FOLDER` wrote."""
import shutil, sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import fluxinterp as fi
from fluxinterp.dictionaries.dictionary import DictionaryMeta
from fluxinterp.dictionaries.normalizers import normalizers
from fluxinterp.dictionaries.files import save_dictionary
from fluxinterp.dictionaries.sae import architectures, make_sae

limit = 1e-5
same = lambda a,b: float((a.double()-b.double()).norm()/b.double().norm())

def dictionaries(d=64, n=512, k=8):
    "SAEs of every architecture and normalizer, on data far from the origin whose coordinates differ widely; ITDAs; the packaged SAEs; and the baselines SAELens has a name for"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, d, generator=g)@torch.randn(d, d, generator=g)*torch.logspace(-1, 1, d)+300*torch.rand(d, generator=g)
    for a in architectures:
        for kind in normalizers:
            sae = make_sae(d, fi.SAEConfig(num_latents=n, k=k, architecture=a, normalizer=kind)).requires_grad_(False)
            sae.normalizer.fit(x)
            for p in sae.parameters(): p.add_(.05*torch.randn(p.shape, generator=g))
            z = sae.normalizer(x)
            excitation = sae.pre_acts(z).topk(k, dim=1).values[:,-1].median()
            if a in ('batchtopk', 'matryoshka'): sae.threshold.copy_(excitation)
            if a in ('relu', 'gated'): sae.b_enc -= .8*excitation
            if a=='jumprelu': sae.log_threshold.copy_(excitation.log()+.1*torch.randn(n, generator=g))
            sae.meta = DictionaryMeta('double.1.image', 'abc', [0], [1.], (16, 16), 1, 2000)
            yield f'{a}-{kind}',sae.eval(),x[:500]
    for kind in normalizers: # SAELens knows matching pursuit over directions of length 1; what it cannot express it must refuse
        yield f'itda-{kind}' if kind in ('none', 'mean', 'mean-norm') else f'refused-itda-{kind}',fi.fit_itda(fi.ITDAConfig(k=k, method='matching', normalizer=kind, max_atoms=n), x, progress=False),x[:500]
    yield 'refused-itda-signed',fi.fit_itda(fi.ITDAConfig(k=k, method='matching', nonneg=False, max_atoms=n), x, progress=False),x[:500]
    for name,made in dict(coordinates=fi.coordinates(x, k), pca=fi.pca(x, k)).items(): yield name,made,x[:500]
    for name in fi.packaged_dictionaries():
        sae = fi.load_dictionary(name)
        if isinstance(sae, fi.ITDA): continue # its pursuit is not SAELens': 'matching pursuit instead'
        refused = 'refused-'*(sae.nuisance is not None) # nobody else knows what to remove
        z = torch.randn(500, sae.width, generator=g)
        yield f'{refused}packaged-{name.replace("/", "-")}',sae,sae.mean+10*z if isinstance(sae, fi.LinearDictionary) else sae.normalizer.inverse(z)

def write(root):
    for name,d,x in dictionaries():
        folder = save_dictionary(d, root/name)
        if d.nuisance is not None: continue
        if name.startswith('packaged') and isinstance(d, fi.SAE): d = fi.load_dictionary(save_dictionary(d, folder, torch.float16)) # as packaged ones are
        code = d.encode(x)
        unit = d.normalizer.scale[0] if isinstance(d, fi.ITDA) else 1. # atoms keep length 1 in raw space, so codes are in raw units there
        save_file(dict(x=x.contiguous(), xhat=d.decode(code), code=code.to_dense()*unit), folder/'expected.safetensors')

def read_theirs(folder, tmp): # a folder of `theirs.py write` -> relative error of our reconstruction
    shutil.copytree(folder, tmp)
    if (tmp/'ae.safetensors').exists(): torch.save(load_file(tmp/'ae.safetensors'), tmp/'ae.pt') # as dictionary_learning does
    expected = load_file(folder/'expected.safetensors')
    return same(fi.load_dictionary(tmp)(expected['x']), expected['xhat'])

def read(root):
    import tempfile
    folders = sorted(p.parent for p in root.glob('*/expected.safetensors'))
    with tempfile.TemporaryDirectory() as d: errors = {f.name: read_theirs(f, Path(d)/f.name) for f in folders}
    for name,e in errors.items(): print(f'fluxinterp opens {name:45} reconstruction {e:.1e}')
    assert errors and max(errors.values())<limit

if __name__=='__main__': dict(write=write, read=read)[sys.argv[1]](Path(sys.argv[2]))
