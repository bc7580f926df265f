"""Operators that make the host wait for a device, seen without one."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ('_local_scalar_dense', 'nonzero', 'unique', 'masked_select', 'item', 'equal', 'isin',
           'is_nonzero', 'bincount', 'repeat_interleave')


class Waits(TorchDispatchMode):
    """Names of the operators that make the host wait for a device, as they are called."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        has_mask = name in ('index', 'index_put_') and any(
            index is not None and index.dtype == torch.bool for index in args[1])
        is_copy = name == '_to_copy' and (kwargs or {}).get('device') is not None
        if has_mask or is_copy or any(name.strip('_').startswith(each.strip('_'))
                                      for each in WAITING):
            self.found.append(name)
        return func(*args, **(kwargs or {}))
