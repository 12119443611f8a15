"A device without 64-bit floats, as the GPUs of Macs are: its tensors are computed with on the CPU, say that they lie elsewhere, and refuse float64, NumPy and tensors of other devices"
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

device = torch.device('mps', 0) # with a number, so that no driver is asked which is the current one
aten = torch.ops.aten
_mixed = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default} # copies, and indices, which torch takes from the CPU

class OnDevice(torch.Tensor):
    "A tensor there"
    @staticmethod
    def __new__(cls, inside):
        return torch.Tensor._make_wrapper_subclass(cls, inside.shape, strides=inside.stride(), storage_offset=inside.storage_offset(),
                                                   dtype=inside.dtype, device='meta', requires_grad=inside.requires_grad)
    device = property(lambda self: device) # below Python it is `meta`, as that of torch's own fake tensors: no driver is asked
    def __init__(self, inside): self.inside = inside
    def __repr__(self): return f'OnDevice({self.inside!r})'
    def tolist(self): return self.inside.tolist() # which torch refuses for subclasses
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _call(func, args, kwargs or {})

def _is_there(d): return d is not None and torch.device(d).type in (device.type, 'meta')
def _wrap(t):
    if not isinstance(t, torch.Tensor) or isinstance(t, OnDevice): return t
    if t.dtype in (torch.float64, torch.complex128): raise TypeError("this device has no float64")
    return OnDevice(t)

def _call(func, args, kwargs):
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, OnDevice)]
    wanted = kwargs.get('device')
    if not there and not _is_there(wanted): return func(*args, **kwargs)
    if func not in _mixed and there and any(t.dim() for t in tensors if not isinstance(t, OnDevice)):
        raise RuntimeError(f'{func}: Expected all tensors to be on the same device, but found at least two devices, one and cpu!')
    assert not any(t.is_meta for t in tensors if not isinstance(t, OnDevice)), f'{func}: made below the dispatcher'
    args_in,kwargs_in = tree_map(lambda t: t.inside if isinstance(t, OnDevice) else t, (args, kwargs))
    if wanted is not None: kwargs_in = kwargs_in|dict(device=torch.device('cpu'))
    out = func(*args_in, **kwargs_in)
    if func is aten.copy_.default: return args[0]
    if wanted is not None and not _is_there(wanted): return out
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_wrap, out)) if there else tree_map(_wrap, out)

class _Mode(TorchDispatchMode): # for calls that make tensors there, or copy to it
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return _call(func, args, kwargs or {})

def _indices(i): return torch.tensor(i, dtype=None if i else torch.int64) if isinstance(i, list) else tuple(map(_indices, i)) if isinstance(i, tuple) else i

class _Makes(TorchFunctionMode): # what torch makes below the dispatcher: `torch.tensor`, and lists as indices
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__): args = args[0],_indices(args[1]),*args[2:]
        if func not in (torch.tensor, torch.as_tensor, torch.asarray) or not _is_there(kwargs.get('device')): return func(*args, **kwargs)
        return func(*args, **{k: v for k,v in kwargs.items() if k!='device'}).to(kwargs['device'])

@contextmanager
def no_float64():
    "A machine with such a device"
    with patch.object(torch.backends.mps, 'is_available', lambda: True), _Mode(), _Makes(): yield device
