"An edit at every site of the bundled models, ended well, by an error and by Ctrl-C: it acts, and nothing of it is left behind"
import re

import pytest
import torch

import fluxinterp as fi
from fluxinterp.dictionaries.baselines import LinearDictionary
from fluxinterp.activations.hooks import hooked
from fluxinterp.models.pipelines import denoiser_of, prompt_generators
from fluxinterp.models.sites import list_sites

models = ['tiny-flux', 'tiny-sdxl-turbo']
call = dict(num_inference_steps=2, output_type='latent')
def draw(pipe): return pipe(['a red circle on the left'], generator=prompt_generators(0, [0]), **call).images
def hooks_of(pipe): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for p in pipe.components.values() if isinstance(p, torch.nn.Module) for m in p.modules())
def state_of(pipe): return set(pipe.__dict__)-{'_current_timestep'},set(pipe.scheduler.__dict__)-{'_step_index', '_begin_index'}

@pytest.fixture(scope='module', params=models)
def model(request):
    pipe = fi.load_pipeline(request.param)
    clean = draw(pipe) # a first call: transformers' text encoders keep hooks of their own from then on
    return pipe,clean,hooks_of(pipe)

def test_every_site(model):
    pipe,clean,own = model
    state,last = state_of(pipe),[m for n,m in denoiser_of(pipe).named_modules() if n in ('proj_out', 'conv_out')][0]
    sites = list_sites(pipe)
    assert len(sites)>30
    last_text = max((s.name for s in sites if re.fullmatch(r'single\.\d+\.text', s.name)), default=None)
    for s in sites:
        d = LinearDictionary(torch.randn(2, s.width, generator=torch.Generator().manual_seed(0)), torch.zeros(s.width), 2)
        edit = fi.Add(d, 0, strength=3., site=s.name)
        with fi.steer(pipe, [edit]): moved = draw(pipe)
        if not last_text or not s.name.startswith(last_text): # nothing reads the text after the last block
            assert not torch.equal(moved, clean), f'{s.name}: the edit did nothing'
        for error in (RuntimeError, KeyboardInterrupt):
            def fail(module, args, output): raise error
            handle = last.register_forward_hook(fail)
            try:
                with pytest.raises(error), fi.steer(pipe, [edit]): draw(pipe)
            finally: handle.remove()
        assert hooks_of(pipe)==own and state_of(pipe)==state, f'{s.name}: something was left behind'
        assert torch.equal(draw(pipe), clean), f'{s.name}: the pipeline draws another image than before'

def test_maps_can_be_edited(model):
    "Attention weights, which no dictionary has: shut to one token, then back"
    pipe,clean,own = model
    name = 'double.1.image.attn.map' if 'Flux' in type(pipe).__name__ else 'up.0.1.0.cross.map'
    def blur(clock, x): return x.mean(-1, keepdim=True).expand_as(x)
    with hooked(pipe, [(name, blur)]): moved = draw(pipe)
    assert not torch.equal(moved, clean) and torch.equal(draw(pipe), clean) and hooks_of(pipe)==own
