"What notebooks set once, autocast, a default dtype or device, inference mode, changes no bit of what dictionaries learn, encode and measure"
from contextlib import contextmanager

import pytest, torch

import fluxinterp as fi
from fluxinterp.dictionaries.normalizers import Normalizer, moments, normalizers
from fluxinterp.dictionaries.pursuit import pursue, pursuits

g = torch.Generator().manual_seed(0)
x = torch.randn(1500, 12, generator=g)@torch.randn(12, 16, generator=g)+5

@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try: yield
    finally: torch.set_default_dtype(before)

@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try: yield
    finally: torch.set_default_device(None)

@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try: yield
    finally: torch.use_deterministic_algorithms(False)

states = {'autocast': lambda: torch.autocast('cpu', dtype=torch.bfloat16), 'bfloat16': lambda: default_dtype(torch.bfloat16), 'float64': lambda: default_dtype(torch.float64),
          'inference mode': torch.inference_mode, 'no gradients': torch.no_grad, 'default device': lambda: default_device('meta'), 'deterministic': deterministic}

def tensors_of(name, d): return {f'{name}/{k}': v.clone() for k,v in d.state_dict().items()}

def everything(folder, x):
    "Dictionaries of every kind, learnt, saved, opened; their codes and reconstructions; numbers about them"
    made,res = {},{}
    for a in ('topk', 'batchtopk', 'jumprelu'):
        for n in ('mean-norm', 'whiten'): made[f'{a} {n}'] = fi.train(fi.SAEConfig(num_latents=32, k=3, steps=12, batch_size=128, architecture=a, normalizer=n, ema=.9, dead_after=200, center='geometric median'), x, folder/f'{a}-{n}', progress=False)
    made['resampled'] = fi.train(fi.SAEConfig(num_latents=32, k=3, steps=30, batch_size=128, dead='resample', resample_every=5, dead_after=100, k_start=6, cooldown=.1), x, progress=False)
    for method in pursuits: made[method] = fi.fit_itda(fi.ITDAConfig(k=3, batch_size=256, method=method, start='kmeans', start_atoms=8, nonneg=method!='matching'), x, folder/method, progress=False)
    made |= {'pca': fi.pca(x, 3), 'neurons': fi.neurons(x, 3), 'random': fi.random_directions(x, 24, 3), 'pursued': fi.pursuit_encoder(made['topk whiten'], k=2)}
    for name,d in made.items():
        opened = fi.load_dictionary(fi.save_dictionary(d, folder/'saved'/name)) if name!='pursued' else d
        code = opened.encode(x)
        res |= tensors_of(name, d)|tensors_of(f'{name} opened', opened)|{f'{name}/values': code.values, f'{name}/indices': code.indices, f'{name}/xhat': opened.decode(code), f'{name}/tiles': opened.encode_tiled(x, 100).values}
        e = fi.evaluate(d, x)
        res[f'{name}/numbers'] = torch.tensor([e.fvu, e.fvu_standardized, e.fvu_whitened, e.cosine, e.l0, e.dead], dtype=torch.float64, device='cpu')
    for kind in normalizers:
        with torch.device('cpu'): n = Normalizer(16, kind) # a module is where the caller puts it
        n.fit(x)
        z = n(x)
        res |= tensors_of(kind, n)|{f'{kind}/z': z, f'{kind}/back': n.inverse(z), f'{kind}/read': n.raw_read(z[:3]), f'{kind}/write': n.raw_write(z[:3])}
    atoms = torch.nn.functional.normalize(x[:20], dim=1)
    for method in pursuits: res |= {f'pursue/{method}/{i}': v for i,v in enumerate(pursue(x, atoms, 3, method))}
    return res|{'moments': moments(x).variance, 'numbers': torch.tensor([*fi.explained_variance_variants(x, x.roll(1, 1))], dtype=torch.float64, device='cpu')}

@pytest.fixture(scope='module')
def plain(tmp_path_factory): return everything(tmp_path_factory.mktemp('plain'), x)

@pytest.mark.parametrize('state', states)
def test_results_are_the_same_in(state, plain, tmp_path):
    with states[state]():
        assert torch.is_grad_enabled()==(state not in ('inference mode', 'no gradients'))
        here = everything(tmp_path, x.clone())
        assert torch.get_default_device().type==('meta' if state=='default device' else 'cpu')
    assert here.keys()==plain.keys()
    other = [k for k,v in plain.items() if here[k].dtype!=v.dtype or not torch.equal(here[k].detach(), v.detach())]
    assert not other, other
