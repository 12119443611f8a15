"Whose row is it, whatever guides or conditions a call; and the same arguments for whatever draws"
import inspect

import numpy as np
import pytest
import torch
from PIL import Image

import fluxinterp as fi
from fluxinterp.activations.batching import PromptBatches
from fluxinterp.activations.hooks import hooked
from fluxinterp.autointerp.generative_scorers import Intervention
from fluxinterp.features.feature_scanner import scan_words
from fluxinterp.models.guidance_rows import guidance_kinds
from fluxinterp.models.miniatures import miniature, miniature_call
from fluxinterp.models.pipelines import denoiser_of, image_generators
from fluxinterp.steering.block_roles import feature_images

c,u,p = guidance_kinds
steps = 2

def tokens(x): return x.flatten(2).transpose(1, 2) if x.ndim==4 else x

def by_hook(pipe, path, call, n, steps=steps, take=lambda o: o[0] if isinstance(o, tuple) else o):
    "What an ordinary forward hook sees in an ordinary call, a tensor for each call of the denoiser"
    seen = []
    h = denoiser_of(pipe).get_submodule(path).register_forward_hook(lambda m,a,o: seen.append(tokens(take(o)).detach().clone()))
    try: pipe(**call, num_inference_steps=steps, generator=image_generators(0, range(n)), output_type='latent')
    finally: h.remove()
    return seen

# perturbed-attention guidance

perturbing = { # miniature -> pipeline, site, path, where a site after the perturbed layers is
    'sd': ('StableDiffusionPAGPipeline', 'up.1.2.output', 'up_blocks.1.attentions.2'),
    'sdxl': ('StableDiffusionXLPAGPipeline', 'up.0.1.output', 'up_blocks.0.attentions.1'),
    'pixart': ('PixArtSigmaPAGPipeline', 'blocks.1', 'transformer_blocks.1'),
    'sana': ('SanaPAGPipeline', 'blocks.1', 'transformer_blocks.1'),
    'sd3': ('StableDiffusion3PAGPipeline', 'blocks.1.image', 'transformer_blocks.1')}
images_second = lambda o: o[1] # of a block with two streams

def perturbed(name, guidance, n=2):
    cls,site,path = perturbing[name]
    pipe,call = miniature(name, pipeline=cls),miniature_call(name, n, guidance)
    torch.manual_seed(0)
    if name=='sd3': pipe.transformer = type(pipe.transformer)(**dict(pipe.transformer.config, qk_norm=None)).eval() # which diffusers' perturbed attention leaves out
    return pipe,{k: v for k,v in call.items() if k in inspect.signature(type(pipe).__call__).parameters},site,path

@pytest.mark.parametrize('name,guidance', [(n, g) for n in perturbing for g in (False, True)])
def test_perturbed_attention(name, guidance):
    "Every row against a hook, in the order in which the pipeline takes its outputs apart; and the prompts' own against a run without"
    n = 2
    pipe,call,site,path = perturbed(name, guidance, n)
    kinds = [u, c, p] if guidance else [c, p]
    take = images_second if name=='sd3' else lambda o: o[0] if isinstance(o, tuple) else o
    raw = [x.split(n) for x in by_hook(pipe, path, dict(call, pag_scale=3.), n, take=take)]
    rec = fi.record(pipe, None, site, num_inference_steps=steps, guidance=kinds, batch_size=n, pag_scale=3., **call)[site]
    assert len(rec)==n*len(kinds) and set(rec.rows.guidance)==set(kinds)
    for i,k in enumerate(kinds): assert torch.equal(rec.select(guidance=k).x, torch.stack([blocks[i] for blocks in raw], 1)), k
    plain = fi.record(pipe, None, site, num_inference_steps=steps, steps=0, batch_size=n, pag_scale=0., **call)[site].x
    assert torch.allclose(rec.select(guidance=c, step=0).x, plain, atol=1e-4) # before guidance can act
    assert (rec.select(guidance=p, step=0).x-plain).abs().max()>1e-3
    before = by_hook(pipe, path, dict(call, pag_scale=0.), n, take=take)
    fi.record(pipe, None, site, num_inference_steps=steps, steps=0, guidance=p, batch_size=n, pag_scale=3., **call) # left early: the layers' own attention is back
    after = by_hook(pipe, path, dict(call, pag_scale=0.), n, take=take)
    assert all(torch.equal(x, y) for x,y in zip(before, after))

@pytest.mark.parametrize('guidance', [False, True])
def test_edits_of_one_kind_of_rows(guidance):
    pipe,call,_,_ = perturbed('sdxl', guidance)
    call = dict(call, pag_scale=3.)
    directions = fi.random_directions(torch.randn(100, 16), 20, 3)
    clean = by_hook(pipe, 'mid_block.attentions.0', call, 2, 1)[0]
    blocks = len(clean)//2
    for i,k in enumerate([u, c, p] if guidance else [c, p]):
        with fi.steer(pipe, [fi.Add(directions, 3, strength=5., site='mid.0', guidance=k)]): seen = by_hook(pipe, 'mid_block.attentions.0', call, 2, 1)[0]
        moved = (seen-clean).flatten(1).abs().amax(1).view(blocks, 2)
        assert (moved[i]>1e-2).all() and moved[torch.arange(blocks)!=i].max()<1e-6, (k, moved)
    with pytest.raises(ValueError, match='switch perturbed-attention guidance on'):
        with fi.steer(pipe, [fi.Add(directions, 3, site='mid.0', guidance=p)]): by_hook(pipe, 'mid_block', dict(call, pag_scale=0.), 2, 1)

def test_maps_of_perturbed_attention():
    "Its layers compute no weights for the perturbed rows: the others are the right ones, and these are said to be missing"
    pipe,call,_,_ = perturbed('sdxl', True)
    call = dict(call, num_inference_steps=steps, steps=0)
    site = 'mid.0.0.attn.map'
    rec = fi.record(pipe, None, site, guidance='both', pag_scale=3., **call)[site]
    plain = fi.record(pipe, None, site, guidance='both', pag_scale=0., **call)[site]
    assert torch.allclose(rec.x, plain.x, atol=1e-5) and rec.rows.equals(plain.rows) and not torch.allclose(rec.x[0], rec.x[1], atol=1e-5)
    with pytest.raises(ValueError, match='no perturbed rows in step 0'): fi.record(pipe, None, site, guidance=p, pag_scale=3., **call)

def test_perturbed_rows_in_a_store(tmp_path):
    pipe,call,site,_ = perturbed('sd', True)
    call = dict(call, num_inference_steps=steps, pag_scale=3., guidance=[c, p])
    rec = fi.record(pipe, None, site, **call)[site]
    prompts = [f'prompt {i}' for i in range(2)]
    data = fi.harvest(pipe, prompts, [site], tmp_path/'store', dtype='float32', progress=False, **call).site(site)
    x,coords = next(iter(data.batches(rec.x[...,0].numel(), seed=None)))
    assert torch.equal(x.sort(0).values, rec.tokens.sort(0).values)
    for i,k in ((0, c), (2, p)): assert torch.equal(x[coords['guidance']==i].sort(0).values, rec.select(guidance=k).tokens.sort(0).values)

# calls that leave layers out

def test_skip_layer_guidance():
    n,pipe = 2,miniature('sd3')
    call = dict(miniature_call('sd3', n, True), skip_guidance_layers=[1], skip_layer_guidance_start=.2, skip_layer_guidance_stop=.9)
    raw = by_hook(pipe, 'transformer_blocks.0', call, n, 4, images_second)
    assert [len(x) for x in raw]==[4, 4, 2, 4, 2, 4, 2] # in steps 1 to 3 a call more
    whole,less = [x for x in raw if len(x)==4],[x for x in raw if len(x)==2]
    kept = dict(num_inference_steps=4, batch_size=n)
    rec = fi.record(pipe, None, 'blocks.0.image', guidance='both', **kept, **call)['blocks.0.image']
    for i,k in enumerate((u, c)): assert torch.equal(rec.select(guidance=k).x, torch.stack([x.split(n)[i] for x in whole], 1))
    out = fi.record(pipe, None, 'blocks.2.image', guidance=[c, p], steps=[1, 2, 3], **kept, **call)['blocks.2.image']
    assert torch.equal(fi.record(pipe, None, 'blocks.0.image', guidance=p, steps=[1, 2, 3], **kept, **call)['blocks.0.image'].x, torch.stack(less, 1))
    assert (out.select(guidance=p).x-out.select(guidance=c).x).abs().max()>1e-3
    for site,window in (('blocks.0.image', None), ('blocks.1.image', [1, 2, 3])): # no such call in step 0; and the layer that is left out
        with pytest.raises(ValueError, match='skip_guidance_layers'): fi.record(pipe, None, site, guidance=p, steps=window, **kept, **call)
    directions = fi.random_directions(torch.randn(100, 32), 20, 3)
    with fi.steer(pipe, [fi.Add(directions, 3, strength=5., site='blocks.0.image', guidance=c, steps=1)]): seen = by_hook(pipe, 'transformer_blocks.0', call, n, 4, images_second)
    assert torch.equal(seen[2], raw[2]) and torch.equal(seen[1][:n], raw[1][:n]) and not torch.equal(seen[1][n:], raw[1][n:])

@pytest.mark.parametrize('guidance', [False, True])
def test_self_attention_guidance(guidance):
    "A call more on a blurred image, with the text of the negative prompts where there are any"
    n,pipe = 2,miniature('sd', pipeline='StableDiffusionSAGPipeline')
    call = dict(miniature_call('sd', n, guidance), sag_scale=.75)
    raw = by_hook(pipe, 'up_blocks.1.attentions.2', call, n)
    assert [len(x) for x in raw]==[2*n if guidance else n, n]*steps
    kinds = [u, c] if guidance else [c]
    rec = fi.record(pipe, None, 'up.1.2.output', num_inference_steps=steps, guidance=[*kinds, p], batch_size=n, **call)['up.1.2.output']
    for i,k in enumerate(kinds): assert torch.equal(rec.select(guidance=k).x, torch.stack([x.split(n)[i] for x in raw[::2]], 1))
    assert torch.equal(rec.select(guidance=p).x, torch.stack(raw[1::2], 1))
    fi.record(pipe, None, 'up.1.2.output', num_inference_steps=steps, steps=0, **call) # left early: the attention that it reads is taken out
    assert len({type(m) for m in pipe.unet.attn_processors.values()})==1

# denoisers without an entry

@pytest.mark.parametrize('kind', ['aura', 'cogview4'])
def test_guidance_of_unknown_denoisers(kind):
    "In one batch or in two calls: by the texts of the rows; refused where these are not recognized"
    from test_families import fallback
    pipe,call = fallback(kind)
    call |= dict(guidance_scale=3., negative_prompt_embeds=torch.randn(2, 6, 16))
    if kind=='aura': call['negative_prompt_attention_mask'] = torch.ones(2, 6, dtype=torch.long)
    main, = [s for s in fi.list_sites(pipe) if s.name=='blocks.1']
    raw = by_hook(pipe, main.path.partition('.')[2], call, 2)
    rec = fi.record(pipe, None, main.name, num_inference_steps=steps, guidance='both', **call)[main.name]
    if kind=='aura': by_kind = {u: torch.stack([x[:2] for x in raw], 1), c: torch.stack([x[2:] for x in raw], 1)}
    else: by_kind = {c: torch.stack(raw[::2], 1), u: torch.stack(raw[1::2], 1)}
    for k,x in by_kind.items(): assert torch.equal(rec.select(guidance=k).x, x)
    if kind=='cogview4': return
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kwargs: encode(*args, **kwargs) # nothing says that it encodes both
    with pytest.raises(NotImplementedError, match='switch guidance off'): fi.record(pipe, None, main.name, num_inference_steps=steps, **call)

def test_three_blocks_without_a_reason():
    "Image editing by instructions: prompt, image alone, neither"
    pipe = miniature('sd', pipeline='StableDiffusionInstructPix2PixPipeline')
    call = {k: v for k,v in miniature_call('sd', 1, True).items() if k not in ('height', 'width')}
    pipe.unet = type(pipe.unet)(**dict(pipe.unet.config, in_channels=8)).eval()
    image = Image.fromarray(np.zeros((48, 80, 3), np.uint8))
    with pytest.raises(NotImplementedError, match='3 rows for 1 images'): fi.record(pipe, None, 'mid.0', num_inference_steps=steps, image=image, image_guidance_scale=1.5, **call)

def test_a_site_with_other_rows_than_the_batch():
    pipe,call = miniature('sd'),miniature_call('sd', 2)
    site = fi.Site(path='unet.time_proj')
    class Doubled(torch.nn.Module):
        def forward(self, x): return x.repeat(2, 1)[:,None]
    pipe.unet.doubled = Doubled()
    h = pipe.unet.time_proj.register_forward_hook(lambda m,a,o: (pipe.unet.doubled(o), None)[1])
    with pytest.raises(ValueError, match='rows are not those of the batch'): fi.record(pipe, None, fi.Site(path='unet.doubled', width=8), num_inference_steps=steps, **call)
    h.remove()

# what a call is conditioned on

def with_adapters(pipe, count):
    "Random IP-Adapters, which take image embeddings of width 8 and give 4 tokens"
    torch.manual_seed(0)
    states = []
    for _ in range(count):
        proj = {'proj.weight': torch.randn(64, 8), 'proj.bias': torch.zeros(64), 'norm.weight': torch.ones(16), 'norm.bias': torch.zeros(16)}
        state,key = dict(image_proj=proj, ip_adapter={}),1
        for name in pipe.unet.attn_processors:
            if 'attn2' not in name: continue
            width = pipe.unet.get_submodule(name.rsplit('.', 1)[0]).inner_dim
            for k in 'kv': state['ip_adapter'][f'{key}.to_{k}_ip.weight'] = torch.randn(width, 16)*.1
            key += 2
        states.append(state)
    pipe.unet._load_ip_adapter_weights(states)
    return pipe

@pytest.mark.parametrize('count,guidance', [(1, False), (2, False), (1, True), (2, True)])
def test_ip_adapters(count, guidance):
    "Embeddings are one tensor an adapter, for all prompts: rows of a hook, in batches of any size"
    n,pipe = 2,with_adapters(miniature('sdxl'), count)
    call = dict(miniature_call('sdxl', n, guidance), ip_adapter_image_embeds=[torch.randn(1+guidance, 1, 8) for _ in range(count)])
    raw = by_hook(pipe, 'mid_block.attentions.0', call, n)
    kinds = [u, c] if guidance else [c]
    for size in (n, 1):
        rec = fi.record(pipe, None, 'mid.0.output', num_inference_steps=steps, guidance=kinds, batch_size=size, **call)['mid.0.output']
        for i,k in enumerate(kinds): assert torch.allclose(rec.select(guidance=k).x, torch.stack([x.split(n)[i] for x in raw], 1), atol=0 if size==n else 1e-4)
    other = dict(call, ip_adapter_image_embeds=[torch.randn_like(e) for e in call['ip_adapter_image_embeds']])
    assert (by_hook(pipe, 'mid_block.attentions.0', other, n)[0]-raw[0]).abs().max()>1e-3 # they matter
    batches = PromptBatches(pipe, None, call, num_images_per_prompt=2)
    several = fi.record(pipe, None, 'mid.0.output', num_inference_steps=steps, num_images_per_prompt=2, **call)['mid.0.output']
    assert torch.allclose(several.x[::2], rec.select(guidance=c).x, atol=1e-4) and len(batches.arguments([0])['ip_adapter_image_embeds'])==count

@pytest.mark.parametrize('several', [False, True])
def test_control_nets(several):
    "A control image for each prompt; with several networks an image for each network"
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
    n,sd = 2,miniature('sd')
    torch.manual_seed(0)
    nets = [ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(8, 16)).eval() for _ in range(2)]
    for net in nets:
        for part in (net.controlnet_down_blocks, net.controlnet_cond_embedding.conv_out): # zero in the beginning
            for q in part.parameters(): q.data.normal_(std=.1)
    parts = {k: v for k,v in sd.components.items() if k!='image_encoder'}
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=nets if several else nets[0], requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (48, 80, 3), dtype=np.uint8)) for _ in range(2)]
    call = dict(miniature_call('sd', n, True), image=images)
    raw = by_hook(pipe, 'up_blocks.1.attentions.2', call, n)
    for size in (n, 1):
        rec = fi.record(pipe, None, 'up.1.2.output', num_inference_steps=steps, batch_size=size, **call)['up.1.2.output']
        assert torch.allclose(rec.x, torch.stack([x[n:] for x in raw], 1), atol=0 if size==n else 1e-4)
    swapped = fi.record(pipe, None, 'up.1.2.output', num_inference_steps=steps, **dict(call, image=images[::-1]))['up.1.2.output']
    assert (swapped.x-rec.x).abs().max()>1e-4 # the images matter

def picture(h=48, w=80, seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (h, w, 3), dtype=np.uint8))

@pytest.mark.parametrize('cls', ['StableDiffusionImg2ImgPipeline', 'StableDiffusionInpaintPipeline'])
def test_several_images_of_prompts_with_pictures(cls):
    "Each prompt keeps its own picture, however many images are drawn of it"
    pipe,call = miniature('sd', pipeline=cls),{k: v for k,v in miniature_call('sd', 2).items()}
    takes = inspect.signature(type(pipe).__call__).parameters
    call = {k: v for k,v in call.items() if k in takes}|dict(strength=.5, image=[picture(seed=1), picture(seed=2)])
    if 'mask_image' in takes: call['mask_image'] = [Image.fromarray((np.arange(80)[None].repeat(48, 0)<20*(i+1)).astype(np.uint8)*255) for i in range(2)]
    one = fi.record(pipe, None, 'mid.0', num_inference_steps=4, **call)['mid.0']
    for size in (2, 1):
        many = fi.record(pipe, None, 'mid.0', num_inference_steps=4, num_images_per_prompt=2, batch_size=size, **call)['mid.0']
        assert torch.allclose(many.x[::2], one.x, atol=1e-4)

def test_refiner():
    "Its rows and steps; it takes other sizes than the base model, and an aesthetic score"
    pipe = miniature('sdxl', pipeline='StableDiffusionXLImg2ImgPipeline')
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pipe.unet = type(pipe.unet)(**dict(pipe.unet.config, projection_class_embeddings_input_dim=5*4+8)).eval()
    pipe.register_to_config(requires_aesthetics_score=True)
    n,call = 2,{k: v for k,v in miniature_call('sdxl', 2, True).items() if k not in ('height', 'width')}
    call |= dict(image=[picture(seed=1), picture(seed=2)], strength=.5)
    raw = by_hook(pipe, 'mid_block.attentions.0', call, n, 4)
    rec = fi.record(pipe, None, 'mid.0.output', num_inference_steps=4, guidance='both', **call)['mid.0.output']
    assert len(raw)==2==len(rec.steps)
    for i,k in enumerate((u, c)): assert torch.equal(rec.select(guidance=k).x, torch.stack([x.split(n)[i] for x in raw], 1))

# one list of arguments for whatever draws

captions = ['a red circle', 'a blue star']

@pytest.fixture(scope='module')
def tiny(): return fi.load_pipeline('tiny-flux')

def drawing(tiny): # whatever draws images, with its arguments
    sae = fi.load_dictionary('tiny-flux/double.1.image')
    return dict(record=lambda **k: fi.record(tiny, captions, 'double.1.image', **k), harvest=lambda **k: fi.harvest(tiny, captions, ['double.1.image'], 'never-made', **k),
                activation_map=lambda **k: fi.activation_map(tiny, sae, 8, captions, **k), generate=lambda **k: fi.generate(tiny, captions, **k),
                splice=lambda **k: fi.splice(tiny, sae, captions, **k), ablate_blocks=lambda **k: fi.ablate_blocks(tiny, captions, **k), scan_words=lambda **k: scan_words(tiny, captions[0], fi.Box(0, 0, 1, .5), **k),
                feature_images=lambda **k: feature_images(tiny, sae, [8], [1.], **k), intervention=lambda **k: Intervention(tiny, sae, **k), scan_top=lambda **k: fi.scan_top(tiny, sae, captions, **k))

def test_reserved_and_misspelt_arguments(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    h = tiny.transformer.register_forward_pre_hook(lambda m,a: calls.append(1))
    for name,f in drawing(tiny).items():
        for given,said in ((dict(generator=torch.Generator()), 'seed='), (dict(output_type='np'), 'PIL images'), (dict(return_dict=False), 'an object'), (dict(hieght=64), 'did you mean height='), (dict(num_inference_step=4), 'did you mean num_inference_steps='), (dict(loud=True), 'no such argument')):
            with pytest.raises(TypeError, match=said) as e: f(**given)
            assert len(str(e.value))<200 and '\n' not in str(e.value), (name, given)
    h.remove()
    assert not calls and not list(tmp_path.iterdir()) # nothing was drawn, nothing written

def test_counts_that_are_none(tiny, tmp_path, monkeypatch):
    "No count is put in another's place without a word"
    monkeypatch.chdir(tmp_path) # where harvest makes its folder
    every = drawing(tiny)
    for name in ('record', 'harvest', 'activation_map', 'generate', 'splice'):
        for given in (dict(num_inference_steps=0), dict(batch_size=0), dict(batch_size='big'), dict(seed=-1), dict(seed=[1, 2]), dict(num_images_per_prompt=0), dict(num_images_per_prompt=True)):
            with pytest.raises(ValueError, match=f'{next(iter(given))}.* number'): every[name](**given)
    counts = dict(num_inference_steps=1, batch_size=1, seed=3, num_images_per_prompt=2)
    assert torch.equal(every['record'](**{k: np.int64(v) for k,v in counts.items()})['double.1.image'].x, every['record'](**counts)['double.1.image'].x)

def same_images(a, b): return len(a)==len(b) and all(np.abs(np.asarray(x).astype(int)-np.asarray(y)).max()<=2 for x,y in zip(a, b))

def test_whatever_draws_draws_the_same(tiny):
    "Several images, arguments of each prompt, prompts as embeddings: the images of record and generate, in batches of any size"
    embeds,pooled,_ = tiny.encode_prompt(captions, None)
    latents = torch.randn(4, 256, 64, generator=torch.Generator().manual_seed(1))
    for prompts,call in ((captions, {}), (captions, dict(num_images_per_prompt=2)), (captions, dict(negative_prompt=['a star', 'a square'], true_cfg_scale=2.)), (None, dict(prompt_embeds=embeds, pooled_prompt_embeds=pooled, num_images_per_prompt=2)),
                         (captions, dict(num_images_per_prompt=2, latents=latents)), (captions, dict(negative_prompt='a star', true_cfg_scale=2., num_images_per_prompt=2))):
        kept = fi.record(tiny, prompts, 'double.1.image', num_inference_steps=2, images=True, **call).images
        for size in (1, 'auto'):
            drawn = fi.generate(tiny, prompts, num_inference_steps=2, batch_size=size, **call)
            assert same_images(drawn.images, kept) and len(drawn.captions)==len(kept), call
    assert not same_images(kept[::2], kept[1::2])
    m = fi.activation_map(tiny, fi.load_dictionary('tiny-flux/double.1.image'), 8, captions, num_images_per_prompt=2, num_inference_steps=2)
    assert m.values.shape[0]==len(m.images)==4 and m.captions==[captions[0]]*2+[captions[1]]*2

def test_harvest_takes_what_record_takes(tmp_path):
    "Pictures to begin with, one a prompt, several images each; and they belong to the store"
    pipe = miniature('sd', pipeline='StableDiffusionImg2ImgPipeline')
    call = {k: v for k,v in miniature_call('sd', 2).items() if k not in ('height', 'width')}|dict(image=[picture(seed=1), picture(seed=2)], strength=.5, num_images_per_prompt=2, num_inference_steps=4)
    rec = fi.record(pipe, captions, 'mid.0', **call)['mid.0']
    store = fi.harvest(pipe, captions, ['mid.0'], tmp_path/'s', dtype='float32', progress=False, batch_size=1, **call)
    x,_ = next(iter(store.site('mid.0').batches(rec.x[...,0].numel(), seed=None)))
    assert torch.allclose(x.sort(0).values, rec.tokens.sort(0).values, atol=1e-4)
    with pytest.raises(fi.StoreError, match='other arguments'): fi.harvest(pipe, captions, ['mid.0'], tmp_path/'s', dtype='float32', progress=False, batch_size=1, **dict(call, image=[picture(seed=1), picture(seed=3)]))
