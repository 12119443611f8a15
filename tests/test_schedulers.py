"The schedule that is run: noise levels, predicted images and steps of many schedulers, beside their own arithmetic"
import inspect, sys, types

import diffusers
import numpy as np
import pytest
import torch

import fluxinterp as fi
from fluxinterp.activations.hooks import hooked
from fluxinterp.models.miniatures import miniature, miniature_call, miniatures, random_unet_pipeline
from fluxinterp.models.pipelines import denoiser_of
from fluxinterp.models.previews import decode_latents, predicted_clean
from fluxinterp.models.sites import list_sites
from fluxinterp.models.schedulers import mixture_of, scheduler_kinds
from fluxinterp.models.steps import noise_levels

flow = dict(use_flow_sigmas=True, prediction_type='flow_prediction', flow_shift=3.)
edges = { # configurations whose timesteps or sigmas are unlike the others'
    'EulerDiscrete': [dict(timestep_spacing='trailing'), dict(use_beta_sigmas=True), dict(use_karras_sigmas=True),
                      dict(timestep_type='continuous', use_karras_sigmas=True, sigma_min=.002, sigma_max=700.)],
    'DPMSolverMultistep': [dict(use_karras_sigmas=True), dict(final_sigmas_type='sigma_min'), dict(prediction_type='sample'), flow], 'UniPCMultistep': [flow], 'DEISMultistep': [flow], 'SASolver': [flow],
    'DDIM': [dict(rescale_betas_zero_snr=True, timestep_spacing='trailing'), dict(prediction_type='sample')], 'KDPM2Discrete': [dict(use_karras_sigmas=True)], 'EDMEuler': [dict(sigma_schedule='exponential')],
    'PNDM': [dict(skip_prk_steps=True)], 'FlowMatchEulerDiscrete': [dict(shift=3.)], 'FlowMatchHeunDiscrete': [dict(shift=3.)]}
unclipped = dict(DDIM=dict(clip_sample=False), DDPM=dict(clip_sample=False), CMStochasticIterative=dict(clip_denoised=False))
names = [n.removesuffix('Scheduler') for n in scheduler_kinds if n not in ('DPMSolverSDEScheduler', 'CosineDPMSolverMultistepScheduler')] # those need torchsde
no_prediction = 'FlowMatchEulerDiscrete', 'FlowMatchHeunDiscrete', 'FlowMatchLCM', 'IPNDM', 'CMStochasticIterative', 'SCM'

def made(name, **options):
    s = getattr(diffusers, name+'Scheduler')(**unclipped.get(name.replace('Parallel', ''), {})|options)
    s.set_timesteps(5, **dict(intermediate_timesteps=None) if name=='SCM' else {})
    return s

def configurations():
    for name in names:
        for extra in ({}, *edges.get(name, ())):
            kinds = ('epsilon', 'v_prediction') if name not in no_prediction and 'prediction_type' not in extra else (None,)
            for kind in kinds: yield name,extra|(dict(prediction_type=kind) if kind else {})

def shares(name, s, i):
    "Image and noise at a step, by the function that noises images for training"
    t = s.timesteps[i:i+1]
    if name=='SCM': return float(t.cos()),float(t.sin())
    if name=='IPNDM': return float(s.alphas[i]),float(s.betas[i])
    if 'FlowMatch' in name or s.config.get('use_flow_sigmas'): return 1-float(s.sigmas[i]),float(s.sigmas[i])
    one,none = torch.ones(1, 1),torch.zeros(1, 1)
    return float(s.add_noise(one, none, t)),float(s.add_noise(none, one, t))

@pytest.mark.parametrize('name,options', configurations(), ids=str)
def test_levels(name, options):
    s = made(name, **options)
    levels,mixture = noise_levels(s),mixture_of(s)
    assert len(levels)==len(s.timesteps)-(name=='SCM') and all(0<=l<=1 for l in levels)
    assert all(a>=b for a,b in zip(levels[::2], levels[2::2])) and levels[0]>.9
    for i,level in enumerate(levels):
        if name.startswith('KDPM2') and i%2: continue # `add_noise` knows no half steps
        a,b = shares(name, s, i)
        straight = 'FlowMatch' in name or options.get('use_flow_sigmas')
        assert level==pytest.approx(b if straight else b/(a*a+b*b)**.5, abs=2e-6)
        assert (float(mixture.image[i]), float(mixture.noise[i]))==pytest.approx((a, b), rel=1e-4, abs=2e-6)

def own_clean(name, s, out, x, i):
    "The clean latents that a scheduler reckons with in a step, and its next latents"
    t,kind = s.timesteps[i],s.config.get('prediction_type')
    clean = None
    if hasattr(s, 'convert_model_output') and not name.startswith('EDM'):
        if s.step_index is None: s._init_step_index(t)
        clean = s.convert_model_output(out, sample=x)
        if name=='DEISMultistep': # it reckons with noise
            a,b = s._sigma_to_alpha_sigma_t(s.sigmas[s.step_index])
            clean = (x-b*clean)/a
    if name.startswith('EDM'): clean = s.precondition_outputs(x, out, s.sigmas[i])
    if name=='CMStochasticIterative':
        skip,scale = s.get_scalings_for_boundary_condition(s.sigmas[i])
        clean = skip*x+scale*out
    if name=='IPNDM': # its `ets` is the noise
        ets = x*s.betas[i]+out*s.alphas[i]
        clean = (x-s.betas[i]*ets)/s.alphas[i].clamp(min=1e-3)
    if 'FlowMatch' in name: clean = x-float(s.sigmas[i])*out
    if name in ('LCM', 'TCD', 'PNDM'): # LCM's own is drawn towards the sample, TCD's noised again
        a = float(s.alphas_cumprod[int(t)])
        clean = a**.5*x-(1-a)**.5*out if kind=='v_prediction' else (x-(1-a)**.5*out)/a**.5
    if not torch.is_floating_point(t) and name in ('DDPM', 'DDPMParallel', 'DDIM', 'DDIMParallel', 'TCD', 'LCM', 'PNDM'): t = int(t)
    if hasattr(s, 'scale_model_input'): s.scale_model_input(x, s.timesteps[i])
    res = s.step(out, t, x)
    if clean is None: clean = res.pred_original_sample
    return (clean/s.config.sigma_data if name=='SCM' else clean),res.prev_sample

@pytest.mark.parametrize('name,options', configurations(), ids=str)
def test_previews(name, options):
    "The predicted image is the one that the scheduler itself reckons with, at every step of a run"
    s = made(name, **options)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=g)*float(getattr(s, 'init_noise_sigma', 1.))
    infinite = options.get('rescale_betas_zero_snr') and options['prediction_type']=='epsilon' # noise alone says nothing
    for i in range(len(noise_levels(s))):
        out = .5*torch.randn(x.shape, generator=g)
        mine = predicted_clean(s, out, x, i)
        clean,x = own_clean(name, s, out, x, i)
        if infinite or (name=='IPNDM' and i==0): # there the image's share is 0
            if infinite: x = torch.randn(x.shape, generator=g)
            continue
        torch.testing.assert_close(mine, clean.float(), rtol=2e-4, atol=2e-4*float(clean.abs().max()))

def test_ipndm_begins_in_pure_noise(): # v is -x0 there
    s = made('IPNDM')
    x,v = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(predicted_clean(s, v, x, 0), -v, atol=1e-5, rtol=1e-5)

@pytest.fixture
def torchsde(monkeypatch): # two schedulers need it, for their noise alone
    monkeypatch.setitem(sys.modules, 'torchsde', types.ModuleType('torchsde'))

@pytest.mark.parametrize('kind', ['epsilon', 'v_prediction'])
def test_schedulers_with_brownian_noise(kind, torchsde):
    "The clean latents that they reckon with, without the noise; one makes half steps, the other is EDM"
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDEScheduler
    from diffusers.schedulers.scheduling_cosine_dpmsolver_multistep import CosineDPMSolverMultistepScheduler
    s = DPMSolverSDEScheduler(prediction_type=kind)
    s.set_timesteps(4)
    s.noise_sampler = lambda a, b: 0.
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))*float(s.init_noise_sigma)
    for i,t in enumerate(s.timesteps):
        out = torch.full_like(x, .3)
        mine,res = predicted_clean(s, out, x, i),s.step(out, t, x)
        torch.testing.assert_close(mine, res.pred_original_sample, rtol=1e-4, atol=1e-4)
        x = res.prev_sample
    assert all(a>b for a,b in zip(noise_levels(s), noise_levels(s)[1:]))
    s = CosineDPMSolverMultistepScheduler(prediction_type=kind)
    s.set_timesteps(4)
    assert noise_levels(s)==pytest.approx([float(v/(1+v*v)**.5) for v in s.sigmas[:4]], abs=1e-6)
    torch.testing.assert_close(predicted_clean(s, out, x, 2), s.precondition_outputs(x, out, s.sigmas[2]))

def test_an_unknown_scheduler_is_refused():
    pipe = random_unet_pipeline(diffusers.DDIMInverseScheduler())
    with pytest.raises(NotImplementedError, match='DDIMInverseScheduler.*another scheduler'):
        fi.record(pipe, None, ['mid.0'], num_inference_steps=2, prompt_embeds=torch.zeros(1, 4, 8), guidance_scale=1.)

# a device without float64

class OnApple(torch.Tensor):
    "A tensor of a device that has no float64, as Apple's GPUs"
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(f, '__name__', '')
        if name=='double' or any(a is torch.float64 for a in (*args, *kwargs.values())): raise TypeError('this device has no float64')
        with torch._C.DisableTorchFunctionSubclass():
            res = f(*[a.as_subclass(torch.Tensor) if isinstance(a, OnApple) else a for a in args], **kwargs)
        return res.as_subclass(OnApple) if torch.is_tensor(res) and name!='cpu' else res

@pytest.mark.parametrize('name', names)
def test_numbers_leave_the_device_before_they_are_float64(name):
    s = made(name)
    wanted,clean = noise_levels(s),predicted_clean(s, torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2), 1)
    for k,v in list(vars(s).items()):
        if torch.is_tensor(v): setattr(s, k, v.float().as_subclass(OnApple) if v.dtype==torch.float64 else v.as_subclass(OnApple))
    with pytest.raises(TypeError, match='no float64'): s.timesteps.double()
    assert noise_levels(s)==pytest.approx(wanted, abs=1e-6)
    torch.testing.assert_close(predicted_clean(s, torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 2), 1).as_subclass(torch.Tensor), clean)

# the steps of a pipeline's loop

def called(pipe, **call):
    "Timesteps that the denoiser is called with, by a hook that knows nothing of schedulers"
    seen = []
    def note(module, args, kwargs): seen.append(float(torch.as_tensor(kwargs['timestep'] if 'timestep' in kwargs else args[1]).flatten()[0]))
    h = denoiser_of(pipe).register_forward_pre_hook(note, with_kwargs=True)
    try: pipe(**call, output_type='latent')
    finally: h.remove()
    return seen

unet_schedulers = [n for n in names if n not in ('FlowMatchLCM', 'FlowMatchHeunDiscrete', 'SCM', 'FlowMatchEulerDiscrete')]

@pytest.mark.parametrize('name', unet_schedulers)
def test_steps_of_a_call(name):
    pipe = random_unet_pipeline(getattr(diffusers, name+'Scheduler')())
    call = dict(prompt_embeds=torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0)), guidance_scale=1., num_inference_steps=4)
    seen = called(pipe, **call)
    rec = fi.record(pipe, None, ['mid.0'], previews=True, **call)['mid.0']
    assert rec.steps==list(range(len(seen))) and rec.timesteps.tolist()==pytest.approx(seen, rel=1e-6)
    assert fi.record(pipe, None, ['mid.0'], steps=-1, **call)['mid.0'].steps==[len(seen)-1]

def refiner():
    return miniature('sdxl', pipeline='StableDiffusionXLImg2ImgPipeline')

@pytest.mark.parametrize('name', ['EulerDiscrete', 'DDIM', 'HeunDiscrete', 'DPMSolverMultistep', 'PNDM', 'KDPM2Discrete'])
def test_base_and_refiner(name, tmp_path):
    "The base makes the first steps of a schedule, the refiner the last ones; recorded, harvested and edited are those"
    base,fine = miniature('sdxl'),refiner()
    for p in (base, fine): p.scheduler = getattr(diffusers, name+'Scheduler')()
    call = miniature_call('sdxl', n=1, height=32, width=32)|dict(num_inference_steps=5)
    first,second = call|dict(denoising_end=.6),{k: v for k,v in call.items() if k not in ('height', 'width')}|dict(denoising_start=.6)
    latents = base(**first, output_type='latent').images
    whole = made(name)
    whole.set_timesteps(5)
    levels = noise_levels(whole)
    for p,arguments in ((base, first), (fine, second|dict(image=latents))):
        seen = called(p, **arguments)
        rec = fi.record(p, None, ['mid.0'], previews=True, **arguments)['mid.0']
        n = len(seen)
        assert rec.steps==list(range(n)) and rec.timesteps.tolist()==pytest.approx(seen, rel=1e-6) and 0<n<len(levels)
        assert rec.levels==pytest.approx(levels[:n] if p is base else levels[-n:], abs=1e-6)
        last = fi.record(p, None, ['mid.0'], steps=-1, **arguments)['mid.0']
        assert last.steps==[n-1] and torch.equal(last.x[:,0], rec.x[:,-1])
        edit = fi.Add(fi.coordinates(rec, 1), 0, strength=5., site='mid.0', steps=-1)
        with fi.steer(p, edit, force=True, guard=True) as run: p(**arguments, output_type='latent')
        assert run.report.step.tolist()==[n-1] and run.report.tokens[0]>0
        with pytest.raises(ValueError, match=f'this call has {n} steps'): fi.record(p, None, ['mid.0'], steps=n, **arguments)
    if name!='EulerDiscrete': return
    store = fi.harvest(base, ['a red circle'], ['mid.0'], tmp_path/'acts', progress=False, **first)
    assert store.site('mid.0').steps==list(range(len(called(base, **first))))

def test_previews_of_a_refiner():
    "The last preview is the image"
    fine = refiner()
    call = {k: v for k,v in miniature_call('sdxl', n=1).items() if k not in ('height', 'width')}|dict(num_inference_steps=10, denoising_start=.6)
    rec = fi.record(fine, None, [], images=True, previews=True, image=torch.randn(1, 4, 24, 40, generator=torch.Generator().manual_seed(0)), **call)
    last,image = (np.asarray(i, np.float32) for i in (rec.previews[0][-1], rec.images[0]))
    assert np.abs(last-image).mean()<2

def test_a_pipeline_that_ends_early_and_does_not_say_so():
    pipe = random_unet_pipeline()
    call = dict(prompt_embeds=torch.zeros(1, 4, 8), guidance_scale=1., num_inference_steps=4)
    def interrupt(pipe, step, t, kwargs):
        pipe._interrupt = step>=1
        return kwargs
    with pytest.raises(RuntimeError, match=r'ended after 2 steps.*slice\(0, 2\)'): fi.record(pipe, None, ['mid.0'], callback_on_step_end=interrupt, **call)
    assert fi.record(pipe, None, ['mid.0'], steps=slice(0, 2), callback_on_step_end=interrupt, **call)['mid.0'].steps==[0, 1]

def test_a_loop_by_hand():
    "All of the schedule is run, whatever the pipeline's last call did; a loop that begins elsewhere is refused"
    pipe = random_unet_pipeline()
    embeds = torch.zeros(1, 4, 8)
    pipe(prompt_embeds=embeds, guidance_scale=1., num_inference_steps=2, output_type='latent')
    seen = []
    def loop(skip):
        x = torch.zeros(1, 4, 16, 16)
        for t in pipe.scheduler.timesteps[skip:]: x = pipe.scheduler.step(pipe.unet(x, t, embeds).sample, t, x).prev_sample
    with torch.no_grad(), hooked(pipe, [('mid.0', lambda clock, x: seen.append((clock.step, len(clock.levels))))]):
        pipe.scheduler.set_timesteps(5)
        loop(0)
        assert seen==[(i, 5) for i in range(5)]
        pipe.scheduler.set_timesteps(5)
        with pytest.raises(RuntimeError, match=r'made at timestep 40\d, but the schedule begins at 80\d'): loop(2)

# Sana Sprint

def sana_sprint():
    base = miniature('sana')
    config = dict(miniatures['sana'].config)|dict(guidance_embeds=True, qk_norm='rms_norm_across_heads')
    torch.manual_seed(0)
    pipe = diffusers.SanaSprintPipeline(None, None, base.vae, diffusers.SanaTransformer2DModel(**config).eval(), diffusers.SCMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe

def test_sana_sprint():
    "Its scheduler has a timestep more than steps are made"
    pipe = sana_sprint()
    call = miniature_call('sana', 2)|dict(guidance_scale=4.5)
    call.pop('negative_prompt')
    for n,more in ((2, {}), (3, dict(intermediate_timesteps=None)), (1, dict(intermediate_timesteps=None))):
        assert len(called(pipe, num_inference_steps=n, **more, **call))==n
        rec = fi.record(pipe, None, ['blocks.1'], num_inference_steps=n, images=True, previews=True, **more, **call)
        r = rec['blocks.1']
        assert r.steps==list(range(n)) and r.timesteps[0]==pytest.approx(1.5708, abs=1e-4)
        assert r.levels==pytest.approx(r.timesteps.sin().tolist(), abs=1e-6) and r.levels[0]>.999
        for last,image in zip(rec.previews, rec.images): assert last[-1].tobytes()==image.tobytes() # decoded at its end
        assert fi.record(pipe, None, ['blocks.1'], num_inference_steps=n, steps=-1, **more, **call)['blocks.1'].steps==[n-1]

def sprint_img2img():
    parts = sana_sprint().components
    pipe = diffusers.SanaSprintImg2ImgPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe

@pytest.mark.parametrize('name,cls', [('sd', 'StableDiffusionImg2ImgPipeline'), ('sdxl', 'StableDiffusionXLInpaintPipeline'), ('flux', 'FluxImg2ImgPipeline'), ('sd3', 'StableDiffusion3Img2ImgPipeline'),
                                      ('z-image', 'ZImageImg2ImgPipeline'), ('sana', 'SanaSprintImg2ImgPipeline')])
def test_from_an_image(name, cls):
    "Timesteps are those that the pipeline reports to a callback of diffusers"
    pipe = sprint_img2img() if name=='sana' else miniature(name, pipeline=cls)
    parameters,call = inspect.signature(type(pipe).__call__).parameters,miniature_call(name)
    size = call['height'],call['width']
    given = dict(image=torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)), mask_image=torch.ones(1, 1, *size), strength=.5, num_inference_steps=6, intermediate_timesteps=None)
    call = {k: v for k,v in (call|given).items() if k in parameters}
    seen = []
    def note(pipe, step, t, kwargs):
        seen.append(float(t))
        return kwargs
    pipe(**call, callback_on_step_end=note, output_type='latent')
    site = list_sites(pipe)[0].name
    rec = fi.record(pipe, None, [site], previews=True, **call)
    assert rec[site].timesteps.tolist()==seen and len(seen)==len(rec.previews[0])==3
    assert all(0<b<a<1 for a,b in zip(rec[site].levels, rec[site].levels[1:]))

def test_latents_with_a_mean_of_their_own():
    "Playground 2.5 brings each channel to a mean and a deviation, as the pipeline says"
    pipe = miniature('sdxl')
    pipe.vae.register_to_config(latents_mean=[.5, -.5, 1., 0.], latents_std=[2., 1., .5, 3.], scaling_factor=.5)
    call = miniature_call('sdxl', n=1)|dict(num_inference_steps=1)
    latents,images = (pipe(**call, output_type=kind, generator=torch.Generator().manual_seed(0)).images for kind in ('latent', 'pil'))
    assert decode_latents(pipe, latents, call['height'], call['width'])[0].tobytes()==images[0].tobytes()

# what runs before the first step

def test_the_encoder_of_a_given_image():
    pipe = refiner()
    call = {k: v for k,v in miniature_call('sdxl', n=1).items() if k not in ('height', 'width')}|dict(num_inference_steps=4, strength=.5)
    image = torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    site = fi.Site(path='vae.encoder')
    for steps in (None, -1, [0]):
        rec = fi.record(pipe, None, [site, 'mid.0'], steps=steps, image=image, **call)
        assert rec['vae.encoder'].grid==(24, 40) and rec['vae.encoder'].steps==[0] and rec['mid.0'].steps==([0, 1] if steps is None else [1] if steps==-1 else [0])
    moments = pipe.vae.encoder(2*image-1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(rec['vae.encoder'].x[:,0], moments, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match='vae.decoder does not run before the first step'): fi.record(pipe, None, [fi.Site(path='vae.decoder')], image=image, **call)

def test_text_encoders_have_no_steps():
    pipe = miniature('flux', text=True)
    call = miniature_call('flux', text=True)|dict(num_inference_steps=3)
    bare = fi.record(pipe, ['a red circle'], ['text.0'], **call)['text.0']
    for steps in (-1, [1], slice(0, 2), fi.noise(0, .5)):
        rec = fi.record(pipe, ['a red circle'], ['text.0', 'double.0.image'], steps=steps, **call)
        assert torch.equal(rec['text.0'].x, bare.x) and len(rec['double.0.image'].steps)<3
    edit = fi.Add(fi.coordinates(bare, 1), 0, strength=1., site='text.0', steps=0)
    with pytest.raises(ValueError, match='text.0 runs once, outside of the steps'):
        with fi.steer(pipe, edit, force=True): pass

def test_a_control_network_runs_in_every_step():
    base,config = miniature('sd'),dict(miniatures['sd'].config)
    config = {k: v for k,v in config.items() if k not in ('up_block_types', 'sample_size', 'out_channels')}
    control = diffusers.ControlNetModel(**config, conditioning_embedding_out_channels=(8, 8)).eval()
    pipe = diffusers.StableDiffusionControlNetPipeline(base.vae, None, None, base.unet, control, base.scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = miniature_call('sd', n=1, guidance=True)|dict(num_inference_steps=3, image=torch.rand(1, 3, 48, 80, generator=torch.Generator().manual_seed(0)))
    site = fi.Site(path='controlnet.mid_block.attentions.0')
    rec = fi.record(pipe, None, [site, 'mid.0'], guidance='both', **call)
    seen = []
    h = control.mid_block.attentions[0].register_forward_hook(lambda m, a, o: seen.append(o[0].flatten(2).transpose(1, 2)))
    pipe(**call, generator=fi.image_generators(0, [0]), output_type='latent')
    h.remove()
    x = rec['controlnet.mid_block.attentions.0'].x # conditional, unconditional; the negative half of a batch is first
    torch.testing.assert_close(x, torch.stack(seen, 1).flip(0), rtol=1e-4, atol=1e-5)

def test_a_store_has_one_schedule(tmp_path):
    pipe = miniature('flux', text=True)
    call = miniature_call('flux', text=True)|dict(num_inference_steps=3, progress=False)
    with pytest.raises(ValueError, match='text.0 runs once and the other sites in every step'):
        fi.harvest(pipe, ['a red circle'], ['text.0', 'double.0.image'], tmp_path/'both', **call)
    store = fi.harvest(pipe, ['a red circle'], ['text.0'], tmp_path/'text', steps=[2], **call)
    assert store.site('text.0').steps==[0]

def test_a_window_without_steps_is_refused():
    pipe = random_unet_pipeline()
    with pytest.raises(ValueError, match='none of the steps of this call, whose noise levels are'):
        fi.record(pipe, None, ['mid.0'], steps=fi.noise(.9, .9), prompt_embeds=torch.zeros(1, 4, 8), guidance_scale=1., num_inference_steps=2)
