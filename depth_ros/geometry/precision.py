"""Geometry in full precision while networks around it run in half.

Under autocast every matrix product is rounded to the 8 bits of bfloat16, which moves a projected pixel by several: motions, projections and their losses must not be.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor

_Result = TypeVar('_Result')


def full_precision(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """The function without autocast on the device of its tensors, and with those of half precision among its arguments widened to float32."""
    @wraps(function)
    def wrapped(*args: object, **kwargs: object) -> _Result:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), 'cpu')
        if device == 'meta' or not torch.is_autocast_enabled(device):      # nothing is computed there; and nothing is added to a graph that is traced
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*map(widened, args), **{name: widened(a) for name, a in kwargs.items()})
    return wrapped


def widened(value: object) -> object:
    """A tensor of half precision as float32; anything else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value
