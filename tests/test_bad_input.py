"What cannot be recorded or steered says so: caches, skipped blocks, missing guidance, quantised modules, sizes"
from dataclasses import replace

import diffusers
import pytest
import torch

import fluxinterp as fi
from fluxinterp.activations.hooks import hooked
from fluxinterp.models.families import family_of
from fluxinterp.models.miniatures import miniature, miniature_call
from fluxinterp.models.pipelines import denoiser_of, image_generators

def draw(pipe, call): return pipe(**call, num_inference_steps=2, generator=image_generators(0, range(1)), output_type='latent').images
def hooks_of(pipe): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in denoiser_of(pipe).modules())
def add(pipe, site, **kwargs):
    width = next(iter(fi.record(pipe, None, site, num_inference_steps=2, steps=0, **kwargs).values())).x.shape[-1]
    return fi.Add(fi.random_directions(torch.randn(100, width), 20, 3), 0, strength=3., site=site)

caches = {'first block': lambda pipe: diffusers.FirstBlockCacheConfig(threshold=.5), 'broadcast': lambda pipe: diffusers.PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(0, 1000), current_timestep_callback=lambda: pipe._current_timestep),
          'faster': lambda pipe: diffusers.FasterCacheConfig(spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(0, 1000), unconditional_batch_skip_range=2, current_timestep_callback=lambda: pipe._current_timestep),
          'taylorseer': lambda pipe: diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1), 'mag': lambda pipe: diffusers.MagCacheConfig(mag_ratios=torch.ones(2), num_inference_steps=2), 'sea': lambda pipe: diffusers.SeaCacheConfig()}

@pytest.mark.parametrize('kind', caches)
def test_caches_of_diffusers(kind):
    "Switched on before, or while an edit is open: refused either way, and as before once it is off"
    pipe,call = miniature('flux'),miniature_call('flux')
    before,edit = draw(pipe, call),add(pipe, 'single.0.image', **call)
    pipe.transformer.enable_cache(caches[kind](pipe))
    with pytest.raises(ValueError, match='pipe.transformer.disable_cache'): fi.record(pipe, None, 'single.0.image', num_inference_steps=2, **call)
    with pytest.raises(ValueError, match='pipe.transformer.disable_cache'):
        with fi.steer(pipe, [edit]): draw(pipe, call)
    pipe.transformer.disable_cache()
    with fi.steer(pipe, [edit]):
        assert not torch.equal(draw(pipe, call), before)
        pipe.transformer.enable_cache(caches[kind](pipe))
        with pytest.raises(ValueError, match='pipe.transformer.disable_cache'): draw(pipe, call)
        pipe.transformer.disable_cache()
    assert hooks_of(pipe)==0 and torch.equal(draw(pipe, call), before)

def test_layers_that_a_hook_skips():
    "diffusers' layer skipping, applied by hand"
    from diffusers.hooks import LayerSkipConfig, apply_layer_skip
    pipe,call = miniature('sd3'),miniature_call('sd3')
    edit = add(pipe, 'blocks.1.image', **call)
    apply_layer_skip(pipe.transformer, LayerSkipConfig(indices=[1], fqn='transformer_blocks', skip_attention=True, skip_ff=True))
    with pytest.raises(ValueError, match='skips blocks'): fi.record(pipe, None, 'blocks.1.image', num_inference_steps=2, **call)
    with pytest.raises(ValueError, match='skips blocks'):
        with fi.steer(pipe, [edit]): draw(pipe, call)

def test_a_block_that_does_not_run():
    "An edit at a block that the call leaves out is said, not passed over; in a step outside its window it does not matter"
    pipe,call = miniature('sd3'),miniature_call('sd3')
    before,edit,blocks = draw(pipe, call),add(pipe, 'blocks.1.image', **call),pipe.transformer.transformer_blocks
    seen = []
    def skip(m, a): # the second step goes without the block
        seen.append(1)
        pipe.transformer.transformer_blocks = blocks if len(seen)<2 else torch.nn.ModuleList([blocks[0], blocks[2]])
    h = pipe.transformer.register_forward_pre_hook(skip)
    try:
        with pytest.raises(RuntimeError, match='blocks.1.image was not computed in step 1'): fi.record(pipe, None, 'blocks.1.image', num_inference_steps=2, **call)
        seen.clear(); pipe.transformer.transformer_blocks = blocks
        with pytest.raises(RuntimeError, match='did nothing in step 1: blocks.1.image was not computed there'):
            with fi.steer(pipe, [edit]): draw(pipe, call)
        for harmless in (replace(edit, steps=0), replace(edit, strength=0.)):
            seen.clear(); pipe.transformer.transformer_blocks = blocks
            with fi.steer(pipe, [harmless]): draw(pipe, call)
    finally:
        h.remove()
        pipe.transformer.transformer_blocks = blocks
    assert hooks_of(pipe)==0 and torch.equal(draw(pipe, call), before)

@pytest.mark.parametrize('name', ['flux', 'sdxl', 'sd3', 'qwen-image', 'z-image', 'pixart'])
def test_guidance_rows_where_there_are_none(name):
    pipe,call = miniature(name),miniature_call(name)
    site = [s.name for s in fi.list_sites(pipe, 64, 96) if s.stream=='image'][0]
    before,edit = draw(pipe, call),add(pipe, site, **call)
    for guidance in ('unconditional', 'both'):
        with pytest.raises(ValueError, match='no unconditional rows in step 0'): fi.record(pipe, None, site, guidance=guidance, num_inference_steps=2, **call)
    with pytest.raises(ValueError, match='choose from'): fi.record(pipe, None, site, guidance='negative', num_inference_steps=2, **call)
    with pytest.raises(ValueError, match='step 0 of this call had none'):
        with fi.steer(pipe, [replace(edit, guidance='unconditional')]): draw(pipe, call)
    assert hooks_of(pipe)==0 and torch.equal(draw(pipe, call), before)

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name,sites', [('flux', ['double.0.image', 'double.0.image.mlp', 'double.0.image.attn', 'single.0.image.attn', 'single.0.text']), ('sdxl', ['down.2.1', 'mid.0.output', 'up.0.1.0.cross'])])
def test_linear_layers_in_8_bits(name, sites):
    "Weights in 8 bits by torch's own dynamic quantisation: what goes between the layers is still numbers, to be read and edited; near those of the whole weights"
    plain,pipe,call = miniature(name),miniature(name),miniature_call(name)
    part = 'unet' if name=='sdxl' else 'transformer'
    setattr(pipe, part, torch.ao.quantization.quantize_dynamic(getattr(pipe, part), {torch.nn.Linear}, dtype=torch.qint8))
    before = draw(pipe, call)
    want,got = (fi.record(p, None, sites, num_inference_steps=2, **call) for p in (plain, pipe))
    for s in sites:
        assert 0<(got[s].x-want[s].x).norm()/want[s].x.norm()<.2, s
        with hooked(pipe, [(s, lambda clock,x: x+x.std()*torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))]): assert not torch.equal(draw(pipe, call), before), s
    assert hooks_of(pipe)==0 and torch.equal(draw(pipe, call), before)

def test_numbers_that_are_codes():
    "A module whose output is quantised: refused with what to do instead"
    pipe,call = miniature('flux'),miniature_call('flux')
    class Codes(torch.nn.Module):
        def __init__(self, kind): super().__init__(); self.kind = kind
        def forward(self, x): return x.to(torch.int8) if self.kind=='int8' else torch.quantize_per_tensor(x, .1, 0, torch.qint8)
    before,old = draw(pipe, call),pipe.transformer.norm_out.forward
    for kind in ('int8', 'qint8'):
        pipe.transformer.codes = Codes(kind)
        pipe.transformer.norm_out.forward = lambda x,e: (pipe.transformer.codes(x), old(x, e))[1]
        site = fi.Site(path='transformer.codes')
        with pytest.raises(ValueError, match='take a site around this module'): fi.record(pipe, None, site, num_inference_steps=2, **call)
        with pytest.raises(ValueError, match='take a site around this module'):
            with fi.steer(pipe, [fi.Add(fi.random_directions(torch.randn(50, 32), 8, 3), 0, site=site)]): draw(pipe, call)
    pipe.transformer.norm_out.forward = old
    del pipe.transformer.codes
    assert hooks_of(pipe)==0 and torch.equal(draw(pipe, call), before)

@pytest.mark.parametrize('name,height,near', [('random-flux', 66, '64 x 64'), ('random-sdxl', 60, '64 x 64')])
def test_heights_that_the_autoencoder_cannot_divide(name, height, near):
    pipe = fi.load_pipeline(name)
    site = fi.list_sites(pipe).names[0]
    for go in (lambda: fi.record(pipe, 'a red circle', site, height=height), lambda: fi.list_sites(pipe, height, 64)):
        with pytest.raises(ValueError, match=f'{height} x 64 cannot be divided.*take {near}'): go()
    assert hooks_of(pipe)==0

def test_an_unknown_denoiser_names_the_fallback():
    lists = torch.nn.Module.__new__(type('NobodysTransformer2DModel', (torch.nn.Module,), {}))
    torch.nn.Module.__init__(lists)
    lists.layers = torch.nn.ModuleList([torch.nn.TransformerEncoderLayer(8, 2) for _ in range(3)])
    f = family_of(lists)
    assert f.name=='NobodysTransformer2DModel (fallback)' and [b.name for b in f.blocks]==['blocks'] and f.guidance=='unknown'
    with pytest.raises(ValueError, match='Linear is not known.*reach its modules by Site'): family_of(torch.nn.Linear(2, 2))
