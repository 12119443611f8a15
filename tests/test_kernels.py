"The Triton kernels in Triton's own interpreter, on the CPU: slow, without a driver, but the same code"
import os, subprocess, sys

import pytest

pytest.importorskip('triton', reason='Triton is for Linux; `pip install triton`')
code = '''
import torch
from fluxinterp.dictionaries import kernels
from fluxinterp.dictionaries.sparse_ops import _dots, _sum_by_latent, _weighted_rows, sort_by_latent

def draw(n, k, d, num, kind, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    values,indices = torch.randn(n, k, generator=g),torch.randint(0, num, (n, k), generator=g)
    if kind=='one for all': indices[:,0] = num-1
    if kind=='few used': indices = indices%2*(num-1) # all others are empty
    if kind=='padded': values[:,k//2:],indices[:,k//2:] = 0,0 # as codes of varying length are
    return values.to(dtype),indices,torch.randn(n, d, generator=g).to(dtype),torch.randn(num, d, generator=g).to(dtype)

cases = [(n, k, d, num, 'random', torch.float32) for n,k,d,num in ((1, 1, 1, 1), (1, 5, 33, 7), (20, 1, 40, 16), (13, 17, 129, 30), (9, 33, 515, 12), (5, 3, 300, 9))]
cases += [(40, 4, 37, 11, kind, torch.float32) for kind in ('one for all', 'few used', 'padded')]+[(30, 6, 65, 20, 'one for all', torch.bfloat16), (30, 6, 65, 20, 'padded', torch.float16)]
for n,k,d,num,kind,dtype in cases:
    values,indices,rows,weights = draw(n, k, d, num, kind, dtype)
    groups = sort_by_latent(indices, num)
    dense = torch.zeros(n, num, dtype=torch.float64).scatter_add(1, indices, values.double())
    got = [kernels.triton_weighted_rows(values, indices, weights), kernels.triton_dots(rows, weights, indices), kernels.triton_sum_by_latent(values, rows, groups)]
    true = [dense@weights.double(), (rows.double()@weights.double().T).gather(1, indices), dense.T@rows.double()]
    ours = [_weighted_rows(values, indices, weights), _dots(rows, weights, indices), _sum_by_latent(values, rows, groups)] if dtype==torch.float32 else got
    for name,a,b,c in zip(kernels.by_triton, got, true, ours):
        assert a.dtype==dtype and a.shape==b.shape, name
        limit = 2e-6 if dtype==torch.float32 else .01 if dtype==torch.bfloat16 else .002
        for other in (b, c.double()): assert (a.double()-other).norm()<=limit*other.norm()+1e-12, (name, n, k, d, num, kind, float((a.double()-other).norm()/other.norm()))
    assert torch.equal(got[2], kernels.triton_sum_by_latent(values, rows, groups))

values,indices,rows,weights = draw(20, 4, 33, 8, 'one for all', torch.float32)
indices = indices.clamp(max=5); indices[:,1] = 2 # latents 6 and 7 are empty: their sums are 0, not what was in memory
assert (kernels.triton_sum_by_latent(values, rows, sort_by_latent(indices, 8))[6:]==0).all()
strided = torch.randn(33, 20).T, torch.randn(33, 8).T # neither is contiguous
assert torch.allclose(kernels.triton_dots(*strided, indices), (strided[0]@strided[1].T).gather(1, indices), atol=1e-5)
assert kernels.triton_weighted_rows(values[:0], indices[:0], weights).shape==(0, 33)
assert kernels.fastest('dots', _dots, rows, weights, indices).shape==(20, 4) and set(kernels.chosen.values())=={'torch'} # interpreted, it is the slower one
print('whole')
'''

def test_kernels_in_the_interpreter():
    "Odd widths, empty latents, one latent per token, one token, a latent that all tokens use, padding, half precision"
    p = subprocess.run([sys.executable, '-W', 'error::UserWarning:fluxinterp', '-c', code], env=os.environ|dict(TRITON_INTERPRET='1', OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=240)
    assert p.returncode==0 and 'whole' in p.stdout, p.stdout+p.stderr

def test_a_training_step_through_the_kernels():
    "Every gradient of an SAE's loss, with the kernels in the place of torch's operations, is the same"
    step = '''
import torch
from fluxinterp.dictionaries import kernels, sparse_ops
def grads():
    g = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(*s, generator=g).requires_grad_()
    inputs = draw(30, 21),draw(16, 21),draw(16),draw(16, 21),draw(21)
    xhat,values,_ = sparse_ops.sparse_autoencode(*inputs, 3)
    ((xhat-inputs[0]).square().sum()+values.square().sum()).backward()
    return [i.grad for i in inputs]
usual = grads()
sparse_ops.weighted_rows,sparse_ops.dots,sparse_ops.sum_by_latent = kernels.triton_weighted_rows,kernels.triton_dots,kernels.triton_sum_by_latent
for a,b in zip(grads(), usual): assert (a-b).norm()<1e-5*b.norm()
print('whole')
'''
    p = subprocess.run([sys.executable, '-c', step], env=os.environ|dict(TRITON_INTERPRET='1', OMP_NUM_THREADS='1'), capture_output=True, text=True, timeout=240)
    assert p.returncode==0 and 'whole' in p.stdout, p.stdout+p.stderr

def test_kernels_compile_for_gpus(tmp_path):
    "Machine code for an A100 and an H100 needs no driver; there is no atomic operation in it, and aligned rows are read 16 bytes at a time"
    aot = '''
import re, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fluxinterp.dictionaries import kernels
for capability in (80, 90):
    for kind in ('fp32', 'bf16', 'fp16'):
        x,v,i,n = '*'+kind,'*fp32','*i64','i32'
        for kernel,signature,blocks in ((kernels._weighted_rows_kernel, dict(values=v, indices=i, weights=x, out=x, k=n, d=n), dict(BD=512)),
                                        (kernels._dots_kernel, dict(rows=x, weights=x, indices=i, out=x, k=n, d=n), dict(BK=16, BD=128)),
                                        (kernels._sum_by_latent_kernel, dict(values=v, rows=x, order=i, starts=i, out=x, entries=n, num_latents=n, k=n, d=n), dict(BE=8, BD=256))):
            for k_is_1 in (False, True):
                constants = blocks|(dict(k=1) if k_is_1 else {})
                attrs = {} if k_is_1 else {(j,): [['tt.divisibility', 16]] for j in range(len(signature))}
                made = triton.compile(ASTSource(kernels._jit(kernel), signature|dict.fromkeys(constants, 'constexpr'), constants, attrs), target=GPUTarget('cuda', capability, 32))
                ptx = made.asm['ptx']
                assert len(made.asm['cubin'])>5000 and not re.search(r'\\b(atom|red)\\.', ptx), kernel.__name__
                assert k_is_1 or re.search(r'ld\\.global\\S*\\.v[24]', ptx), (kernel.__name__, kind)
print('whole')
'''
    p = subprocess.run([sys.executable, '-c', aot], env={k: v for k,v in os.environ.items() if k!='TRITON_INTERPRET'}|dict(TRITON_CACHE_DIR=str(tmp_path)), capture_output=True, text=True, timeout=240)
    assert p.returncode==0 and 'whole' in p.stdout, p.stdout+p.stderr
