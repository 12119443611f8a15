"Nothing of one operating system is needed, and nothing of one device: no Unix-only module, no 64-bit floats on a GPU that has none"
import ast, os, subprocess, sys, textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import fluxinterp as fi
from fluxinterp.core import float64_device
from no_float64 import no_float64

root = Path(__file__).parents[1]
modules = 'resource fcntl pwd grp termios tty pty syslog spwd crypt nis posix readline curses'.split()
of_os = '''fork forkpty getuid geteuid getgid getegid setuid setgid getpgid getpgrp setpgid setpgrp setsid getsid killpg nice uname statvfs fstatvfs
    mkfifo mknod chown fchown lchown fchmod fchdir chroot getloadavg sched_getaffinity sched_setaffinity sched_yield wait3 wait4 waitid register_at_fork
    pread pwrite posix_fadvise posix_fallocate sendfile sync fdatasync openpty ttyname ctermid getgroups initgroups major minor O_DIRECTORY O_NOFOLLOW'''.split()
of_signal = '''SIGHUP SIGKILL SIGQUIT SIGALRM SIGUSR1 SIGUSR2 SIGPIPE SIGXFSZ SIGXCPU SIGCHLD SIGTSTP SIGSTOP SIGCONT SIGTTIN SIGTTOU SIGWINCH SIGIO SIGPROF
    SIGVTALRM alarm pause setitimer getitimer pthread_kill pthread_sigmask sigpending sigwait sigwaitinfo sigtimedwait siginterrupt'''.split()

def guarded(tree): # imports inside `try ... except ImportError`
    return {n for t in ast.walk(tree) if isinstance(t, ast.Try) and any('ImportError' in ast.dump(h) for h in t.handlers) for b in t.body for n in ast.walk(b)}

def test_no_module_names_what_windows_lacks():
    for path in sorted((root/'fluxinterp').rglob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        fine = guarded(tree)
        for n in ast.walk(tree):
            at = f'{path.relative_to(root)}:{getattr(n, "lineno", 0)}'
            if isinstance(n, ast.Import) and n not in fine: assert not {a.name.split('.')[0] for a in n.names}&{*modules}, at
            if isinstance(n, ast.ImportFrom) and n.level==0 and n not in fine: assert (n.module or '').split('.')[0] not in modules, at
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name):
                assert (n.value.id, n.attr) not in {*(('os', a) for a in of_os), *(('signal', a) for a in of_signal)}, at
                assert (n.value.id, n.attr)!=('os', 'rename'), f'{at}: os.replace also goes over a file that is there'
            if isinstance(n, ast.keyword): assert n.arg not in ('preexec_fn', 'pass_fds', 'umask'), at
            if isinstance(n, ast.Call) and 'get_context' in (getattr(n.func, 'id', ''), getattr(n.func, 'attr', '')): assert ast.unparse(n)=='get_context(\'spawn\')', at

without = '''
    import os, signal, sys
    import diffusers, torch, transformers, IPython, ipywidgets, anywidget, pandas, matplotlib.pyplot, filelock, fsspec.implementations.local, typer, httpx, accelerate, scipy.stats, scipy.optimize, psutil, huggingface_hub.errors, voila.app, jupyter_server.serverapp
    from diffusers import FluxPipeline, StableDiffusionXLPipeline
    for m in {modules}: sys.modules[m] = None
    for m,names in ((os, {of_os}), (signal, {of_signal})):
        for n in names:
            if hasattr(m, n): delattr(m, n)
    import importlib, pkgutil
    from pathlib import Path
    import fluxinterp
    for m in pkgutil.walk_packages(fluxinterp.__path__, 'fluxinterp.'): importlib.import_module(m.name)
    import fluxinterp as fi
    from fluxinterp.core import peak_memory
    assert .01<peak_memory()<1000
    pipe,out = fi.load_pipeline('random-flux'),Path({out!r})
    prompts,site = ['a red circle', 'a blue star', 'a green heart'],fi.Site(path='transformer.transformer_blocks.0.attn', read='input')
    assert ':' in site.name # which no file of Windows may have
    rec = fi.record(pipe, prompts, ['double.0.image', site], num_inference_steps=2)
    rec[site.name].save(out/'record.safetensors')
    store = fi.harvest(pipe, prompts, ['double.0.image', site], out/'store', num_inference_steps=2, progress=False)
    sae = fi.train(fi.SAEConfig(num_latents=32, k=4, steps=10, batch_size=64), store.site('double.0.image'), out=out/'sae', progress=False)
    fi.load_dictionary(fi.save_dictionary(sae, out/'saved'))
    fi.build_atlas(sae, rec, out/'atlas', progress=False)
    itda = fi.fit_itda(fi.ITDAConfig(k=4, max_atoms=32), rec['double.0.image'], out=out/'itda', progress=False)
    fi.save_recipe([fi.Add(sae, 3, strength=2.)], out/'recipe.json')
    for p in out.rglob('*'):
        assert not set(p.name)&set('<>:"|?*\\\\') and p.name[-1] not in '. ' and p.stem.lower() not in ('con', 'prn', 'aux', 'nul'), p
'''

def test_everything_without_what_windows_lacks(tmp_path):
    "Every module is imported, and a recording, a store, a training, an atlas, an ITDA and a recipe are made, in a Python that lacks it"
    code = textwrap.dedent(without).format(modules=modules, of_os=[a for a in of_os if a not in ('statvfs', 'register_at_fork')], of_signal=of_signal, out=str(tmp_path))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ|dict(PYTHONPATH=str(root)), timeout=300)
    assert done.returncode==0, done.stderr[-3000:]

def test_the_double_refuses_float64():
    with no_float64() as device:
        x = torch.ones(3, device=device)
        for wrong in (lambda: x.double(), lambda: torch.zeros(2, dtype=torch.float64, device=device), lambda: x.to(torch.float64), lambda: torch.ones(2).double().to(device)):
            with pytest.raises(TypeError, match='float64'): wrong()
        with pytest.raises(RuntimeError, match='same device'): x+torch.ones(3)
        assert float64_device(device).type=='cpu' and float64_device(torch.device('cpu')).type=='cpu'
        assert (x+1).cpu().double().sum()==6
        x[1] = 5.
        assert x.tolist()==[1, 5, 1] and x.device==device

def road(device, out, name, site):
    "Everything that one does with a pipeline on a device, as numbers"
    prompts,call = ['a red circle', 'a blue star on the left', 'a green heart'],dict(num_inference_steps=2)
    pipe = fi.load_pipeline(name).to(device)
    rec = fi.record(pipe, prompts, [site], images=True, previews=True, **call)
    d = fi.random_directions(rec[site], 40, 8).to(device)
    res = dict(record=rec[site].x, levels=torch.tensor(rec[site].levels))
    mask = np.linspace(0, 1, int(np.prod(rec[site].grid))).reshape(rec[site].grid) # NumPy's numbers are of 64 bits
    edits = dict(add=fi.Add(d, 2, strength=4.), there=fi.Scale(d, 3, factor=2., region=mask), mean=fi.Add(d, 1, unit='mean', mean_activations=fi.mean_activations(d, rec[site])))
    for n,e in edits.items():
        with fi.steer(pipe, [e]): res[n] = fi.record(pipe, prompts[:2], [site], **call)[site].x
    if name=='random-sdxl': return res
    store = fi.harvest(pipe, prompts, [site], out/'store', progress=False, dtype='float32', **call)
    res['store'] = torch.cat([x for x,_ in store.site(site).batches(256)]).float()
    itda = fi.fit_itda(fi.ITDAConfig(k=4, max_atoms=24), rec[site], progress=False, device=str(device))
    for n,own in (('directions', d), ('itda', itda.to(device))):
        res[f'{n} fvu'] = torch.tensor(fi.evaluate(own, store.site(site)).to_dict()['fvu'])
        res[f'{n} splice'] = torch.tensor(fi.splice(pipe, own, prompts[:2], **call).frame.select_dtypes('number').to_numpy())
    res['map'] = torch.as_tensor(fi.activation_map(pipe, d, 3, prompts[:2], **call).values)
    res['atlas'] = torch.as_tensor(fi.build_atlas(d, rec, out/'atlas', progress=False).array('totals/sums'))
    return res

@pytest.mark.parametrize('name,site', [('random-flux', 'double.0.image'), ('random-sdxl', 'down.2.1')])
def test_a_device_without_float64(name, site, tmp_path):
    "What is recorded, kept, trained, measured, mapped and steered there is what it is on the CPU"
    want = road(torch.device('cpu'), tmp_path/'cpu', name, site)
    with no_float64() as device: got = road(device, tmp_path/'there', name, site)
    for k,v in want.items(): assert torch.allclose(torch.as_tensor(got[k]), v, atol=1e-4, rtol=1e-3, equal_nan=True), k
