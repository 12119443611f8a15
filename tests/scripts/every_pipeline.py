"""Every pipeline of diffusers that a miniature's parts can make: its rows are a hook's, or it is refused in a sentence.

Run by hand: python tests/scripts/every_pipeline.py [miniature, or part of a class name]
"""
import inspect, sys, warnings
from collections import Counter

import diffusers
import numpy as np
import torch
from PIL import Image

import fluxinterp as fi
from fluxinterp.activations.batching import call_parameters
from fluxinterp.models.guidance_rows import guidance_kinds
from fluxinterp.models.miniatures import miniature, miniature_call, miniatures
from fluxinterp.models.pipelines import denoiser_of, image_generators

steps,size = 3,(64, 96)

def classes(name):
    "Pipelines whose denoiser can be the miniature's: by the annotation of that part"
    entry = miniatures[name]
    part = 'unet' if name in ('sd', 'sdxl') else 'transformer'
    for cls in sorted(dir(diffusers)):
        if not cls.endswith('Pipeline') or 'Onnx' in cls or 'Modular' in cls: continue
        try: parameters = inspect.signature(getattr(diffusers, cls).__init__).parameters
        except Exception: continue
        if entry.denoiser not in str(getattr(parameters.get(part), 'annotation', '')): continue
        wide = 'XL' in cls or 'Kolors' in cls
        if name in ('sd', 'sdxl') and wide!=(name=='sdxl'): continue
        yield cls

def arguments(pipe, name, n, guidance):
    takes,call = call_parameters(pipe)[0],miniature_call(name, n, guidance, *size)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for _ in range(n)]
    more = dict(image=pictures, control_image=pictures, strength=.7, pag_scale=3., mask_image=[Image.fromarray((np.arange(size[1])[None].repeat(size[0], 0)<40).astype(np.uint8)*255)]*n)
    return {k: v for k,v in (more|call).items() if k in takes}

def last_block(pipe):
    sites = [s for s in fi.list_sites(pipe, *size) if s.stream=='image' and s.read in ('output', 'update')]
    return [s for s in sites if not s.name.endswith(('.attn', '.cross', '.mlp'))][-1]

def by_hook(pipe, site, call, n):
    seen,module = [],denoiser_of(pipe).get_submodule(site.path.partition('.')[2])
    def keep(m, a, k, o):
        x = o[site.index] if isinstance(o, (tuple, list)) else o
        seen.append((x.flatten(2).transpose(1, 2) if x.ndim==4 else x).detach().clone())
    h = module.register_forward_hook(keep, with_kwargs=True)
    try: pipe(**call, num_inference_steps=steps, generator=image_generators(0, range(n)), output_type='latent')
    finally: h.remove()
    return seen

def check(name, cls, guidance, n=2):
    "What became of it: 'rows of a hook', 'refused', or why it cannot be tried"
    try:
        pipe = miniature(name, pipeline=cls)
        call = arguments(pipe, name, n, guidance)
        site = last_block(pipe)
        if site.read=='update': site = fi.resolve_site(pipe, site.name+'.output')
        raw = by_hook(pipe, site, call, n)
    except Exception as e: return f'not tried: {type(e).__name__} {str(e)[:80]}'
    found = {}
    for k in guidance_kinds:
        try: found[k] = fi.record(pipe, None, site, num_inference_steps=steps, guidance=k, **call)[site.name].x
        except NotImplementedError as e: return f'refused: {e}'
        except ValueError as e:
            if 'rows are not those of the batch' in str(e): return f'refused: {e}'
            if f'no {k} rows' not in str(e): return f'WRONG {type(e).__name__}: {str(e)[:160]}'
        except Exception as e: return f'WRONG {type(e).__name__}: {str(e)[:160]}'
    blocks = [b for x in raw for b in x.split(n)]
    want = {'conditional'}|({'unconditional'} if guidance else set())
    if not want<=set(found): return f'WRONG kinds {sorted(found)}'
    for k,x in found.items():
        for s in range(x.shape[1]):
            same = [b for b in blocks if b.shape[1]>=x.shape[2] and any(torch.equal(b[:,t:t+x.shape[2]], x[:,s]) for t in (0, 6, b.shape[1]-x.shape[2]))]
            if not same: return f'WRONG: no hook saw the {k} rows of step {s}'
    distinct = len({float(x.double().sum()) for x in found.values()})
    if distinct<len(found): return f'WRONG: {len(found)} kinds, {distinct} of them distinct'
    if len(blocks)!=len(found)*next(iter(found.values())).shape[1]: return f'rows of a hook: {len(found)} kinds of {len(blocks)} blocks in {next(iter(found.values())).shape[1]} steps'
    return 'rows of a hook'

if __name__=='__main__':
    warnings.filterwarnings('ignore')
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    part,tally = (sys.argv[1:]+[''])[0],Counter()
    for name in miniatures:
        for cls in classes(name):
            for guidance in (False, True):
                if (part!=name and part not in cls) or (guidance and name=='flux2'): continue
                said = check(name, cls, guidance)
                tally[said.partition(':')[0]] += 1
                print(f'{name:12} {cls:48} {"guided" if guidance else "":7} {said}', flush=True)
    print(dict(tally))
    sys.exit(any(k.startswith('WRONG') for k in tally))
