"""Which earlier image the current one is paired with.

Depth lives on parallax and tracking on overlap, so a reference is kept until the image has moved far enough, too little of it is still in
view, or it has grown old; the current image then becomes the reference.
"""
from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from depth_ros import settings
from depth_ros.frames import CameraFrame, FlowResult, ImagePair, consistency_error, pixel_grid
from depth_ros.settings import setting

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PairingConfig:
    """When a reference image is replaced."""

    displacement: float = setting(0.055, 'median displacement that ends a reference, as a share of the image width', '', 0.005, 0.5)
    overlap: float = setting(0.5, 'share of consistent pixels below which a reference ends', '', 0.0, 1.0)
    max_age: float = setting(0.5, 'age at which a reference ends, if the image has moved at all', 's', 0.01, 60.0)
    max_gap: float = setting(0.5, 'silence between two images after which pairing starts anew', 's', 0.01, 60.0)


SAMPLED = 4     # px between the pixels that a pair is judged by
MOVED = 0.003   # median displacement, as a share of the width, below which a reference is not replaced for its age: a camera at rest should not drift


class ObservedMotion(NamedTuple):
    """How a pair's current image differs from its reference."""

    displacement: float     # median of the consistent pixels, as a share of the image width; 0 if there are none
    overlap: float          # share of consistent pixels


class Restart(enum.Enum):
    """Why pairing started anew with this frame."""

    FIRST = 'first image'
    GAP = 'gap between images'
    CLOCK = 'clock jumped back'
    CAMERA = 'size or calibration changed'


class Pairing:
    """Keeps the reference. Call `pair` with each frame, compute its flow, then call `update` with the result."""

    def __init__(self, config: PairingConfig = PairingConfig()) -> None:
        settings.check(config)
        self.config = config
        self.restarted: Restart | None = None   # set by the last call of `pair`
        self.reset()

    def reset(self) -> None:
        """Forget the reference."""
        self._reference: CameraFrame | None = None
        self._last_stamp = 0

    def pair(self, frame: CameraFrame) -> ImagePair | None:
        """The frame with the reference; None when pairing (re)starts with this frame, and `restarted` then tells why."""
        self.restarted = self._restart(frame)
        self._last_stamp = frame.stamp
        if self.restarted is None:
            return ImagePair(frame, self._reference)
        if self.restarted is not Restart.FIRST:
            log.warning('pairing starts anew: %s', self.restarted.value)
        self._reference = frame
        return None

    def update(self, result: FlowResult) -> bool:
        """Judge the pair by its flow; True if its current frame becomes the reference of the following ones."""
        ends = is_spent(result, self.config)
        if ends:
            self._reference = result.pair.current
        return ends

    def _restart(self, frame: CameraFrame) -> Restart | None:
        if self._reference is None:
            return Restart.FIRST
        if frame.stamp <= self._last_stamp:
            return Restart.CLOCK
        if 1e-9 * (frame.stamp - self._last_stamp) > self.config.max_gap:
            return Restart.GAP
        if frame.size != self._reference.size or not np.allclose(frame.K, self._reference.K):
            return Restart.CAMERA
        return None


def is_spent(result: FlowResult, config: PairingConfig) -> bool:
    """Whether a pair's current frame should become the reference of the following ones."""
    moved, overlap = observed_motion(result)
    age = 1e-9 * (result.pair.current.stamp - result.pair.reference.stamp)
    return moved > config.displacement or overlap < config.overlap or (age >= config.max_age and moved > MOVED)


def observed_motion(result: FlowResult) -> ObservedMotion:
    """What every fourth pixel of every fourth row tells of a pair, which is enough and spares the rest."""
    height, width = result.flow.shape[:2]
    flow = np.ascontiguousarray(result.flow[SAMPLED // 2::SAMPLED, SAMPLED // 2::SAMPLED])
    valid = consistency_error(flow, result.backward, pixel_grid(width, height, SAMPLED, SAMPLED // 2)) < result.consistency
    if not valid.any():
        return ObservedMotion(0.0, 0.0)
    u, v = flow[valid].T
    return ObservedMotion(float(np.median(np.hypot(u, v))) / width, float(valid.mean()))
