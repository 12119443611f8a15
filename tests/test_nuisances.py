"A dictionary that removes the initial noise: handed in at every door, refused where the noise is not known"
from dataclasses import replace

import numpy as np
import pytest
import torch

import fluxinterp as fi
from fluxinterp.activations.site_records import token_batches
from fluxinterp.dictionaries.readouts import feature_activations, readouts
from fluxinterp.evaluation.concepts import find_concepts, record_scenes
from fluxinterp.models.initial_noise import tokens_at
from fluxinterp.models.pipelines import image_generators
from fluxinterp.steering.applying_edits import EditPlan
from fluxinterp.training.token_streams import LiveData

site = 'double.1.image'

@pytest.fixture(scope='module')
def pipe(): return fi.load_pipeline('tiny-flux')

@pytest.fixture(scope='module')
def acts(pipe): return fi.record(pipe, fi.scene_prompts(12, start=50_000), site, progress=False)[site]

@pytest.fixture(scope='module')
def sae(acts): return fi.train(fi.SAEConfig(num_latents=32, k=4, batch_size=512, steps=25, remove=['noise']), acts, progress=False)

def test_store(pipe, acts, sae, tmp_path):
    "A store draws the noise of its tokens again: as in the record, with tokens left out and shuffled"
    store = fi.harvest(pipe, fi.scene_prompts(12, start=50_000), site, tmp_path/'acts', tokens=64, dtype='float32', progress=False)
    data = store.site(site)
    noise = sae.nuisance_of(acts)
    for b in data.batches(512, seed=0):
        c = b.coords
        assert torch.allclose(b.x, acts.x[c['prompt'], c['step'], c['token']], atol=1e-4)
        assert torch.allclose(sae.nuisance_of(data, c), noise[c['prompt'], c['step'], c['token']], atol=1e-5)
    e = fi.evaluate(sae, data, spaces=('raw',), by=())
    assert e.fvu<e.fvu_remainder<1
    other = fi.train(replace(sae.config, remove=['noise', 'step']), data, progress=False)
    assert other.nuisance.remove==('noise', 'step')
    store.manifest.pop('noise') # as older stores are
    with pytest.raises(ValueError, match='record or harvest again'): fi.evaluate(sae, store.site(site))
    with pytest.raises(ValueError, match='record or harvest them again'): fi.train(sae.config, store.site(site))

def test_noise_is_known_where_it_was_drawn(pipe, acts):
    "Several images a prompt, both guidance rows, re-noised pictures; not latents of the caller, nor text"
    call = dict(num_images_per_prompt=2, guidance='both', negative_prompt='a star', true_cfg_scale=2., steps=[1])
    two = fi.record(pipe, ['a red circle'], [site, 'double.1.text'], seed=4, **call)
    assert two['double.1.text'].noise is None and len(two[site])==4
    every = two[site].coordinates_at(torch.arange(len(two[site].tokens)))
    noise = tokens_at(two[site].noise, every, (16, 16)).view(2, 2, 256, 64) # (image, guidance, token, channel)
    latents = [pipe._pack_latents(torch.randn(1, 16, 32, 32, generator=g), 1, 16, 32, 32)[0] for g in image_generators(4, [0], 2)]
    for image,l in zip(noise, latents): assert torch.equal(image[0], l) and torch.equal(image[1], l)
    assert fi.record(pipe, ['a red circle'], site, latents=torch.randn(1, 256, 64))[site].noise is None

def test_maps_scans_atlases(pipe, acts, sae, tmp_path):
    "The same activations whether a record, a pipeline or a live map hands the noise in"
    code = sae.encode_tiled(acts)
    from_record = fi.build_atlas(sae, acts, tmp_path/'a', progress=False)
    prompts = list(acts.rows.caption)
    from_pipe = fi.build_atlas(sae, pipe, tmp_path/'b', prompts=prompts, progress=False)
    assert np.allclose(from_record.peaks([0, 1, 2]), from_pipe.peaks([0, 1, 2]), atol=.01)
    assert np.allclose(from_record.peaks([3])[:,0], code.latent(3).flatten(1).amax(1), atol=.01)
    m = fi.activation_map(pipe, sae, 3, prompts[:2])
    assert np.allclose(m.values.reshape(2, 4, -1), code.latent(3)[:2], atol=1e-3)
    top = fi.scan_top(pipe, sae, prompts[:2], seeds=(0,), n=32)
    assert abs(top.means[:,3]-code.latent(3)[:2].mean((0, 2))).max()<1e-3

def test_concepts(pipe, sae):
    "Scenes are mixed with known noise: read by code and densely"
    a,b = (record_scenes(pipe, [site], 8, s, noise_level=(.75, .5)) for s in ('train', 'test'))
    acts = a.recording[site]
    known = sae.nuisance_of(acts)
    for r in readouts:
        read = feature_activations(sae, acts, [1, 5], r)
        plain = sae.pre_acts(sae.normalizer(acts.x-known))[...,[1, 5]] if r=='pre_acts' else sae.encode(acts.x, known).to_dense()[...,[1, 5]]
        assert torch.allclose(read, plain, atol=1e-4)
        assert len(find_concepts(sae, a, b, readout=r))

def test_edits_and_splices(pipe, acts, sae):
    "A pass that runs knows its noise; bare activations do not, and an edit that reads nothing needs none"
    read = []
    class Reading(fi.Scale):
        def change(self, old, unit):
            read.append(old)
            return super().change(old, unit)
    prompts = list(acts.rows.caption[:2])
    with fi.steer(pipe, [Reading(sae, 3, 2., steps=0)]):
        pipe(prompts, generator=image_generators(0, [0, 1]), output_type='latent')
    assert torch.allclose(read[0][...,0], sae.encode_tiled(acts).latent(3)[:2,0], atol=1e-3)
    with pytest.raises(ValueError, match='not known of activations alone'): fi.apply_edits(acts.x[:1,0], [fi.Ablate(sae, 3)])
    assert EditPlan([fi.Add(sae, 3, strength=2.)])(acts.x[:1,0]) is not None
    plain = fi.train(replace(sae.config, remove=[]), acts, progress=False)
    spliced = fi.splice(pipe, {'without': sae, 'plain': plain}, prompts)
    x,known = acts.select(rows=[0, 1]).x,sae.nuisance_of(acts.select(rows=[0, 1]))
    assert (spliced.velocity['without']<spliced.velocity['plain']).all() # the noise is given
    assert torch.allclose(fi.reconstruct(sae, acts.select(rows=[0, 1])), sae(x, known), atol=1e-4)

def test_itda(acts, sae, tmp_path):
    "Grown on what is left, saved, gone on with, thinned out"
    config = fi.ITDAConfig(k=4, max_atoms=64, remove=['noise'])
    itda = fi.fit_itda(config, acts, tmp_path/'itda', progress=False)
    again = fi.load_dictionary(tmp_path/'itda')
    assert torch.equal(again.nuisance.noise, sae.nuisance.noise)
    assert torch.equal(again.encode_tiled(acts).values, itda.encode_tiled(acts).values)
    assert fi.evaluate(itda, acts, spaces=('raw',), by=()).fvu_remainder<1
    assert torch.equal(itda.subset([1, 2]).nuisance.noise, itda.nuisance.noise)
    with pytest.raises(ValueError, match='takes no dictionary that removes something'): fi.pursuit_encoder(itda)

def test_live(pipe, acts, sae):
    "Recorded while it is read: the same dictionary"
    live = LiveData(pipe, fi.scene_prompts(12, start=50_000), site, round_prompts=6)
    b = next(iter(token_batches(live, 512)))
    assert torch.allclose(sae.nuisance_of(live, b.coords), sae.nuisance_of(acts).flatten(0, 2)[:512], atol=1e-5)
    assert torch.allclose(fi.fit_nuisance('noise', live).noise, sae.nuisance.noise, atol=1e-3)
