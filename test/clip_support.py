"""Clips of the sample's scene, and a tiny DeepV2D, for tests of what learns from clips."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from depth_ros.learning import sample, synthetic
from depth_ros.learning.clips import BothFlows, Clip, ClipBatch, clip_batch, middle_first
from depth_ros.learning.sequences import camera_matrix

TINY = {'motion_width': 4, 'motion_blocks': 0, 'motion_norm': 'group', 'motion_features': 8, 'motion_flow': 8, 'motion_levels': 2, 'motion_widest': 16, 'motion_reach': 2, 'pose_network': False,
        'depth_width': 4, 'depth_blocks': 0, 'depth_norm': 'group', 'depth_hourglasses': 0, 'depth_features': 8, 'matching': 'correlation', 'groups': 2, 'zncc': True,
        'volume_width': 4, 'volume_hourglasses': 1, 'volume_levels': 1, 'volume_growth': 4, 'volume_norm': 'none', 'planes': 12, 'near': 0.5, 'far': 8.0, 'spacing': 'inverse'}
SHOWN = TINY | {'motion_reach': 0, 'measured_flow': True, 'depth_flow': True, 'upsampling': 'convex'}     # both modules see flow
WIDTH, HEIGHT = 64, 48
_APART = 4          # frames of the sample's video between two views


@lru_cache(maxsize=2)
def sample_clips(count: int = 4, larger: int = 1) -> list[Clip]:
    """Clips of the sample's video, half a second each, in images so many times as large; nothing is wrong with the camera. Not to be changed."""
    width, height = larger * WIDTH, larger * HEIGHT
    settings = sample.SampleSettings()
    scene, poses = sample.sample_scene(settings.seed), np.asarray(sample.camera_poses(settings))
    K = camera_matrix(0.8 * width, 0.8 * width, 0.48 * width, 0.52 * height)
    clips = []
    for first in range(0, 40 * count, 40):
        T = poses[first:first + 5 * _APART:_APART]
        image, depth = synthetic.render(scene, torch.tensor(T, dtype=torch.float32), torch.tensor(K, dtype=torch.float32), height, width)
        clips.append(Clip(image.numpy(), depth.numpy(), K, T))
    return clips


class ClipMemory:
    """A ClipStore of clips that are in memory already."""

    def __init__(self, clips: list[Clip], flow: BothFlows | None = None) -> None:
        self.clips, self.flow = clips, flow

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def views(self) -> int:
        return len(self.clips[0].images)

    def batch(self, indices, order=None) -> ClipBatch:
        return clip_batch([self.clips[i] for i in np.asarray(indices)], order or [middle_first(self.views)] * len(indices))
