"A device without 64-bit floats, as the GPUs of Macs are: its tensors are computed with on the CPU, call themselves `mps`, and refuse float64, NumPy and other devices"
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

device = torch.device('mps')
aten = torch.ops.aten
_copies = {aten._to_copy.default, aten.copy_.default, aten.to.device, aten.to.dtype_layout, aten._pin_memory.default} # from one device to the other
_replaced = {aten._scaled_dot_product_attention_math_for_mps.default: aten._scaled_dot_product_attention_math.default}

class OnDevice(torch.Tensor):
    "A tensor there"
    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(),
                                                   dtype=inside.dtype, device=device, requires_grad=inside.requires_grad)
    def __init__(self, inside): self.inside = inside
    def __repr__(self): return f'OnDevice({self.inside!r})'
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _call(func, args, kwargs or {})

def _is_there(d): return d is not None and torch.device(d).type==device.type
def _wrap(t):
    if not isinstance(t, torch.Tensor) or isinstance(t, OnDevice): return t
    if t.dtype in (torch.float64, torch.complex128): raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64. Please use float32 instead.")
    return OnDevice(t)

def _call(func, args, kwargs):
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, OnDevice)]
    wanted = kwargs.get('device')
    if not there and not _is_there(wanted): return func(*args, **kwargs)
    if func not in _copies and there and any(t.dim() for t in tensors if not isinstance(t, OnDevice)):
        raise RuntimeError(f'{func}: Expected all tensors to be on the same device, but found at least two devices, mps:0 and cpu!')
    args_in,kwargs_in = tree_map(lambda t: t.inside if isinstance(t, OnDevice) else t, (args, kwargs))
    if wanted is not None: kwargs_in = kwargs_in|dict(device=torch.device('cpu'))
    out = _replaced.get(func, func)(*args_in, **kwargs_in)
    if func is aten.copy_.default: return args[0]
    if wanted is not None and not _is_there(wanted): return out
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrap, out)) if there else tree_map(_wrap, out)

class _Mode(TorchDispatchMode): # for calls that make tensors there, or copy to it
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return _call(func, args, kwargs or {})

@contextmanager
def no_float64():
    "A machine with such a device, `mps`"
    with patch.object(torch.backends.mps, 'is_available', lambda: True), _Mode(): yield device
