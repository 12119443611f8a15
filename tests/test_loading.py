"Checkpoints on disk, offloading and quantisation, as far as a CPU can tell"
import json, shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

import fluxinterp as fi
from fluxinterp.activations.hooks import hooked
from fluxinterp.models.loading import offloads, place
from fluxinterp.models.miniatures import miniature, miniature_call
from fluxinterp.models.identity import fingerprint
from fluxinterp.models.pipelines import denoiser_of, image_generators

def draw(pipe, call): return pipe(**call, num_inference_steps=2, generator=image_generators(0, range(1)), output_type='latent').images
def hooks_of(pipe): return sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for p in pipe.components.values() if isinstance(p, torch.nn.Module) for m in p.modules())

sites = {'flux': ['double.0.image', 'double.1.image.attn', 'single.0.image.attn', 'single.0.text.mlp', 'single.1.image'], 'sdxl': ['down.2.1', 'mid.0', 'up.0.1.0.cross', 'up.0.1.output'], 'pixart': ['blocks.0', 'blocks.1.attn', 'blocks.1.mlp'],
         'sd3': ['blocks.0.image', 'blocks.1.image.attn'], 'z-image': ['blocks.1.image.attn', 'blocks.0.text']}

@pytest.mark.parametrize('name', sites)
@pytest.mark.parametrize('offload', (*offloads, 'leaf'))
def test_records_and_steers_what_is_offloaded(name, offload):
    "The hooks of accelerate and diffusers beside ours: the same activations, the same edits, the same images, nothing left behind"
    plain,call = miniature(name),miniature_call(name)
    pipe = miniature(name)
    if offload=='leaf': pipe.enable_group_offload(onload_device=torch.device('cpu'), offload_type='leaf_level')
    else: place(pipe, 'cpu', offload)
    assert fingerprint(pipe)==fingerprint(plain)
    before,hooks = draw(pipe, call),hooks_of(pipe)
    assert torch.equal(before, draw(plain, call))
    want = fi.record(plain, None, sites[name], num_inference_steps=2, **call)
    got = fi.record(pipe, None, sites[name], num_inference_steps=2, **call)
    for s in sites[name]: assert torch.allclose(got[s].x, want[s].x, atol=1e-5), s
    assert torch.allclose(fi.record(pipe, None, sites[name][0], num_inference_steps=2, steps=0, **call)[sites[name][0]].x, want[sites[name][0]].x[:,:1]) # left early
    for s in sites[name]:
        edit = [(s, lambda clock,x: x+x.std()*torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))]
        with hooked(plain, edit): expected = draw(plain, call)
        with hooked(pipe, edit): edited = draw(pipe, call)
        assert torch.allclose(edited, expected, atol=1e-4) and not torch.equal(edited, before), s
    d = fi.pca(want[sites[name][0]], 4)
    with fi.steer(pipe, [fi.Add(d, 0, strength=5.)]): assert not torch.equal(draw(pipe, call), before)
    def stop(m, a, o): raise KeyboardInterrupt
    h = sites[name] and fi.Site(path=fi.list_sites(pipe, 64, 96)[-1].path).module(pipe).register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt): fi.record(pipe, None, sites[name], num_inference_steps=2, images=True, **call)
    h.remove()
    assert hooks_of(pipe)==hooks and torch.equal(draw(pipe, call), before)
    if offload=='sequential': assert all(p.device.type=='meta' for p in denoiser_of(pipe).parameters())

@pytest.mark.parametrize('name,site', [('random-flux', 'double.0.image'), ('random-sdxl', 'down.2.1')])
@pytest.mark.parametrize('offload', offloads)
def test_text_pictures_and_previews_of_what_is_offloaded(name, site, offload, tmp_path):
    "Text encoders, the autoencoder, recordings in batches, harvesting"
    plain,pipe = fi.load_pipeline(name),fi.load_pipeline(name, device='cpu', offload=offload)
    prompts,sites = ['a red circle', 'a large blue star on the left', 'a green heart'],[site, 'text_2.0']
    a,b = (fi.record(p, prompts, sites, num_inference_steps=2, batch_size=2, images=True, previews=True) for p in (plain, pipe))
    for s in sites: assert torch.allclose(a[s].x, b[s].x, atol=1e-5), s
    assert [i.tobytes() for i in a.images]==[i.tobytes() for i in b.images] and [i.tobytes() for r in a.previews for i in r]==[i.tobytes() for r in b.previews for i in r]
    stores = [fi.harvest(p, prompts, [site], tmp_path/str(i), num_inference_steps=2, steps=[1], progress=False) for i,p in enumerate((plain, pipe))]
    x,y = (torch.cat([v for v,_ in s.site(site).batches(512)]) for s in stores)
    assert torch.allclose(x.float(), y.float(), atol=1e-2)
    harmless = fi.generate(pipe, prompts[:1], num_inference_steps=2)
    assert harmless.images[0].tobytes()==fi.generate(plain, prompts[:1], num_inference_steps=2).images[0].tobytes()

@pytest.mark.parametrize('name', ['random-flux', 'random-sdxl'])
def test_parts_that_are_missing(name, tmp_path):
    "Each part of a saved pipeline taken away in turn, then each part's weights"
    pipe = fi.load_pipeline(name)
    cls = type(pipe).__mro__[1]
    cls(**pipe.components).save_pretrained(tmp_path/'p')
    fi.load_pipeline(tmp_path/'p', torch.float32)
    index = json.loads((tmp_path/'p/model_index.json').read_text())
    for part in [k for k,v in index.items() if isinstance(v, list) and v[0]]:
        shutil.move(tmp_path/'p'/part, tmp_path/part)
        with pytest.raises(FileNotFoundError, match=f'lacks the part {part} '): fi.load_pipeline(tmp_path/'p')
        shutil.move(tmp_path/part, tmp_path/'p'/part)
        for w in (tmp_path/'p'/part).glob('*.safetensors'):
            w.rename(w.with_suffix('.part'))
            with pytest.raises(FileNotFoundError, match=f'{part} has no weights'): fi.load_pipeline(tmp_path/'p')
            w.with_suffix('.part').rename(w)
    fi.load_pipeline(tmp_path/'p', torch.float32)

def test_what_the_hub_is_asked_for(monkeypatch):
    "Arguments that reach diffusers: the quantisation of the denoiser and of T5, the device map, the dtype"
    import fluxinterp.models.loading as loading
    asked = {}
    monkeypatch.setattr(loading, 'find_spec', lambda name: True) # as if bitsandbytes were installed; nothing is loaded
    monkeypatch.setattr(DiffusionPipeline, 'load_config', classmethod(lambda cls, name, **kwargs: dict(_class_name='FluxPipeline', transformer=['diffusers', 'FluxTransformer2DModel'], text_encoder=['transformers', 'CLIPTextModel'],
                                                                                                       text_encoder_2=['transformers', 'T5EncoderModel'], vae=['diffusers', 'AutoencoderKL'], image_encoder=[None, None])))
    monkeypatch.setattr(DiffusionPipeline, 'from_pretrained', classmethod(lambda cls, name, **kwargs: asked.update(kwargs) or fi.load_pipeline('random-flux')))
    fi.load_pipeline('black-forest-labs/FLUX.1-dev', quantize='4bit', dtype=torch.float16, token='hf_none')
    c = asked['quantization_config']
    assert (asked['dtype'], asked['token'], 'device_map' in asked)==(torch.float16, 'hf_none', False)
    assert (c.quant_backend, c.components_to_quantize)==('bitsandbytes_4bit', ['transformer', 'text_encoder_2'])
    assert c.quant_kwargs==dict(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_compute_dtype=torch.float16)
    asked.clear()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    fi.load_pipeline('black-forest-labs/FLUX.1-dev', device='balanced')
    assert asked==dict(dtype=torch.bfloat16, device_map='balanced')

def test_a_hub_id_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(FileNotFoundError, match='hf download nobody/nothing'): fi.load_pipeline('nobody/nothing', cache_dir=tmp_path, local_files_only=True)
