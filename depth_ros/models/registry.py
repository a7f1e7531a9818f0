"""The networks by name: what recipes, checkpoints and command lines call them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from depth_ros import settings
from depth_ros.models.baselines import BaselineConfig, DispNet, Eigen, SmallEncDec
from depth_ros.models.deepv2d import LIVE, PAPER, DeepV2D, DeepV2DNetworkConfig
from depth_ros.models.fcrn import FCRN
from depth_ros.models.flow_and_depth import FlowAndDepth, FlowAndDepthConfig
from depth_ros.models.global_local import GlobalLocal, GlobalLocalConfig
from depth_ros.models.pose_head import PoseHead, PoseHeadConfig
from depth_ros.models.pwc_net import PwcNet, PwcNetConfig
from depth_ros.models.unsupervised import Unsupervised

MODELS: dict[str, tuple[type, type[nn.Module]]] = {
    'global_local': (GlobalLocalConfig, GlobalLocal),
    'eigen': (BaselineConfig, Eigen),
    'dispnet': (BaselineConfig, DispNet),
    'fcrn': (BaselineConfig, FCRN),
    'small_enc_dec': (BaselineConfig, SmallEncDec),
    'unsupervised': (BaselineConfig, Unsupervised),
    'pose_head': (PoseHeadConfig, PoseHead),
    'pwc_net': (PwcNetConfig, PwcNet),
    'flow_and_depth': (FlowAndDepthConfig, FlowAndDepth),
    'deepv2d': (DeepV2DNetworkConfig, DeepV2D),
}

SIZES: dict[str, dict[str, Any]] = {'deepv2d': {'paper': PAPER, 'live': LIVE}}
"""Configurations with a name of their own, of the networks that have some."""


def named_size(name: str, size: str) -> dict[str, Any]:
    """The configuration of a named size of a named network. Raises ValueError, listing the known ones."""
    sizes = SIZES.get(name, {})
    if size not in sizes:
        raise ValueError(f'size: expected one of {", ".join(sizes) or "none at all"} for {name}, got {size!r}')
    return dataclasses.asdict(sizes[size])


def network(name: str) -> type[nn.Module]:
    """The class of a named network. Raises ValueError, listing the known names."""
    return _entry(name)[1]


def configuration(name: str, values: Mapping[str, Any]) -> Any:
    """The configuration of a named network. Raises ValueError, listing the known ones, for an unknown name or key, and for a value that is refused."""
    kind = _entry(name)[0]
    settings.refuse_unknown(values, [field.name for field in dataclasses.fields(kind)], f'{name} has no setting')
    config = kind(**values)
    settings.check(config)
    return config


def build(name: str, config: Mapping[str, Any] | None = None) -> nn.Module:
    """A new network; its first weights depend on torch's seed. Raises ValueError as configuration does."""
    return network(name)(configuration(name, config or {}))


def _entry(name: str) -> tuple[type, type[nn.Module]]:
    if name not in MODELS:
        raise ValueError(f'expected one of the models {", ".join(MODELS)}, got {name!r}')
    return MODELS[name]
