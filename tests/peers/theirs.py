"""Runs in an environment with sae-lens, eai-sparsify and dictionary-learning, and without fluxinterp (`make interop`).
`theirs.py open FOLDER` opens with SAELens what `ours.py write FOLDER` wrote and compares reconstructions;
`theirs.py write FOLDER` writes a small SAE of every kind each library has, with what the library itself reconstructs."""
import json, os, sys
from pathlib import Path
os.environ['SPARSIFY_DISABLE_TRITON'] = '1'

import torch
from safetensors.torch import load_file, save_file

limit,d,n,k = 1e-5,6,10,3
same = lambda a,b: float((a.double()-b.double()).norm()/b.double().norm())

def open_ours(root):
    from sae_lens import SAE
    worst,worst_code = 0.,0.
    for folder in sorted(p.parent for p in root.glob('*/cfg.json')):
        if folder.name.startswith('refused'):
            try: SAE.load_from_disk(folder)
            except Exception as e: print(f'SAELens refuses {folder.name}: {str(e)[:60]!r}')
            else: raise AssertionError(f'SAELens opens {folder.name}, whose codes it cannot know')
            continue
        expected = load_file(folder/'expected.safetensors')
        sae = SAE.load_from_disk(folder)
        with torch.no_grad(): code = sae.encode(expected['x']); xhat = sae.decode(code)
        a,b = same(xhat, expected['xhat']),same(code, expected['code'])
        print(f'SAELens opens {folder.name:32} as {sae.cfg.architecture():16} reconstruction {a:.1e}, codes {b:.1e}')
        if sae.cfg.architecture()=='standard': b /= 2 # what a ReLU leaves is small beside what it cuts off, and rounding is not
        worst,worst_code = max(worst, a),max(worst_code, b)
    assert 0<worst<limit and worst_code<10*limit, f'relative error {worst:.1e}, of codes {worst_code:.1e}' # codes of whitened data are worse conditioned, on both sides

def shaken(module): # no weight as it was drawn
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters(): p.add_(.3*torch.randn(p.shape, generator=g).to(p))
    return module.eval()

def keep(folder, module, x):
    with torch.no_grad(): xhat = module(x)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(x=x.contiguous(), xhat=xhat.contiguous()), folder/'expected.safetensors')
    print(f'{folder.name}: {sum(p.stat().st_size for p in folder.iterdir())} bytes')

def write(root):
    x = torch.randn(20, d, generator=torch.Generator().manual_seed(1))*2+1
    import sae_lens
    from sae_lens import SAE
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    about = SAEMetadata(model_name='gpt2', hook_name='blocks.5.hook_resid_pre')
    for kind,more in (('standard', dict(apply_b_dec_to_input=False)), ('topk', dict(k=k)), ('topk', dict(k=k, rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)), ('jumprelu', {}), ('gated', dict(apply_b_dec_to_input=False))):
        cls,cfg = sae_lens.registry.get_sae_class(kind)
        sae = shaken(cls(cfg(d_in=d, d_sae=n, metadata=about, **more)))
        folder = root/('saelens-'+kind+('-rescaled' if 'rescale_acts_by_decoder_norm' in more else ''))
        sae.save_model(folder); keep(folder, SAE.load_from_disk(folder), x)
    sae = shaken(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d, d_sae=n, k=k, metadata=about)))
    sae.topk_threshold.fill_(.7)
    sae.save_inference_model(root/'saelens-batchtopk'); keep(root/'saelens-batchtopk', SAE.load_from_disk(root/'saelens-batchtopk'), x)

    from sparsify import SparseCoder, SparseCoderConfig
    sae = shaken(SparseCoder(d, SparseCoderConfig(num_latents=n, k=k)))
    sae.save_to_disk(root/'sparsify-topk')
    sae = SparseCoder.load_from_disk(root/'sparsify-topk')
    keep(root/'sparsify-topk', lambda x: sae.decode(*sae.encode(x)[:2]), x)

    from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK
    for cls,args in ((AutoEncoder, ()), (AutoEncoderNew, ()), (GatedAutoEncoder, ()), (JumpReluAutoEncoder, ()), (AutoEncoderTopK, (k,)), (BatchTopKSAE, (k,)), (MatryoshkaBatchTopKSAE, (k, [4, 6]))):
        sae = shaken(cls(d, n, *args))
        if cls in (BatchTopKSAE, MatryoshkaBatchTopKSAE): sae.threshold.fill_(.7)
        folder = root/f'dictionary_learning-{cls.__name__}'
        folder.mkdir(parents=True, exist_ok=True)
        # its own file is a pickle, `ae.pt`, of this state dict; pickles are not kept here, so who reads it makes one of it first
        save_file({k: v.detach().clone(memory_format=torch.contiguous_format) for k,v in sae.state_dict().items()}, folder/'ae.safetensors')
        (folder/'config.json').write_text(json.dumps(dict(trainer=dict(dict_class=cls.__name__, activation_dim=d, dict_size=n)|(dict(k=k) if args else {}))))
        keep(folder, sae, x)

if __name__=='__main__': dict(open=open_ours, write=write)[sys.argv[1]](Path(sys.argv[2]))
