"""Depth of a keyframe by DeepV2D's learned depth module against past frames whose poses are known, chosen by their parallax."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from depth_ros.engines.alternation import Alternation, AlternationConfig, AlternationStatus
from depth_ros.engines.flow import FlowConfig
from depth_ros.engines.sweep import PosedFrames
from depth_ros.frames import CameraFrame, DepthResult, Scale
from depth_ros.models import checkpoint
from depth_ros.models.deepv2d import DeepV2D
from depth_ros.settings import setting

SHIPPED = checkpoint.SHIPPED / 'deepv2d_live.safetensors'

_FLOW = FlowConfig()    # on synthetic clips depth is as good with it as with that of FAR_APART, which takes two and a half times as long


@dataclass(frozen=True)
class LearnedSettings:
    """The networks of learned motion and learned depth."""

    weights: str = setting('', 'checkpoint of DeepV2D (safetensors) for learned motion or depth; empty: the one that comes with the package')
    learned_iterations: int = setting(2, 'iterations of learned motion a frame; a third takes a third more time and gains 2 % of the error', '', 1, 10)
    learned_width: int = setting(320, 'image width that learned depth works at, and comes out at', 'px', 64, 1920)
    learned_views: int = setting(5, 'past frames that learned depth compares the newest one with', '', 1, 16)
    learned_reach: float = setting(0.12, 'baseline of the farthest of them, as a share of the usual depth; the others stand evenly between', '', 0.005, 1.0)
    learned_deviation: float = setting(0.25, 'relative standard deviation of learned depth, by which it is fused with what the recursive filter has made of flow, '
                                       'as is its confidence; below 0.01: learned depth alone', '', 0.0, 1.0)
    learned_rounds: int = setting(1, 'rounds of learned depth; from the second on, learned motion refines the poses in between', '', 1, 10)


def load(weights: str = '') -> DeepV2D:
    """The networks of a checkpoint, '' for the shipped one. Raises ValueError, naming a file that cannot be used and why."""
    path = Path(weights).expanduser() if weights else SHIPPED
    if not path.is_file():
        raise ValueError(f'{path}: there is no such file; learned motion and depth need a checkpoint of DeepV2D: name one as `weights`')
    return for_cpu(checkpoint.load(path, 'deepv2d').model)


def for_cpu(network: DeepV2D) -> DeepV2D:
    """The network with its channels last in memory, which the CPU's convolutions are faster with.

    Measured for LIVE at 320 x 240 on one thread, as it comes / channels last / in ONNX Runtime: features of motion 12 / 10.7 / 9.1 ms, residual flow
    4.4 / 3.8 / (its median cannot be exported), features of depth 21 / 17 / 14, matching in 3D 129 / 118 / 134. So there is no graph of it.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.to(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
    return network.eval()


class LearnedDepth(PosedFrames):
    """Depth by the network. After a piece of work `reason` says why there is none ('' when all is well)."""

    def __init__(self, network: DeepV2D, config: LearnedSettings = LearnedSettings()) -> None:
        super().__init__()
        self.config = config
        self._network = network
        self.reset()

    def reset(self) -> None:
        """Forget the frames and their features. Work that is under way goes on with those that it has."""
        super().reset()
        self.reason = ''
        self._alternation = Alternation(self._network, AlternationConfig(rounds=self.config.learned_rounds, adjust_poses=False), flow=_FLOW)

    @property
    def baselines(self) -> tuple[float, ...]:
        """Evenly spaced up to the reach."""
        return tuple(self.config.learned_reach * (i + 1) / self.config.learned_views for i in range(self.config.learned_views))

    def _work(self, frames: list[CameraFrame], T_ref_cur: torch.Tensor, middle: float) -> DepthResult | None:
        width, height = frames[0].size
        frames = [replace(f, depth=None, depth_valid=None).resized(self.config.learned_width, round(self.config.learned_width * height / width)) for f in frames]
        found = self._alternation.run(frames, T_view_key=T_ref_cur.double().numpy(), expected_depth=1 / middle)
        self.reason = found.reason
        if found.status is not AlternationStatus.OK:
            return None
        valid = found.depth > 0
        return DepthResult(frames[0], np.where(valid, found.depth, np.float32(0)), valid, found.confidence, Scale.FREE)
