"The packaged models as other programs meet them"
import subprocess, sys
from pathlib import Path

import numpy as np

root = Path(__file__).resolve().parents[1]
captions = ['a large red striped circle on the left and a small white star on the right', 'a blue heart, beige background']

plain = """
import sys, numpy as np, torch
from diffusers import FluxPipeline
pipe = FluxPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32, local_files_only=True)
pipe.set_progress_bar_config(disable=True)
g = [torch.Generator().manual_seed(i) for i in range(2)]
x = pipe(sys.argv[3:], generator=g, height=64, width=64, num_inference_steps=4, guidance_scale=0., max_sequence_length=32, output_type='np').images
assert 'fluxinterp' not in sys.modules
np.save(sys.argv[2], x)
"""

def test_plain_diffusers_draws_the_same_pictures(tmp_path):
    import torch
    import fluxinterp as fi
    folder = root/'fluxinterp/weights/tiny-flux'
    subprocess.run([sys.executable, '-c', plain, folder, tmp_path/'x.npy', *captions], check=True, cwd=tmp_path)
    ours = fi.load_pipeline('tiny-flux')(captions, generator=[torch.Generator().manual_seed(i) for i in range(2)], output_type='np').images
    assert np.array_equal(np.load(tmp_path/'x.npy'), ours)

def test_nothing_stays_behind_on_tiny_flux():
    import torch
    import fluxinterp as fi
    pipe = fi.load_pipeline('tiny-flux')
    sae = fi.load_dictionary('tiny-flux/double.1.image')
    net = pipe.transformer
    hooks = lambda: sum(len(m._forward_hooks)+len(m._forward_pre_hooks) for m in net.modules())
    draw = lambda: pipe(captions, generator=[torch.Generator().manual_seed(i) for i in range(2)], output_type='np').images
    before = draw()
    def check(): assert hooks()==0 and not {'step', 'set_timesteps'}&set(pipe.scheduler.__dict__) and np.array_equal(draw(), before)
    for error in (RuntimeError, KeyboardInterrupt):
        for use in ('record', 'steer'):
            def fail(m, a, o): raise error
            h = net.single_transformer_blocks[2].register_forward_hook(fail)
            try:
                if use=='record': fi.record(pipe, captions, ['single.3.image'])
                else:
                    with fi.steer(pipe, [fi.Add(sae, 3, strength=5.)]): draw()
            except error: pass
            else: raise AssertionError(f'{use} swallowed {error}')
            finally: h.remove()
            check()
    for null in ([], [fi.Add(sae, 3, strength=0.)]):
        with fi.steer(pipe, null): assert np.array_equal(draw(), before)
        check()
