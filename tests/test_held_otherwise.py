"The same network held otherwise: with adapters, quantized, fused, compiled. What is read and written is what the modules do, not what their weights say"
import warnings

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

import fluxinterp as fi
from fluxinterp.activations.hooks import hooked
from fluxinterp.models.families import usual_parts
from fluxinterp.models.identity import fingerprint, model_difference, own_tensors, running_adapters
from fluxinterp.models.miniatures import miniature, miniature_call
from fluxinterp.models.pipelines import denoiser_of, image_generators

class Coarse(nn.Linear):
    "A layer that is more than its weight, as quantized ones are: rounded to a sixteenth of its largest number"
    def forward(self, x):
        step = self.weight.abs().max()/16
        return nn.functional.linear(x, (self.weight/step).round()*step, self.bias)

def coarse(net):
    for m in net.modules():
        if type(m) is nn.Linear: m.__class__ = Coarse

def adapt(net, rank=4, targets='all-linear', **kwargs):
    torch.manual_seed(0)
    if targets=='all-linear': targets = sorted({n for n,m in net.named_modules() if isinstance(m, nn.Linear)})
    net.add_adapter(LoraConfig(r=rank, lora_alpha=2*rank, target_modules=targets, init_lora_weights=False, **kwargs))

def eight_bits(net): net.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
def fuse(net): net.fuse_qkv_projections()
def compile_forward(net): net.forward = torch.compile(net.forward, backend='eager')
holds = {f.__name__: f for f in (coarse, adapt, eight_bits, fuse, compile_forward)}

def draw(pipe, call): return pipe(**call, num_inference_steps=2, generator=image_generators(0, range(1)), output_type='latent').images

@pytest.mark.parametrize('hold', holds)
@pytest.mark.parametrize('name', ['flux', 'chroma', 'flux2'])
def test_attention_of_joint_projections(name, hold):
    "What is recorded as attention's contribution is the gate times what the projection makes of attention alone, whatever the projection is"
    pipe,call = miniature(name),miniature_call(name)
    net = denoiser_of(pipe)
    holds[hold](net)
    block = net.single_transformer_blocks[0]
    proj = block.attn.to_out if name=='flux2' else block.proj_out
    given = {}
    handles = [proj.register_forward_hook(lambda m,args,out: given.update(x=args[0])),
               (net.single_stream_modulation if name=='flux2' else block.norm).register_forward_hook(lambda m,args,out: given.update(gate=out))]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of running uncompiled
        got = fi.record(pipe, None, ['single.0.image.attn', 'single.0.text.attn'], num_inference_steps=1, **call)
    for h in handles: h.remove()
    x,width = given['x'],got['single.0.image.attn'].x.shape[-1]
    eye = torch.eye(x.shape[-1])[None] # what the projection does to each coordinate of its input
    with torch.no_grad(): matrix = (proj(eye)-proj(torch.zeros_like(eye)))[0]
    gate = given['gate'].chunk(3, -1)[2] if name=='flux2' else given['gate'][1]
    want = gate.reshape(len(x), -1, width)*(x[...,:width]@matrix[:width])
    text = got['single.0.text.attn'].x.shape[2]
    for site,part in (('single.0.text.attn', want[:,:text]), ('single.0.image.attn', want[:,text:])):
        assert torch.allclose(got[site].x[:,0], part, atol=2e-5*float(part.abs().max())), (site, float((got[site].x[:,0]-part).abs().max()))

@pytest.mark.parametrize('name,hold', [(n, h) for n in ('flux', 'sd3', 'sdxl') for h in ('coarse', 'adapt', 'eight_bits', 'fuse') if (n, h)!=('sd3', 'fuse')]) # diffusers cannot run SD 3.5's second attention fused
def test_every_site_of_a_network_held_otherwise(name, hold):
    "The sites are the same, a change is found where it was made (that of a single block's attention in the block's output), and nothing is left"
    pipe,call = miniature(name),miniature_call(name)
    before = [s.name for s in fi.list_sites(pipe, text=True)]
    holds[hold](denoiser_of(pipe))
    assert [s.name for s in fi.list_sites(pipe, text=True)]==before
    plain = draw(pipe, call)
    sites = {'flux': ['double.0.image', 'double.1.image.attn', 'double.0.image.attn.map', 'double.1.text.mlp', 'single.0.image.attn', 'single.0.image'],
             'sd3': ['blocks.0.image.attn', 'blocks.0.image.attn.map', 'blocks.1.image'], 'sdxl': ['down.2.1', 'mid.0.0.attn', 'mid.0.0.cross.map', 'up.0.1.output']}[name]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        rec = fi.record(pipe, None, sites, num_inference_steps=2, **call)
        for s in sites:
            assert torch.isfinite(rec[s].x).all() and rec[s].x.std()>0, s
            if s.endswith('.map'):
                assert torch.allclose(rec[s].x.sum(-1), torch.ones(()), atol=1e-4) or name!='sdxl', s
                continue
            push,seen,at = rec[s].x.std()*torch.randn(rec[s].x[:,0].shape, generator=torch.manual_seed(0)),[],s.removesuffix('.attn') if s.startswith('single') else s
            with hooked(pipe, [(s, lambda clock,x: x+push if clock.step==0 else None), (at, lambda clock,x: seen.append(x.clone()))]): draw(pipe, call)
            assert torch.allclose(seen[0], rec[at].x[:,0]+push, atol=1e-3*float(push.abs().max())), s
    assert torch.equal(draw(pipe, call), plain)

@pytest.mark.parametrize('name', ['flux', 'sdxl', 'sd3'])
def test_fused_projections_are_the_same_model(name):
    pipe,call = miniature(name),miniature_call(name)
    net = denoiser_of(pipe)
    before,sites = fingerprint(pipe),[s for s in fi.list_sites(pipe).names][:6]
    want = fi.record(pipe, None, sites, num_inference_steps=2, **call)
    fuse(net)
    assert fingerprint(pipe)==before
    got = fi.record(pipe, None, sites, num_inference_steps=2, **call) if name!='sd3' else want
    for s in sites: assert torch.allclose(got[s].x, want[s].x, atol=1e-5*float(want[s].x.abs().max())+1e-6), s
    net.unfuse_qkv_projections()
    assert fingerprint(pipe)==before and set(own_tensors(net))=={n for n,_ in miniature(name).components['unet' if name=='sdxl' else 'transformer'].named_parameters()}

def test_parts_of_blocks_with_adapters():
    "The last projection of a feed-forward is not one inside its adapter"
    block = lambda: nn.ModuleDict(dict(attn=nn.Linear(8, 8), ff=nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))))
    plain,adapted = block(),inject_adapter_in_model(LoraConfig(r=2, target_modules=['ff.0', 'ff.2']), block())
    assert usual_parts(adapted)==usual_parts(plain) and usual_parts(plain)[-2].path=='ff.2'
    pipe = fi.load_pipeline('random-flux')
    names = fi.list_sites(pipe, text=True).frame.drop(columns='tokens')
    inject_adapter_in_model(LoraConfig(r=2, target_modules=['wo', 'wi_0', 'wi_1', 'wi']), pipe.text_encoder_2)
    assert fi.list_sites(pipe, text=True).frame.drop(columns='tokens').equals(names)

def test_adapters_and_identity():
    "Only an adapter that changes what is computed is another model, and the message names it"
    pipe = miniature('flux')
    net,made = pipe.transformer,fingerprint(pipe)
    adapt(net, targets=['to_q', 'proj_out'])
    one = fingerprint(pipe)
    assert one!=made and one[:20]==made[:20] and list(running_adapters(net))==['default']
    assert "'default' in 7 layers, transformer_blocks.0.attn.to_q to" in model_difference(made, one)
    net.add_adapter(LoraConfig(r=2, target_modules=['to_v'], init_lora_weights=False), adapter_name='second')
    net.set_adapters(['default', 'second'])
    assert fingerprint(pipe) not in (one, made) and set(running_adapters(net))=={'default', 'second'}
    net.set_adapters('default')
    assert fingerprint(pipe)==one
    net.disable_adapters()
    assert fingerprint(pipe)==made and not running_adapters(net)
    net.enable_adapters()
    net.fuse_lora(adapter_names=['default'])
    fused = fingerprint(pipe)
    assert fused!=made and fused[20:]=='0000' and 'a LoRA was fused' in model_difference(made, fused)
    net.unfuse_lora()
    net.delete_adapters(['default', 'second'])
    assert fingerprint(pipe)==made

def test_a_refusal_names_what_differs(tmp_path):
    pipe = fi.load_pipeline('tiny-flux')
    adapt(pipe.transformer, targets=['to_q'])
    sae = fi.load_dictionary('tiny-flux/double.1.image')
    ways = [lambda: fi.steer(pipe, [fi.Add(sae, 3, strength=2.)]).__enter__(), lambda: fi.splice(pipe, sae, ['a red circle'])]
    fi.harvest(fi.load_pipeline('tiny-flux'), ['a red circle'], ['double.1.image'], tmp_path/'s', num_inference_steps=1, progress=False)
    ways += [lambda: fi.Store(tmp_path/'s', model=pipe), lambda: fi.harvest(pipe, ['a red circle'], ['double.1.image'], tmp_path/'s', num_inference_steps=1, progress=False)]
    for way in ways:
        with pytest.raises(ValueError, match=r"an adapter such as a LoRA runs here.*'default' in"): way()
    pipe.transformer.disable_adapters()
    fi.splice(pipe, sae, ['a red circle'], num_inference_steps=1)
    sae.meta.model = 'ddeb10898c5d' # an earlier version's
    with pytest.raises(ValueError, match='make it again'): fi.splice(pipe, sae, ['a red circle'])
