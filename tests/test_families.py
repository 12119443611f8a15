"Every family of denoisers on a miniature of its real classes: names, grids, rows, edits, and nothing left behind"
import importlib, inspect, re

import numpy as np
import pytest
import torch

import fluxinterp as fi
from fluxinterp.activations.hooks import hooked
from fluxinterp.models.miniatures import miniature, miniature_call, miniatures
from fluxinterp.models.pipelines import denoiser_of, image_generators
from fluxinterp.models.sites import list_sites, resolve_site

names = list(miniatures)
guided = [n for n in names if n!='flux2']
steps = 2 # PixArt's pipeline makes something else of a single one

def generators(n): return image_generators(0, range(n)) # the recorder's
def draw(pipe, call, output_type='latent', n=None): return pipe(**call, num_inference_steps=steps, generator=generators(n or len(call['prompt_embeds'])), output_type=output_type).images
def hooks_of(pipe): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for p in pipe.components.values() if isinstance(p, torch.nn.Module) for m in p.modules())
def state_of(pipe): return set(pipe.__dict__),set(pipe.scheduler.__dict__)-{'_step_index', '_begin_index'}
def block_of(name): return re.match(r'(?:text(?:_\d)?|double|single|blocks|\w+_refiner|(?:down|up)\.\d+|mid)\.\d+(?:\.\d+)?', name)[0]

@pytest.mark.parametrize('name', names)
def test_names_resolve(name):
    "Every name, its other spellings, and the module paths of blocks"
    pipe = miniature(name)
    root = 'unet' if hasattr(pipe, 'unet') else 'transformer'
    for s in list_sites(pipe):
        assert resolve_site(pipe, s.name)==s
        if s.read=='output' and s.stream=='image' and s.path.count('.')<=2 and not s.name.endswith('.output'):
            assert resolve_site(pipe, s.path).name==resolve_site(pipe, s.path.removeprefix(root+'.')).name==s.name
    for other in ('input', 'output', 'update'): assert resolve_site(pipe, f'{list_sites(pipe).names[-1].removesuffix(".output")}.{other}').read==other
    with pytest.raises(ValueError, match='near it'): resolve_site(pipe, 'blocks.99.imag')

def test_unet_spellings():
    pipe = miniature('sdxl')
    for path,ours in (('unet.down_blocks.2.attentions.1', 'down.2.1'), ('unet.mid_block.attentions.0', 'mid.0'), ('up_blocks.0.attentions.0', 'up.0.0'), ('unet.up_blocks.0.attentions.1_k10_hidden5120_auxk256_bs4096_lr0.0001', 'up.0.1')):
        s = resolve_site(pipe, path)
        assert (s.name, s.read)==(ours, 'update') and resolve_site(pipe, ours+'.output').read=='output'

# grids

@pytest.mark.parametrize('name', names)
@pytest.mark.parametrize('where', [(0, 0), (1, 3), (-1, -2)])
def test_pixels_that_move_a_token(name, where, monkeypatch):
    "Noise that is changed in one token's share of the image moves that token most, at every image site of the first block"
    pipe,call = miniature(name),miniature_call(name)
    first = [s for s in list_sites(pipe) if s.stream=='image' and s.read!='input']
    sites = [s.name for s in first if block_of(s.name)==block_of(first[0].name)]
    clean = fi.record(pipe, None, sites, num_inference_steps=steps, steps=0, **call)
    module = importlib.import_module(type(pipe).__module__)
    old = module.randn_tensor
    grid = clean[sites[0]].grid
    expected = {48: {'sd': (24, 40), 'lumina2': (3, 5)}.get(name, (12, 20)), 64: (32, 48)}[call['height']]
    assert grid==expected
    r,c = (where[0]%grid[0], where[1]%grid[1])
    def bumped(shape, *args, **kwargs):
        x = old(shape, *args, **kwargs)
        h,w = shape[-2]//grid[0],shape[-1]//grid[1]
        x[...,r*h:(r+1)*h,c*w:(c+1)*w] += 5
        return x
    monkeypatch.setattr(module, 'randn_tensor', bumped)
    moved = fi.record(pipe, None, sites, num_inference_steps=steps, steps=0, **call)
    for s in sites[-1:]:
        change = (moved[s].x-clean[s].x)[0,0].norm(dim=-1).reshape(grid)
        at = np.unravel_index(int(change.argmax()), grid)
        near = 1 if name in ('sd', 'sdxl') else 0 # convolutions come first
        assert abs(at[0]-r)<=near and abs(at[1]-c)<=near, (s, at)

@pytest.mark.parametrize('name', names)
def test_pixels_that_a_token_moves(name):
    "An edit of one token at the last site moves the image there"
    pipe,call = miniature(name),miniature_call(name)
    site = [s for s in list_sites(pipe) if s.stream=='image' and s.read in ('output', 'update') and not s.name.endswith(('.attn', '.cross', '.output'))][-1]
    before = draw(pipe, call, 'np')[0]
    def push(token):
        def f(clock, x):
            grids.append(clock.grid)
            if clock.step!=steps-1: return None
            x = x.clone()
            x[:,token] += 30*x.std()*torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(0))
            return x
        return f
    grids = []
    with hooked(pipe, [(site, push(0))]): draw(pipe, call, 'np')
    rows,cols = grids[0]
    for r,c in ((0, 0), (rows-1, cols-2), (rows//2, 1)):
        with hooked(pipe, [(site, push(r*cols+c))]): moved = np.abs(draw(pipe, call, 'np')[0]-before).sum(-1)
        h,w = moved.shape[0]//rows,moved.shape[1]//cols
        share = moved.reshape(rows, h, cols, w).sum((1, 3))
        at = np.unravel_index(share.argmax(), share.shape)
        assert abs(at[0]-r)*h<=max(h, 4) and abs(at[1]-c)*w<=max(w, 4), (site.name, (r, c), at) # convolutions spread it by some pixels

# rows

def first(a, k): return a[0] if a else k['hidden_states']
def out(i): return lambda a,k,o: o[i]
def tokens(x): return x.flatten(2).transpose(1, 2) if x.ndim==4 else x
def plain(a, k, o): return o
def entering(a, k, o): return tokens(a[0])
def image_of(n): return lambda a,k,o: o[:,:n]
def after_text(a, k, o): return o[:,6:]
def text_first(a, k, o): return o[:,:6]

n_image = 12*20
mmdit = lambda b: {f'{b}.image': ('', out(1)), f'{b}.text': ('', out(0)), f'{b}.image.mlp': ('ff.net.0', plain), f'{b}.text.mlp': ('ff_context.net.0', plain)}
stack = {'down': ('down_blocks.2.attentions.1', 'down.2.1'), 'mid': ('mid_block.attentions.0', 'mid.0'), 'up': ('up_blocks.0.attentions.1', 'up.0.1')}
def unet(stacks):
    res = {}
    for path,name in stacks:
        res |= {name: (path, lambda a,k,o: tokens(o[0]-a[0])), f'{name}.output': (path, lambda a,k,o: tokens(o[0])), f'{name}.input': (path, entering), f'{name}.0': (path+'.transformer_blocks.0', plain),
                f'{name}.0.attn': (path+'.transformer_blocks.0.attn1', plain), f'{name}.0.cross': (path+'.transformer_blocks.0.attn2', plain), f'{name}.0.mlp': (path+'.transformer_blocks.0.ff.net.0', plain)}
    return res
def at(path, sites): return {n: (f'{path}.{p}'.rstrip('.'), f) for n,(p,f) in sites.items()}
flux_single = {'single.1.image.mlp': ('act_mlp', after_text), 'single.1.text.mlp': ('act_mlp', text_first)}
crossing = {'blocks.1': ('', plain), 'blocks.1.cross': ('attn2', plain)}
by_hand = { # site -> module below the denoiser, and what a hook of it takes
    'sdxl': unet(stack.values()), 'sd': unet([('down_blocks.0.attentions.1', 'down.0.1'), ('mid_block.attentions.0', 'mid.0'), ('up_blocks.1.attentions.2', 'up.1.2')]),
    'flux': at('transformer_blocks.1', mmdit('double.1'))|at('single_transformer_blocks.1', flux_single|{'single.1.image': ('', out(1)), 'single.1.text': ('', out(0))}),
    'chroma': at('transformer_blocks.1', mmdit('double.1'))|at('single_transformer_blocks.1', flux_single|{'single.1.image': ('', after_text), 'single.1.text': ('', text_first)}),
    'flux2': at('transformer_blocks.1', mmdit('double.1')|{'double.1.image.mlp': ('ff.act_fn', plain), 'double.1.text.mlp': ('ff_context.act_fn', plain)})|at('single_transformer_blocks.1', {
        'single.1.image': ('', after_text), 'single.1.text': ('', text_first), 'single.1.image.mlp': ('attn.mlp_act_fn', after_text)}),
    'sd3': at('transformer_blocks.1', mmdit('blocks.1')),
    'qwen-image': at('transformer_blocks.1', mmdit('blocks.1')|{'blocks.1.image.mlp': ('img_mlp.net.0', plain), 'blocks.1.text.mlp': ('txt_mlp.net.0', plain)}),
    'pixart': at('transformer_blocks.1', crossing|{'blocks.1.mlp': ('ff.net.0', plain)}),
    'sana': at('transformer_blocks.1', crossing|{'blocks.1.mlp': ('ff.conv_point', entering)}),
    'z-image': at('layers.1', {'blocks.1.image': ('', image_of(n_image)), 'blocks.1.text': ('', lambda a,k,o: o[:,256:262]), 'blocks.1.image.mlp': ('feed_forward.w2', lambda a,k,o: a[0][:,:n_image])})|{
        'noise_refiner.0.image': ('noise_refiner.0', image_of(n_image)), 'context_refiner.0.text': ('context_refiner.0', image_of(6)), 'context_refiner.0.text.attn': ('context_refiner.0.attention_norm2', image_of(6))},
    'lumina2': at('layers.1', {'blocks.1.image': ('', after_text), 'blocks.1.text': ('', text_first), 'blocks.1.image.mlp': ('feed_forward.linear_2', lambda a,k,o: a[0][:,6:])})|{
        'noise_refiner.0.image': ('noise_refiner.0', plain), 'context_refiner.0.text': ('context_refiner.0', plain)}}
by_hand['flux2-klein'] = by_hand['flux2']
doubled = {'sd': 'negative', 'sdxl': 'negative', 'sd3': 'negative', 'pixart': 'negative', 'sana': 'negative', 'z-image': 'prompt'} # which half of the batch is first; the others call twice, prompt first

def by_hooks(pipe, wanted, call, n): # site -> kind -> (image, step, token, width)
    "What ordinary forward hooks see in an ordinary call"
    seen,net = {s: [] for s in wanted},denoiser_of(pipe)
    def keep(s, take): return lambda m,a,k,o: seen[s].append(take(a, k, o).detach().clone())
    handles = [net.get_submodule(path).register_forward_hook(keep(s, take), with_kwargs=True) for s,(path,take) in wanted.items()]
    draw(pipe, call, n=n)
    for h in handles: h.remove()
    res = {}
    for s,xs in seen.items():
        calls = len(xs)//steps
        if calls==2: res[s] = dict(conditional=torch.stack(xs[::2], 1), unconditional=torch.stack(xs[1::2], 1))
        else:
            x = torch.stack(xs, 1)
            kinds = dict(conditional=x) if len(x)==n else dict(unconditional=x[:n], conditional=x[n:])
            res[s] = kinds
    return res

@pytest.mark.parametrize('name,guidance', [(n, g) for n in names for g in (False, True) if n in guided or not g])
def test_rows_equal_a_hand_written_hook(name, guidance):
    n,pipe,call = 3,miniature(name),miniature_call(name, 3, guidance)
    raw = by_hooks(pipe, by_hand[name], call, n)
    rec = fi.record(pipe, None, list(by_hand[name]), num_inference_steps=steps, guidance='both' if guidance else 'conditional', batch_size=n, seed=0, **call)
    for s,kinds in raw.items():
        if doubled.get(name)=='prompt' and guidance: kinds = dict(conditional=kinds['unconditional'], unconditional=kinds['conditional'])
        assert set(kinds)==({'conditional', 'unconditional'} if guidance else {'conditional'})
        for kind,x in kinds.items(): assert torch.equal(rec[s].select(guidance=kind).x, x), (s, kind)
    alone = fi.record(pipe, None, list(by_hand[name])[:1], num_inference_steps=steps, batch_size=n, steps=0, seed=0, **call) # left early, the prompt's rows
    s, = alone
    assert torch.equal(alone[s].x, rec[s].select(guidance='conditional', step=0).x)

contributions = { # site of attention -> the module that the stream enters after it, with the block's input taken away
    'sdxl': ('down.2.1.0.attn', 'down_blocks.2.attentions.1.transformer_blocks.0', 'norm2'), 'sd': ('mid.0.0.attn', 'mid_block.attentions.0.transformer_blocks.0', 'norm2'),
    'flux': ('double.1.image.attn', 'transformer_blocks.1', 'norm2'), 'chroma': ('double.1.text.attn', 'transformer_blocks.1', 'norm2_context'), 'flux2': ('double.1.image.attn', 'transformer_blocks.1', 'norm2'),
    'flux2-klein': ('double.1.text.attn', 'transformer_blocks.1', 'norm2_context'), 'sd3': ('blocks.1.image.attn', 'transformer_blocks.1', 'norm2'), 'qwen-image': ('blocks.1.image.attn', 'transformer_blocks.1', 'img_norm2'),
    'pixart': ('blocks.1.attn', 'transformer_blocks.1', 'attn2'), 'sana': ('blocks.1.attn', 'transformer_blocks.1', 'attn2'), 'z-image': ('noise_refiner.0.image.attn', 'noise_refiner.0', 'ffn_norm1'),
    'lumina2': ('blocks.1.image.attn', 'layers.1', 'ffn_norm1')}

@pytest.mark.parametrize('name', names)
def test_attention_is_what_it_adds_to_the_stream(name):
    "Stream after attention minus stream before: the gate is the right one"
    pipe,call = miniature(name),miniature_call(name)
    site,path,norm = contributions[name]
    block,seen = denoiser_of(pipe).get_submodule(path),{}
    def before(m, a, k): seen['in'] = k.get('encoder_hidden_states') if '.text' in site else first(a, k)
    def after(m, a, k): seen['out'] = first(a, k)
    handles = [block.register_forward_pre_hook(before, with_kwargs=True), getattr(block, norm).register_forward_pre_hook(after, with_kwargs=True)]
    rec = fi.record(pipe, None, site, num_inference_steps=steps, steps=steps-1, **call)[site]
    draw(pipe, call)
    for h in handles: h.remove()
    added = (seen['out']-seen['in'])
    added = added[:,:240] if name=='z-image' else added[:,6:] if name=='lumina2' else added
    assert torch.allclose(rec.x[:,0], added, atol=1e-5), (rec.x[:,0]-added).abs().max()
    assert rec.x.abs().max()>1e-3

# edits

def dead_end(s, last): return s.stream=='text' and block_of(s.name)==last # text after the last attention reaches nothing

def reaches(s, o): # whether an edit at `s` must be seen at `o`, a site of a later block
    if o.stream!='image' or (s.name.startswith('context') and o.name.startswith('noise')) or (s.name.startswith('noise') and o.name.startswith('context')): return False
    return s.stream=='image' or o.name==block_of(o.name)+'.image' # text comes to the image by attention, which neurons beside it do not see

@pytest.mark.parametrize('name', names)
def test_every_edit_changes_what_follows_and_nothing_before(name):
    pipe,call = miniature(name),miniature_call(name)
    sites = list(list_sites(pipe))
    extra = [resolve_site(pipe, f'{s.name}.{r}') for s in sites for r in ('input', 'update', 'output') if s.read=='output' and not s.name.endswith(('.attn', '.cross', '.output')) and block_of(s.name)==s.name.removesuffix('.image').removesuffix('.text')][:8]
    maps = [resolve_site(pipe, f'{s.name}.map') for s in sites if s.name.endswith(('.attn', '.cross')) and not (name=='sana' and s.name.endswith('attn'))]
    blocks = list(dict.fromkeys(block_of(s.name) for s in sites))
    if name in ('z-image', 'lumina2'): parallel = {'noise_refiner.0': {'context_refiner.0'}, 'context_refiner.0': {'noise_refiner.0'}} # the two streams alone
    else: parallel = {}
    def run(edited=None, own=None):
        seen = {}
        def read(s): return lambda clock,x: seen.setdefault(s.name, x.clone()) is None or None
        def write(clock, x):
            if clock.step: return None
            seen['old'] = x
            new = torch.full_like(x, 1/x.shape[-1]) if edited.read=='map' else x+x.std()*torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
            seen['new'] = new
            return new
        pairs = ([(edited, write), (edited, lambda clock,x: seen.setdefault('again', x.clone()) is None or None)] if edited else [])+[(s, read(s)) for s in sites]
        with hooked(pipe, pairs): return draw(pipe, call),seen
    before,clean = run()
    assert torch.equal(before, draw(pipe, call)) # reading changes nothing
    state = state_of(pipe)
    for s in sites+extra+maps:
        after,seen = run(s)
        if s.read in ('output', 'neurons', 'update') or (s.read=='attention' and not s.joint): assert torch.allclose(seen['again'], seen['new'], atol=1e-4), s
        here = blocks.index(block_of(s.name))
        for o in sites:
            at = blocks.index(block_of(o.name))
            if at<here or block_of(o.name) in parallel.get(block_of(s.name), ()): assert torch.equal(seen[o.name], clean[o.name]), f'{s.name} changed {o.name} before it'
            elif at>here and reaches(s, o) and not dead_end(s, blocks[-1]): assert not torch.equal(seen[o.name], clean[o.name]), f'{s.name} did not change {o.name}'
        assert torch.equal(after, before)==dead_end(s, blocks[-1]), s.name
    assert hooks_of(pipe)==0 and state_of(pipe)==state and torch.equal(draw(pipe, call), before)

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('name', names)
def test_nothing_stays_behind(name, error):
    "Errors and Ctrl-C, in an edit and in the network, while recording and while editing, at every kind of site"
    pipe,call = miniature(name),miniature_call(name)
    sites = list(list_sites(pipe))
    kinds = {(s.read, s.stream): s for s in sites}
    maps = [f'{s.name}.map' for s in sites if s.name.endswith(('.attn', '.cross')) and name!='sana'][:1]
    before,state = draw(pipe, call),state_of(pipe)
    def fail(*a): raise error
    for s in (*kinds.values(), *maps):
        with pytest.raises(error):
            with hooked(pipe, [(s, fail)]): draw(pipe, call)
        assert hooks_of(pipe)==0 and state_of(pipe)==state
    h = denoiser_of(pipe).get_submodule(sites[-1].path.partition('.')[2]).register_forward_hook(fail)
    with pytest.raises(error): fi.record(pipe, None, [sites[0].name, *maps], num_inference_steps=steps, images=True, **call)
    h.remove()
    assert hooks_of(pipe)==0 and state_of(pipe)==state and torch.equal(draw(pipe, call), before)

# denoisers without an entry

def fallback(kind):
    import diffusers
    from fluxinterp.models.miniatures import _autoencoder, _scheduler
    torch.manual_seed(0)
    heads = dict(sample_size=32, patch_size=2, in_channels=4, out_channels=4, attention_head_dim=16, num_attention_heads=2)
    if kind=='aura':
        net = diffusers.AuraFlowTransformer2DModel(**heads, num_mmdit_layers=2, num_single_dit_layers=3, joint_attention_dim=16, caption_projection_dim=32, pos_embed_max_size=1024)
        pipe,call = diffusers.AuraFlowPipeline,dict(prompt_attention_mask=torch.ones(2, 6, dtype=torch.long))
    else:
        net = diffusers.CogView4Transformer2DModel(**heads, num_layers=3, text_embed_dim=16, time_embed_dim=16, condition_dim=4, rope_axes_dim=(32, 32))
        pipe,call = diffusers.CogView4Pipeline,dict(original_size=(48, 80), crops_coords_top_left=(0, 0))
    pipe = pipe(tokenizer=None, text_encoder=None, vae=_autoencoder('kl').eval(), transformer=net.eval(), scheduler=_scheduler('flow'))
    pipe.set_progress_bar_config(disable=True)
    return pipe,call|dict(prompt_embeds=torch.randn(2, 6, 16), guidance_scale=1., height=48 if kind=='aura' else 64, width=80 if kind=='aura' else 96)

@pytest.mark.parametrize('kind', ['aura', 'cogview4'])
def test_fallback(kind):
    "Block lists are found, rows are a hook's, edits leave nothing behind"
    pipe,call = fallback(kind)
    sites = list_sites(pipe)
    main = [s for s in sites if s.name.startswith('blocks.') and s.name.count('.')==1]
    assert len(main)==3
    seen,net = [],pipe.transformer
    h = net.get_submodule(main[1].path.partition('.')[2]).register_forward_hook(lambda m,a,o: seen.append(o[0] if isinstance(o, tuple) else o))
    before = draw(pipe, call)
    h.remove()
    rec = fi.record(pipe, None, main[1].name, num_inference_steps=steps, **call)[main[1].name]
    assert torch.equal(rec.x, torch.stack(seen, 1))
    assert rec.grid==(None if kind=='aura' else (16, 24)) # AuraFlow's later blocks hold text and image in one sequence, which the fallback does not know
    for s in sites:
        with hooked(pipe, [(s, lambda clock,x: x+1)]): assert not torch.equal(draw(pipe, call), before), s
    assert hooks_of(pipe)==0 and torch.equal(draw(pipe, call), before)

def test_unknown_denoiser():
    import diffusers
    net = diffusers.UNet2DModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, down_block_types=('DownBlock2D',)*2, up_block_types=('UpBlock2D',)*2)
    pipe = diffusers.DDPMPipeline(unet=net, scheduler=diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match='UNet2DModel is not known'): list_sites(pipe)
    with pytest.raises(TypeError, match='expected a diffusers pipeline'): list_sites(net)

# pipelines that begin with an image

pictures = [('sd', 'StableDiffusionImg2ImgPipeline'), ('sd', 'StableDiffusionInpaintPipeline'), ('sdxl', 'StableDiffusionXLImg2ImgPipeline'), ('sdxl', 'StableDiffusionXLInpaintPipeline'), ('sd3', 'StableDiffusion3Img2ImgPipeline'),
            ('flux', 'FluxImg2ImgPipeline'), ('flux', 'FluxInpaintPipeline'), ('flux', 'FluxKontextPipeline'), ('chroma', 'ChromaImg2ImgPipeline'), ('flux2', 'Flux2Pipeline'), ('flux2-klein', 'Flux2KleinPipeline'),
            ('flux2-klein', 'Flux2KleinKVPipeline'), ('flux2-klein', 'Flux2KleinInpaintPipeline'), ('qwen-image', 'QwenImageImg2ImgPipeline'), ('qwen-image', 'QwenImageInpaintPipeline'), ('qwen-image', 'QwenImageEditPipeline'),
            ('qwen-image', 'QwenImageEditPlusPipeline'), ('z-image', 'ZImageImg2ImgPipeline'), ('z-image', 'ZImageInpaintPipeline')]

@pytest.mark.parametrize('name,cls', pictures, ids=lambda v: v)
def test_pipelines_that_begin_with_a_picture(name, cls, monkeypatch):
    "Image-to-image, inpainting and editing: only the steps that are made, only the tokens of the image, the rows of a hook"
    from PIL import Image
    pipe = miniature(name, pipeline=cls)
    takes,rng = inspect.signature(type(pipe).__call__).parameters,np.random.default_rng(0)
    reference = 'strength' not in takes
    h,w = (64, 96) if reference else (48, 80) # of the image given
    n = 1 if 'EditPlus' in cls else 2
    call = {k: v for k,v in miniature_call(name, n).items() if k in takes}|dict(image=Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)))
    if 'mask_image' in takes: call['mask_image'] = Image.fromarray((np.arange(w)[None].repeat(h, 0)<w//2).astype(np.uint8)*255)
    if 'strength' in takes: call['strength'] = .5
    if 'Kontext' in cls: call |= dict(_auto_resize=False, max_area=48*80)
    if 'QwenImageEdit' in cls: monkeypatch.setattr(importlib.import_module(type(pipe).__module__), 'calculate_dimensions', lambda area, ratio: (w, h) if 'Plus' in cls else (w, h, None)) # else a megapixel
    made = 4 if reference else 2
    each = dict(call) if name in ('flux2', 'flux2-klein', 'qwen-image') and reference else dict(call, **{k: [call[k]]*n for k in ('image', 'mask_image') if k in call}) # one a prompt, noised by its own generator
    def go(): return pipe(**each, num_inference_steps=4, generator=generators(n), output_type='latent').images
    block = {'sd': 'mid_block.attentions.0', 'sdxl': 'up_blocks.0.attentions.1', 'z-image': 'layers.1', 'flux': 'transformer_blocks.1', 'chroma': 'transformer_blocks.1', 'flux2': 'transformer_blocks.1', 'flux2-klein': 'transformer_blocks.1'}.get(name, 'transformer_blocks.1')
    site = {'sd': 'mid.0.output', 'sdxl': 'up.0.1.output', 'z-image': 'blocks.1', 'sd3': 'blocks.1', 'qwen-image': 'blocks.1'}.get(name, 'double.1')
    seen = []
    first = 384 if cls=='Flux2KleinKVPipeline' else 0 # this one puts the reference before the image, in the first step
    def keep(m, a, k, o):
        x = o[1] if name not in ('sd', 'sdxl', 'z-image') else o if name=='z-image' else tokens(o[0])
        f = first if not seen else 0
        seen.append(x[:,f:f+240] if name!='sd' else x)
    handle = denoiser_of(pipe).get_submodule(block).register_forward_hook(keep, with_kwargs=True)
    before = go()
    handle.remove()
    last = [s.name for s in list_sites(pipe, 48, 80) if s.stream=='image' and s.name.endswith(('.attn', '.mlp'))][-2:] if not reference or name!='sd' else []
    rec = fi.record(pipe, None, [site, *last], num_inference_steps=4, batch_size=2, **call)
    r = next(iter(rec.values()))
    assert len(seen)==made==len(r.steps) and r.steps==list(range(made)) and r.grid==((6, 10) if name=='sdxl' else (12, 20))
    assert torch.equal(r.x, torch.stack(seen, 1))
    assert all(v.x.shape[2]==240 for v in rec.values()) or name in ('sd', 'sdxl')
    assert (r.levels[0]<.97)==(not reference)
    state = state_of(pipe)
    for s in [site, *last]:
        with hooked(pipe, [(s, lambda clock,x: x+x.std()*torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))]): assert not torch.equal(go(), before), s
    assert hooks_of(pipe)==0 and state_of(pipe)==state and torch.equal(go(), before)
    assert torch.equal(fi.record(pipe, None, site, num_inference_steps=4, batch_size=2, **each)[r.site.name].x, r.x)
    assert torch.allclose(fi.record(pipe, None, site, num_inference_steps=4, batch_size=1, **call)[r.site.name].x, r.x, atol=1e-4) # whatever shares the batch

# end to end, and bad input

@pytest.mark.parametrize('name,site', [('sdxl', 'down.2.1'), ('sdxl', 'up.0.1'), ('sd', 'up.1.1'), ('pixart', 'blocks.0'), ('qwen-image', 'blocks.1.image'), ('flux2', 'single.0.image')])
def test_record_dictionary_map_and_steer(name, site, tmp_path):
    "The whole road: sites, recording, a dictionary, its maps over previews, steering inside a box"
    pipe,call = miniature(name),miniature_call(name, 2)
    rec = fi.record(pipe, None, site, num_inference_steps=3, images=True, previews=True, **call)
    r = rec[site]
    assert len(rec.images)==2 and [len(p) for p in rec.previews]==[3, 3] and rec.previews[0][0].size==(80, 48)
    if name!='flux2': # the last preview is the image, up to the autoencoder's rounding, where the last step leads to noise level 0
        assert np.abs(np.asarray(rec.previews[0][-1]).astype(int)-np.asarray(rec.images[0]).astype(int)).mean()<8
    d = fi.coordinates(r, 4)
    maps = fi.maps_from(rec, d, 2)
    assert maps.values.shape==(2, 3, *r.grid)
    before = draw(pipe, call)
    box = fi.Box(0, 0, .5, .5)
    with fi.steer(pipe, [fi.Add(d, 2, strength=20., region=box)], guard=True) as run:
        assert not torch.equal(draw(pipe, call), before)
        moved = fi.record(pipe, None, site, num_inference_steps=3, steps=0, **call)[site]
    assert run.report.site.unique().tolist()==[site]
    change = (moved.x-r.x[:,:1])[0,0].norm(dim=-1).reshape(r.grid)
    mask = torch.as_tensor(box.mask(r.grid))
    assert torch.allclose(change, 20*mask*d.write_directions[2].norm(), atol=1e-3)
    assert hooks_of(pipe)==0 and torch.equal(draw(pipe, call), before)
    r.save(tmp_path/'r.safetensors')
    assert fi.SiteRecord.load(tmp_path/'r.safetensors').site==r.site

def test_maps_equal_the_weights_of_the_attention_module():
    "Against the module's own arithmetic: queries, keys and scores by its methods"
    pipe,call = miniature('sdxl'),miniature_call('sdxl')
    seen = {}
    attn = pipe.unet.down_blocks[2].attentions[1].transformer_blocks[0].attn2
    h = attn.register_forward_pre_hook(lambda m,a,k: seen.setdefault('call', (a, k)) and None, with_kwargs=True)
    m = fi.record(pipe, None, ['down.2.1.0.cross.map', 'down.2.1.0.attn.map'], num_inference_steps=2, steps=0, **call)
    h.remove()
    (x,),k = seen['call']
    with torch.no_grad():
        q,key = attn.head_to_batch_dim(attn.to_q(x)),attn.head_to_batch_dim(attn.to_k(k['encoder_hidden_states']))
        scores = attn.get_attention_scores(q, key).view(1, attn.heads, 60, 6).mean(1)
    assert torch.allclose(m['down.2.1.0.cross.map'].x[:,0], scores, atol=1e-6)
    assert m['down.2.1.0.attn.map'].x.shape==(1, 1, 60, 60) and m['down.2.1.0.attn.map'].grid==(6, 10)

@pytest.mark.parametrize('name,text', [('flux', 'first'), ('sd3', 'last'), ('qwen-image', 'first'), ('z-image', 'last')])
def test_maps_of_joint_attention(name, text, monkeypatch):
    "Rows of a stream are its own tokens, in the order the family puts them in: changing one text token's weights moves that token"
    pipe,call = miniature(name),miniature_call(name)
    block = 'double.0' if name=='flux' else 'blocks.0'
    rec = fi.record(pipe, None, [f'{block}.image.attn.map', f'{block}.text.attn.map'], num_inference_steps=2, steps=0, **call)
    keys = 288 if name=='z-image' else 246 # Z-Image pads both streams to multiples of 32
    assert rec[f'{block}.image.attn.map'].x.shape==(1, 1, 240, keys) and rec[f'{block}.text.attn.map'].x.shape==(1, 1, 6, keys)
    site = {'flux': 'double.0.text.attn'}.get(name, 'blocks.0.text.attn')
    clean = fi.record(pipe, None, [site, site.replace('text', 'image')], num_inference_steps=2, steps=0, **call)
    def push(clock, m):
        if clock.step: return None
        m = m.clone(); m[:,3] = m[:,3].flip(-1)
        return m
    with hooked(pipe, [(f'{block}.text.attn.map', push)]): moved = fi.record(pipe, None, [site, site.replace('text', 'image')], num_inference_steps=2, steps=0, **call)
    change = (moved[site].x-clean[site].x)[0,0].norm(dim=-1)
    assert int(change.argmax())==3 and change[[0, 1, 2, 4, 5]].max()<1e-4
    other = site.replace('text', 'image')
    assert (moved[other].x-clean[other].x).abs().max()<1e-4

def test_bad_input():
    from diffusers import FirstBlockCacheConfig
    pipe,call = miniature('flux'),miniature_call('flux')
    before = draw(pipe, call)
    with pytest.raises(ValueError, match='no unconditional rows'): fi.record(pipe, None, 'double.0.image', guidance='unconditional', num_inference_steps=2, **call)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=.5))
    with pytest.raises(ValueError, match='disable_cache'): fi.record(pipe, None, 'single.0.image', num_inference_steps=2, **call)
    pipe.transformer.disable_cache()
    assert torch.equal(draw(pipe, call), before)
    for name,height,near in (('sdxl', 44, '48 x 80'), ('sd3', 50, '48 x 80'), ('qwen-image', 50, '48 x 80'), ('lumina2', 40, '32 x 80'), ('z-image', 46, '48 x 80')):
        small,c = miniature(name),miniature_call(name, height=height)
        with pytest.raises(ValueError, match=f'take {near}'): fi.record(small, None, list_sites(small, 48, 80).names[0], num_inference_steps=2, **c)
        assert hooks_of(small)==0
    sd3,c = miniature('sd3'),miniature_call('sd3', guidance=True)
    h = sd3.transformer.transformer_blocks[1].register_forward_hook(lambda m,a,o: None)
    with pytest.raises(RuntimeError, match='blocks.1.image was not computed in step 1'): # the block runs in the first step only
        blocks,seen = sd3.transformer.transformer_blocks,[]
        def skip(m, a): seen.append(1); sd3.transformer.transformer_blocks = blocks if len(seen)<2 else torch.nn.ModuleList([blocks[0], blocks[2]])
        g = sd3.transformer.register_forward_pre_hook(skip)
        try: fi.record(sd3, None, 'blocks.1.image', num_inference_steps=2, **c)
        finally: g.remove(); h.remove(); sd3.transformer.transformer_blocks = blocks
    assert hooks_of(sd3)==0
    sana = miniature('sana')
    with pytest.raises(ValueError, match='no site'): fi.record(sana, None, 'blocks.0.attn.map', num_inference_steps=2, **miniature_call('sana'))
    class Int8(torch.nn.Module): # a module whose numbers are codes
        def forward(self, x): return x.to(torch.int8)
    pipe.transformer.codes = Int8()
    old = pipe.transformer.norm_out.forward
    pipe.transformer.norm_out.forward = lambda x,e: (pipe.transformer.codes(x), old(x, e))[1]
    with pytest.raises(ValueError, match='quantised'):
        with hooked(pipe, [(fi.Site(path='transformer.codes'), lambda clock,x: x+1)]): draw(pipe, call)
    assert hooks_of(pipe)==0

def test_attention_beside_a_quantised_projection():
    "Attention's part of FLUX's joint projection when its weight is no matrix of numbers: by the module's own arithmetic"
    pipe,call = miniature('flux'),miniature_call('flux')
    clean = fi.record(pipe, None, 'single.0.image.attn', num_inference_steps=2, **call)['single.0.image.attn']
    class Packed(torch.nn.Module): # as the 4-bit layers: codes and a scale
        def __init__(self, l):
            super().__init__()
            self.in_features,self.out_features,self.bias = l.in_features,l.out_features,l.bias
            self.scale = l.weight.abs().max().item()/127
            self.weight = torch.nn.Parameter((l.weight/self.scale).round().to(torch.int8).flatten(), requires_grad=False)
        def forward(self, x): return torch.nn.functional.linear(x, self.weight.view(self.out_features, self.in_features)*self.scale, self.bias)
    block = pipe.transformer.single_transformer_blocks[0]
    block.proj_out = Packed(block.proj_out)
    coarse = fi.record(pipe, None, 'single.0.image.attn', num_inference_steps=2, **call)['single.0.image.attn']
    assert 0<(coarse.x-clean.x).abs().max()<.02*clean.x.abs().max()
    with hooked(pipe, [('single.0.image.attn', lambda clock,x: x+1)]): draw(pipe, call)
    assert hooks_of(pipe)==0

def test_one_picture_of_each_in_any_batch():
    "Rows do not depend on the batch, captions of different lengths included"
    for name in names:
        pipe,call = miniature(name),miniature_call(name, 3)
        if name=='z-image': call['prompt_embeds'] = [e[:k] for e,k in zip(call['prompt_embeds'], (6, 3, 5))]
        if name=='lumina2': call['prompt_attention_mask'][1,4:] = 0
        site = [s.name for s in list_sites(pipe) if s.stream=='image'][-1]
        text = [s.name for s in list_sites(pipe) if s.stream=='text'][-1:]
        a = fi.record(pipe, None, [site, *text], num_inference_steps=2, batch_size=3, **call)
        b = fi.record(pipe, None, [site, *text], num_inference_steps=2, batch_size=1, **call)
        for s in (site, *text): assert a[s].x.shape==b[s].x.shape and torch.allclose(a[s].x, b[s].x, atol=2e-4), (name, s, (a[s].x-b[s].x).abs().max())
        many = fi.record(pipe, None, site, num_inference_steps=2, batch_size=2, num_images_per_prompt=2, **call)[site]
        assert torch.allclose(many.x[::2], a[site].x, atol=2e-4) and many.rows.image.tolist()==[0, 1]*3, name
