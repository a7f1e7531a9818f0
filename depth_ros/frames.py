"""The small immutable records that travel between codecs, engines and apps.

Stamps are integer nanoseconds. Depth is z along the optical axis in metres, float32, 0 where its mask is False: NaN exists only in messages
and in files. Poses are (4, 4) float64 and ``T_a_b`` takes points from frame b into frame a.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Matrix = TypeVar('Matrix', np.ndarray, 'Tensor')

# Turns the axes of an optical frame (x right, y down, z forward) into those of a body that looks along its x, z up (REP 103).
R_BODY_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
R_BODY_OPTICAL.flags.writeable = False

OUTSIDE, LONGEST = 1e9, 1e5   # px: what lies outside the image when flow is followed back, and more than any flow


class Scale(enum.Enum):
    """What a length in a result means."""

    METRIC = 'metric'
    FREE = 'free'       # known up to one factor, as from a single moving camera


class TrackStatus(enum.Enum):
    """State of the tracker after a frame."""

    INITIALISING = 'initialising'
    OK = 'ok'
    LOST = 'lost'


def resize_intrinsics(K: Matrix, scale_x: float, scale_y: float) -> Matrix:
    """K (..., 3, 3) [px] of an image resized by (scale_x, scale_y), numpy or torch: f' = s f, c' = s (c + 0.5) - 0.5."""
    rows = [[scale_x, 0.0, 0.5 * scale_x - 0.5], [0.0, scale_y, 0.5 * scale_y - 0.5], [0.0, 0.0, 1.0]]
    # Nodes that need no network import this module: a tensor brings its own constructor, so torch is not imported here.
    resize = K.new_tensor(rows) if hasattr(K, 'new_tensor') else np.asarray(rows, dtype=K.dtype)
    return resize @ K


@dataclass(frozen=True)
class CameraFrame:
    """One image of a calibrated camera, with sensor depth where there is one."""

    stamp: int                              # [ns]
    frame_id: str                           # optical frame
    image: np.ndarray                       # (H, W, 3) uint8 RGB
    K: np.ndarray                           # (3, 3) float64 [px]
    depth: np.ndarray | None = None         # (H, W) float32 [m], 0 where not valid
    depth_valid: np.ndarray | None = None   # (H, W) bool

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) [px]."""
        return self.image.shape[1], self.image.shape[0]

    def resized(self, width: int, height: int) -> CameraFrame:
        """The frame at another size: area-averaged colour, nearest depth, intrinsics rescaled."""
        if self.size == (width, height):
            return self
        scale_x, scale_y = width / self.size[0], height / self.size[1]
        image = cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA)
        depth = valid = None
        if self.depth is not None:
            rows, columns = nearest_indices(self.size[1], height), nearest_indices(self.size[0], width)
            depth, valid = (a.take(rows, 0).take(columns, 1) for a in (self.depth, self.depth_valid))      # twice as fast as indexing both at once
        return replace(self, image=image, K=resize_intrinsics(self.K, scale_x, scale_y), depth=depth, depth_valid=valid)


def unusable(frame: CameraFrame) -> str:
    """What is wrong with a frame; '' if nothing is."""
    K = frame.K
    if K.shape != (3, 3) or not np.isfinite(K).all() or not (K[0, 0] > 0 and K[1, 1] > 0):
        return f'the calibration has no positive focal length: K = {np.array2string(K, separator=", ")}'.replace('\n', '')
    if frame.image.ndim != 3 or min(frame.image.shape[:2]) < 16:
        return f'expected an image of at least 16 x 16 pixels and three channels, got {frame.image.shape}'
    return ''


def nearest_indices(source: int, target: int) -> np.ndarray:
    """Index (target,) of the source pixel nearest to each target pixel's centre, for a resize of source to target pixels."""
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    return np.clip(np.floor(centres + 0.5), 0, source - 1).astype(np.intp)


@lru_cache(maxsize=8)
def pixel_grid(width: int, height: int, stride: int = 1, first: int = 0) -> np.ndarray:
    """Pixels (h, w, 2) float32 as (u, v) of every `stride`th column and row from `first` on; cached, read-only."""
    u, v = np.meshgrid(np.arange(first, width, stride, dtype=np.float32), np.arange(first, height, stride, dtype=np.float32))
    grid = np.stack([u, v], axis=-1)
    grid.flags.writeable = False
    return grid


def consistency_error(flow: np.ndarray, backward: np.ndarray, pixels: np.ndarray | None = None) -> np.ndarray:
    """|flow + backward at its end| (h, w) float32 [px] of flow (h, w, 2) at `pixels` (all by default); inf where it ends outside.

    The same measure as warp.forward_backward_error, on arrays through OpenCV's sampler: ten times faster, which every frame gains from.
    """
    height, width = backward.shape[:2]
    ends = cv2.add(flow, pixel_grid(width, height) if pixels is None else pixels)
    returned = cv2.remap(backward, ends, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(OUTSIDE, OUTSIDE))
    error = cv2.magnitude(*cv2.split(cv2.add(returned, flow)))
    error[~(error < LONGEST)] = np.inf      # also what is not a number
    return error


@dataclass(frozen=True)
class ImagePair:
    """The current frame and the earlier frame that it is compared with, both at the network's size."""

    current: CameraFrame
    reference: CameraFrame


@dataclass(frozen=True)
class FlowResult:
    """Optical flow of a pair in both directions, in pixels of its own size, (u, v)."""

    pair: ImagePair
    flow: np.ndarray            # (H, W, 2) float32, current -> reference
    backward: np.ndarray        # (H, W, 2) float32, reference -> current
    consistency: float = 1.0    # [px], smallest inconsistency of a pixel that is not valid

    @cached_property
    def error(self) -> np.ndarray:
        """(H, W) float32 [px], forward-backward inconsistency at the current frame's pixels; inf outside. Worked out when it is first asked for."""
        return consistency_error(self.flow, self.backward)

    @cached_property
    def valid(self) -> np.ndarray:
        """(H, W) bool, consistent pixels of the current frame."""
        return self.error < self.consistency

    def resized(self, width: int, height: int) -> FlowResult:
        """The same at another size; flow that is not finite becomes zero and not valid."""
        size, before = (width, height), self.pair.current.size
        flow, backward, is_finite = self.flow, self.backward, np.isfinite(self.flow).all()
        if before == size and is_finite:
            return self
        if not is_finite:
            finite = np.isfinite(flow).all(-1, keepdims=True)
            # NaN on the way back from a flow of zero: such a pixel is consistent with nothing.
            flow, backward = np.where(finite, flow, np.float32(0.0)), np.where(finite, backward, np.float32(np.nan))
        factors = np.array([width / before[0], height / before[1]], np.float32)
        flow, backward = (cv2.resize(f, size, interpolation=cv2.INTER_AREA) * factors for f in (flow, backward))
        pair = ImagePair(self.pair.current.resized(width, height), self.pair.reference.resized(width, height))
        return FlowResult(pair, flow, backward, self.consistency * float(factors.mean()))


@dataclass(frozen=True)
class TrackResult:
    """Camera pose after a frame. ``T_odom_cam`` is the last trusted one when the status is LOST."""

    stamp: int                  # [ns]
    T_odom_cam: np.ndarray      # (4, 4), odom is z-up, cam is optical
    covariance: np.ndarray      # (6, 6), of (translation [m], rotation [rad]) in the camera frame
    inlier_ratio: float         # [0, 1]
    status: TrackStatus
    scale: Scale
    is_keyframe: bool = False


@dataclass(frozen=True)
class DepthResult:
    """Dense depth of one frame at the size that the engine works at."""

    frame: CameraFrame          # the frame that the depth belongs to, at the depth's size
    depth: np.ndarray           # (H, W) float32 [m] (or the odometry's unit while scale is FREE), 0 where not valid
    valid: np.ndarray           # (H, W) bool
    confidence: np.ndarray      # (H, W) float32 in [0, 1]
    scale: Scale
