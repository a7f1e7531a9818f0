"""Networks as safetensors files and messages: weights with name, configuration and training record; strict to load, and nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import depth_ros
from depth_ros import files
from depth_ros.models import registry

SHIPPED = Path(depth_ros.__file__).parent / 'weights'     # folder of the checkpoints that come with the package
FORMAT = 'depth_ros network 1'
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16}     # of the stored weights; a loaded network computes in float32
_LENGTH = 8         # bytes before a safetensors header that give its length
_SHOWN = 5          # names that an error lists at most


@dataclass(frozen=True)
class Loaded:
    """A network, ready for use, and where it comes from."""

    model: nn.Module            # in eval mode
    name: str                   # in the registry
    record: dict[str, Any]      # how it was trained


def save(path: str | Path, name: str, model: nn.Module, record: dict[str, Any], dtype: str = 'fp32') -> None:
    """Write a network of the registry whole or not at all; `record` is what JSON can hold. Raises ValueError as to_bytes does."""
    blob = to_bytes(name, model, record, dtype)
    with files.whole(path, durable=True) as partial:
        partial.write_bytes(blob)


def find(path: str | Path) -> Path:
    """A file as it is given; where there is none, the one of that name that comes with the package, if it does."""
    shipped = SHIPPED / path
    return shipped if shipped.is_file() and not Path(path).exists() else Path(path)


def load(path: str | Path, expect: str | None = None) -> Loaded:
    """Read what save wrote. Raises ValueError, naming the file and the reason, for anything but a sound network (of the name `expect`)."""
    return _parsed(Path(path).read_bytes(), expect, str(path))


def to_bytes(name: str, model: nn.Module, record: dict[str, Any], dtype: str = 'fp32') -> bytes:
    """The file's content, as it travels in a message. Raises ValueError for weights that are not finite in `dtype` (fp32 | fp16) or not of that network."""
    if dtype not in DTYPES:
        raise ValueError(f'dtype: expected one of {", ".join(DTYPES)}, got {dtype!r}')
    if not isinstance(model, registry.network(name)):
        raise ValueError(f'expected a {name} network to store, got a {type(model).__name__}')
    tensors = {key: value.detach().cpu().to(DTYPES[dtype] if value.is_floating_point() else value.dtype).contiguous()
               for key, value in model.state_dict().items()}
    bad = _not_finite(tensors)
    if bad:
        raise ValueError(f'{name}: weights are not finite in {dtype}: {some(bad)}')
    return safetensors.torch.save(tensors, {'format': FORMAT, 'model': name, 'config': json.dumps(asdict(model.config)), 'record': json.dumps(record)})


def from_bytes(blob: bytes, expect: str | None = None) -> Loaded:
    """The network in a message. Raises ValueError with the reason as load does."""
    return _parsed(blob, expect, 'weights')


def _parsed(blob: bytes, expect: str | None, source: str) -> Loaded:
    try:
        tensors = safetensors.torch.load(blob)
        metadata = json.loads(blob[_LENGTH:_LENGTH + int.from_bytes(blob[:_LENGTH], 'little')]).get('__metadata__', {})
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(f'{source}: not a safetensors file: {error}') from error
    if metadata.get('format') != FORMAT:
        raise ValueError(f'{source}: expected a {FORMAT!r}, got {metadata.get("format", "a file without that note")!r}')
    name = metadata.get('model', '')
    if expect is not None and name != expect:
        raise ValueError(f'{source}: expected weights of {expect}, got those of {name}')
    try:
        record = json.loads(metadata['record'])
        if not isinstance(record, dict):
            raise TypeError(f'expected a record of keys and values, got {record!r}')
        with torch.random.fork_rng(devices=[]):         # first weights are drawn only to be replaced
            model = registry.build(name, json.loads(metadata['config']))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{source}: cannot make its network: {error}') from error
    fill(model, tensors, source)
    return Loaded(model.eval(), name, record)


def fill(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Give a network its weights. Raises ValueError, naming `source` and the reasons, unless they are finite and just those that it has."""
    wanted = model.state_dict()
    reasons = {
        'it lacks': [key for key in wanted if key not in tensors],
        'it has besides': [key for key in tensors if key not in wanted],
        'of another shape or type': [f'{key} {_described(value)} instead of {_described(wanted[key])}' for key, value in tensors.items()
                                     if key in wanted and not _fits(value, wanted[key])],
        'not finite': _not_finite(tensors),
    }
    wrong = '; '.join(f'{reason}: {some(keys)}' for reason, keys in reasons.items() if keys)
    if wrong:
        raise ValueError(f'{source}: the weights do not fit their network: {wrong}')
    model.load_state_dict(tensors)


def _fits(value: Tensor, wanted: Tensor) -> bool:
    kinds = set(DTYPES.values()) if wanted.is_floating_point() else {wanted.dtype}
    return value.shape == wanted.shape and value.dtype in kinds


def _not_finite(tensors: dict[str, Tensor]) -> list[str]:
    return [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]


def _described(value: Tensor) -> str:
    return f'{tuple(value.shape)} {str(value.dtype).removeprefix("torch.")}'


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = len(names) - _SHOWN
    return ', '.join(names[:_SHOWN]) + (f' and {more} more' if more > 0 else '')
