"Contexts within each other: steering, recording, attention maps and concept maps are each as they would be alone"
import pytest
import torch

import fluxinterp as fi
from fluxinterp.activations.hooks import hooked
from fluxinterp.evaluation.attention_concepts import watch_concepts
from fluxinterp.models.miniatures import miniature, miniature_call

words = ['red', 'blue', 'background']
prompt = 'a red circle'
call = miniature_call('flux', text=True)|dict(num_inference_steps=2)

@pytest.fixture(scope='module')
def pipe(): return miniature('flux', text=True)

@pytest.fixture(scope='module')
def bare(pipe): return recorded(pipe)

sites = ['double.0.image', 'double.1.image', 'double.1.text', 'double.1.image.attn', 'single.0.image']

def recorded(pipe, names=tuple(sites)): return fi.record(pipe, prompt, list(names), **call, seed=1)
def drawn(pipe): return pipe(prompt, **call, generator=torch.Generator().manual_seed(1), output_type='latent').images
def hooks_of(pipe): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in pipe.transformer.modules())
def adds(bare): return [fi.Add(fi.coordinates(bare[s], 1), 3, strength=v, site=s) for s,v in (('double.0.image', 4.), ('double.1.image.attn', 2.), ('double.1.text', -3.))]

def test_steering_within_steering(pipe, bare):
    "As with all edits in one; at the same site the inner edit reads what the outer one has written"
    edits = adds(bare)
    with fi.steer(pipe, edits, force=True): together = drawn(pipe)
    with fi.steer(pipe, edits[:1], force=True), fi.steer(pipe, edits[2:], force=True) as inner, fi.steer(pipe, edits[1:2], force=True): nested = drawn(pipe)
    assert torch.equal(nested, together) and not torch.equal(together, drawn(pipe)) and inner.run==0
    d = fi.coordinates(bare['double.0.image'], 32)
    with fi.steer(pipe, fi.Add(d, 3, strength=4., site='double.0.image'), force=True), fi.steer(pipe, fi.Scale(d, 3, factor=0., site='double.0.image'), force=True): x = recorded(pipe)['double.0.image'].x
    with fi.steer(pipe, fi.Scale(d, 3, factor=0., site='double.0.image'), force=True): wanted = recorded(pipe)['double.0.image'].x
    torch.testing.assert_close(x[:,0], wanted[:,0], rtol=1e-4, atol=1e-4) # of the first step; the latents are then the same too
    torch.testing.assert_close(x, wanted, rtol=1e-3, atol=1e-3)
    assert not hooks_of(pipe)

def test_recording_within_steering(pipe, bare):
    "What is recorded is what the edit has made of it"
    edit = adds(bare)[0]
    with fi.steer(pipe, edit, force=True): rec = recorded(pipe)
    delta = rec['double.0.image'].x[:,0]-bare['double.0.image'].x[:,0]
    wanted = torch.zeros_like(delta)
    wanted[...,3] = 4.
    torch.testing.assert_close(delta, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.equal(rec['double.1.image'].x, bare['double.1.image'].x)
    assert all(torch.equal(x.x, bare[n].x) for n,x in recorded(pipe).items()) # and nothing is left

def test_attention_maps_within_each_other(pipe):
    name = 'double.1.image.attn.map'
    clean = recorded(pipe, [name])[name].x
    with hooked(pipe, [(name, lambda clock, m: m/2)]):
        once = recorded(pipe, [name])[name].x
        with hooked(pipe, [(name, lambda clock, m: m/2)]): twice = recorded(pipe, [name])[name].x
    torch.testing.assert_close(once[:,0], clean[:,0]/2)
    torch.testing.assert_close(twice[:,0], clean[:,0]/4)
    assert torch.equal(recorded(pipe, [name])[name].x, clean)

def test_concept_maps_within_each_other(pipe, bare):
    with watch_concepts(pipe, words) as one: image = drawn(pipe)
    with watch_concepts(pipe, words, temperature=1., blocks=[1]) as other: drawn(pipe)
    with watch_concepts(pipe, words) as a, watch_concepts(pipe, words, temperature=1., blocks=[1]) as b, watch_concepts(pipe, words[:2]) as c: assert torch.equal(drawn(pipe), image)
    assert [len(w.calls) for w in (a, b, c)]==[2, 2, 2] and torch.equal(a.maps(), one.maps()) and torch.equal(b.maps(), other.maps())

def test_concept_maps_beside_recording_and_steering(pipe, bare):
    "In whichever order: activations are those of the real calls, maps those of the edited model, edits act once"
    names = [*sites, 'double.1.image.attn.map']
    clean = recorded(pipe, names)
    with watch_concepts(pipe, words): rec = recorded(pipe, names)
    assert all(torch.equal(rec[n].x, clean[n].x) for n in names)
    edits = adds(bare)
    with fi.steer(pipe, edits, force=True): steered = drawn(pipe)
    with fi.steer(pipe, edits, force=True, guard=True) as run, watch_concepts(pipe, words) as inside: assert torch.equal(drawn(pipe), steered)
    with watch_concepts(pipe, words) as outside, fi.steer(pipe, edits, force=True, guard=True) as other: assert torch.equal(drawn(pipe), steered)
    assert torch.equal(inside.maps(), outside.maps())
    assert len(run.report)==len(other.report)==2*len(edits)
    with watch_concepts(pipe, words) as plain: drawn(pipe)
    assert not torch.equal(plain.maps(), inside.maps()) and not hooks_of(pipe)
