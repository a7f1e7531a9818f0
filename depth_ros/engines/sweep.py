"""Depth of a keyframe by a plane sweep against past frames whose poses are known, chosen by their parallax."""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import torch

from depth_ros.frames import CameraFrame, DepthResult, Scale
from depth_ros.geometry import plane_sweep
from depth_ros.settings import setting

_VIEWS = 40                     # past frames that a sweep chooses its references from
_SWEPT = 0.22, 5.5              # multiples of the median inverse depth that a sweep covers


@dataclass(frozen=True)
class SweepSettings:
    """How often and how finely depth is swept."""

    sweep_every: int = setting(10, 'frames from one plane sweep to the next', '', 1, 1000)
    sweep_planes: int = setting(64, 'planes of a sweep', '', 8, 512)
    sweep_width: int = setting(160, 'image width that planes are swept at', 'px', 64, 1920)
    sweep_fine_width: int = setting(320, 'image width that the swept depth is refined at, and comes out at; not above sweep_width: it is not refined', 'px', 64, 1920)


class Sweeper:
    """Remembers posed frames and sweeps the newest one on request."""

    def __init__(self, config: SweepSettings = SweepSettings()) -> None:
        self.config = config
        self.views: deque[tuple[CameraFrame, np.ndarray]] = deque(maxlen=_VIEWS)

    def reset(self) -> None:
        """Forget the frames."""
        self.views.clear()

    def remember(self, frame: CameraFrame, T_odom_cam: np.ndarray) -> None:
        """Keep a frame and its pose (4, 4); the oldest goes when there are too many."""
        self.views.append((frame, T_odom_cam))

    def step(self, middle: float) -> DepthResult | None:
        """Depth of the newest frame from planes about the inverse depth `middle` [1/m]; None if there is no earlier frame."""
        frame, T_odom_cam = self.views[-1]
        past = list(self.views)[:-1]
        if not past:
            return None
        T_ref_cur = torch.from_numpy(np.stack([np.linalg.inv(T) @ T_odom_cam for _, T in past])).float()
        chosen = plane_sweep.choose_views(T_ref_cur, 1 / middle)
        frames = [frame, *(past[i][0] for i in chosen)]
        config = plane_sweep.SweepConfig(planes=self.config.sweep_planes, min_inverse_depth=_SWEPT[0] * middle, max_inverse_depth=_SWEPT[1] * middle)
        small, *views = _views_at(self.config.sweep_width, frames)
        found = plane_sweep.sweep(*views, T_ref_cur[chosen], config)
        if self.config.sweep_fine_width > self.config.sweep_width:
            small, *views = _views_at(self.config.sweep_fine_width, frames)
            found = plane_sweep.refine(*views, T_ref_cur[chosen], found, config)
        return DepthResult(small, (1 / found.inverse_depth).numpy(), np.ones(found.valid.shape, bool), found.confidence.numpy(), Scale.FREE)


def _views_at(width: int, frames: list[CameraFrame]) -> tuple[CameraFrame, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first of the frames at a width [px], its image (3, h, w), those of the others (V, 3, h, w), and K (3, 3)."""
    size = width, round(width * frames[0].size[1] / frames[0].size[0])
    current, *references = (frame.resized(*size) for frame in frames)
    return current, _tensor(current.image), torch.stack([_tensor(r.image) for r in references]), torch.from_numpy(current.K).float()


def _tensor(image: np.ndarray) -> torch.Tensor:
    """(3, H, W) float in [0, 1] of (H, W, 3) uint8."""
    return torch.from_numpy(image).movedim(-1, 0).float() / 255
