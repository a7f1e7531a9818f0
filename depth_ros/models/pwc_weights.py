"""Weights of PWC-Net as others publish them, under the names that these networks have there.

Two layouts are known: that of the authors' PyTorch release (NVlabs/PWC-Net, pwc_net.pth.tar) and that of S. Niklaus's reimplementation (sniklaus/pytorch-pwc,
network-default.pytorch). Both take images as BGR, which is put right in the first convolution.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from depth_ros.models import checkpoint
from depth_ros.models.pwc_net import CONTEXT, DECODER, FINEST, PYRAMID, PwcNet

_LEVELS = range(1, len(PYRAMID) + 1)
_WORDS = 'One', 'Two', 'Thr', 'Fou', 'Fiv', 'Six'
_UNUSED = 'deconv2.weight', 'deconv2.bias'          # the authors' network carries this layer and never calls it
_FIRST = 'pyramid.0.0.0.weight'


def load(path: str | Path) -> PwcNet:
    """The network with the weights of a published file, which may hold tensors only. Raises ValueError, naming the file and the names that do not fit."""
    try:
        stored = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f'{path}: cannot be read as weights: {str(error).partition(chr(10))[0]}') from error
    if isinstance(stored, dict) and isinstance(stored.get('state_dict'), dict):
        stored = stored['state_dict']
    if not isinstance(stored, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in stored.items()):
        raise ValueError(f'{path}: expected tensors by name, got {type(stored).__name__}')
    model = PwcNet()
    checkpoint.fill(model, _renamed({key.removeprefix('module.'): value for key, value in stored.items()}, str(path)), str(path))
    return model.eval()


def author_names() -> dict[str, str]:
    """Our name -> the authors', of every layer."""
    names = {}
    for level in _LEVELS:
        order = ('a', 'aa', 'b') if level < len(PYRAMID) else ('aa', 'a', 'b')     # at the last level they named the first two the other way about
        names |= {f'pyramid.{level - 1}.{i}.0': f'conv{level}{letters}.0' for i, letters in enumerate(order)}
    for index, level in _decoders():
        names |= {f'decoders.{index}.convs.{i}.0': f'conv{level}_{i}.0' for i in range(len(DECODER))}
        names[f'decoders.{index}.predict'] = f'predict_flow{level}'
        if level > FINEST:
            names |= {f'decoders.{index}.up_flow': f'deconv{level}', f'decoders.{index}.up_features': f'upfeat{level}'}
    names |= {f'context.{i}.0': f'dc_conv{i + 1}.0' for i in range(len(CONTEXT))}
    return names | {f'context.{len(CONTEXT)}': f'dc_conv{len(CONTEXT) + 1}'}


def niklaus_names(prefix: str = 'module') -> dict[str, str]:
    """Our name -> Niklaus's, of every layer; `prefix` is `module` in his file and `net` in his later code."""
    def joined(*parts: str) -> str:
        return '.'.join(prefix + part for part in parts)

    names = {f'pyramid.{level - 1}.{i}.0': f'{joined("Extractor", _WORDS[level - 1])}.{2 * i}' for level in _LEVELS for i in range(3)}
    for index, level in _decoders():
        own = _WORDS[level - 1]
        names |= {f'decoders.{index}.convs.{i}.0': f'{joined(own, _WORDS[i])}.0' for i in range(len(DECODER))}
        names[f'decoders.{index}.predict'] = f'{joined(own, "Six")}.0'
        if level > FINEST:
            finer = _WORDS[level - 2]       # he counts what enlarges a level's flow to the level that gets it
            names |= {f'decoders.{index}.up_flow': joined(finer, 'Upflow'), f'decoders.{index}.up_features': joined(finer, 'Upfeat')}
    names |= {f'context.{i}.0': f'{joined("Refiner", "Main")}.{2 * i}' for i in range(len(CONTEXT))}
    return names | {f'context.{len(CONTEXT)}': f'{joined("Refiner", "Main")}.{2 * len(CONTEXT)}'}


def _decoders() -> list[tuple[int, int]]:
    """(place, level) of every decoder."""
    return list(enumerate(range(len(PYRAMID), FINEST - 1, -1)))


def _renamed(stored: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors under our names, for images as RGB. Raises ValueError, naming what is missing and what is too many."""
    prefix = next((p for p in ('module', 'net') if any(key.startswith(f'{p}Extractor.') for key in stored)), None)
    layers = author_names() if prefix is None else niklaus_names(prefix)
    names = {f'{ours}.{kind}': f'{theirs}.{kind}' for ours, theirs in layers.items() for kind in ('weight', 'bias')}
    lacking = [theirs for theirs in names.values() if theirs not in stored]
    besides = [key for key in stored if key not in {*names.values(), *_UNUSED}]
    if lacking or besides:
        wrong = [f'{reason}: {checkpoint.some(keys)}' for reason, keys in (('it lacks', lacking), ('it has besides', besides)) if keys]
        raise ValueError(f'{source}: not the weights of PWC-Net as published: {"; ".join(wrong)}')
    tensors = {ours: stored[theirs] for ours, theirs in names.items()}
    if tensors[_FIRST].ndim == 4:
        tensors[_FIRST] = tensors[_FIRST].flip(1)
    return tensors
