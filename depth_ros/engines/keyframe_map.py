"""A map fused from keyframes: a point enters once other keyframes agree that it is there.

The geometric consistency check of multi-view stereo (Y. Yao et al., "MVSNet: Depth Inference for Unstructured Multi-view Stereo", ECCV 2018, section 4.2), as DeepV2D's
fused clouds have it, but as the camera goes: what flies between two surfaces, or was guessed, is seen through by the next view.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depth_ros.engines.threads import single_threaded
from depth_ros.engines.voxel_map import VoxelMap
from depth_ros.frames import DepthResult
from depth_ros.geometry.pinhole import unproject
from depth_ros.geometry.reprojection import agreement

COMPARED = 6        # keyframes that each new one is compared with, and that wait for later ones to confirm their points


@dataclass(eq=False)
class _Keyframe:
    """A keyframe whose points are not all settled. Depth is 0 where it is unknown or not sure enough."""

    depth: Tensor           # (1, H, W) [m]
    K: Tensor               # (3, 3) [px]
    T_map_cam: np.ndarray   # (4, 4)
    every: Tensor           # (1, h, w) [m], its depth at the pixels that may enter the map
    K_every: Tensor         # (3, 3) of these
    colours: np.ndarray     # (h, w, 3) uint8
    votes: np.ndarray       # (h, w) int: keyframes that confirm a point, less those that see through it
    waiting: np.ndarray     # (h, w) bool: not in the map yet

    def enter(self, chosen: np.ndarray, grid: VoxelMap) -> None:
        """Put points (h, w) bool into the map."""
        points = unproject(self.every[0], self.K_every).numpy()[chosen].astype(np.float64)
        grid.add(points @ self.T_map_cam[:3, :3].T + self.T_map_cam[:3, 3], self.colours[chosen])
        self.waiting &= ~chosen


class KeyframeMap:
    """Bounded coloured points of keyframes; see VoxelMap for `size` [m] and `capacity`. While there is one keyframe, its points are all there is to show."""

    def __init__(self, size: float, capacity: int) -> None:
        self._size, self._capacity = size, capacity
        self._grid = VoxelMap(size, capacity)
        self._recent: deque[_Keyframe] = deque(maxlen=COMPARED)
        self._unchecked: VoxelMap | None = None     # of the only keyframe so far

    def __len__(self) -> int:
        return len(self._shown)

    def clear(self) -> None:
        """Forget every point."""
        self._grid.clear()
        self._recent.clear()
        self._unchecked = None

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The points (N, 3) float32 [m] and their colours (N, 3) uint8."""
        return self._shown.arrays()

    @property
    def _shown(self) -> VoxelMap:
        return self._grid if self._unchecked is None else self._unchecked

    @single_threaded()
    @torch.inference_mode()
    def add(self, result: DepthResult, T_map_cam: np.ndarray, min_confidence: float, stride: int, views: int, tolerance: float) -> None:
        """Take in a keyframe at its pose (4, 4): every stride-th pixel and row of its depth that is confident enough.

        A point enters when `views` more keyframes confirm than see through it; they confirm what they see at its depth to a share (`tolerance`). 0 views: all points enter.
        """
        new = _keyframe(result, T_map_cam, min_confidence, stride)
        if not views:
            new.enter(new.waiting.copy(), self._grid)
            self._unchecked = None
            return
        for keyframe, other in self._pairs(new):
            T_other_self = torch.from_numpy(np.linalg.inv(other.T_map_cam) @ keyframe.T_map_cam).float()
            confirmed, denied = (mask[0].numpy() for mask in agreement(keyframe.every, keyframe.K_every, T_other_self, other.depth, other.K, tolerance))
            keyframe.votes += confirmed
            keyframe.votes -= denied
        alone = not self._recent and not len(self._grid)
        self._recent.append(new)
        for keyframe in self._recent:
            keyframe.enter(keyframe.waiting & (keyframe.votes >= views), self._grid)
        self._unchecked = self._all_of(new) if alone else None

    def _pairs(self, new: _Keyframe) -> Iterator[tuple[_Keyframe, _Keyframe]]:
        """Who is to be judged by whom, now that a keyframe is new."""
        for old in self._recent:
            yield new, old
            yield old, new

    def _all_of(self, keyframe: _Keyframe) -> VoxelMap:
        grid, waiting = VoxelMap(self._size, self._capacity), keyframe.waiting.copy()
        keyframe.enter(waiting, grid)
        keyframe.waiting = waiting
        return grid


def _keyframe(result: DepthResult, T_map_cam: np.ndarray, min_confidence: float, stride: int) -> _Keyframe:
    depth = torch.from_numpy(np.where(result.valid & (result.confidence >= min_confidence), result.depth, 0).astype(np.float32))[None]
    K = torch.from_numpy(result.frame.K).float()
    every = depth[:, ::stride, ::stride]
    K_every = torch.diag(torch.tensor([1 / stride, 1 / stride, 1.0])) @ K      # of pixels taken, not averaged: 0 stays 0
    return _Keyframe(depth, K, np.array(T_map_cam, np.float64), every, K_every, result.frame.image[::stride, ::stride], np.zeros(every.shape[1:], np.int16),
                     (every[0] > 0).numpy())
