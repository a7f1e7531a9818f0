"""Depth of a keyframe by a plane sweep against past frames whose poses are known, chosen by their parallax."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from depth_ros.engines.images import image_tensor
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import CameraFrame, DepthResult, Scale
from depth_ros.geometry import plane_sweep
from depth_ros.settings import setting

_VIEWS = 40                     # past frames that references are chosen from
_SWEPT = 0.22, 5.5              # multiples of the median inverse depth that a sweep covers


@dataclass(frozen=True)
class SweepSettings:
    """How often and how finely depth is swept."""

    sweep_every: int = setting(10, 'frames from one depth to the next, of a plane sweep or of the network', '', 1, 1000)
    sweep_planes: int = setting(64, 'planes of a sweep', '', 8, 512)
    sweep_width: int = setting(160, 'image width that planes are swept at', 'px', 64, 1920)
    sweep_fine_width: int = setting(320, 'image width that the swept depth is refined at, and comes out at; not above sweep_width: it is not refined', 'px', 64, 1920)


class PosedFrames:
    """Remembers posed frames, to make depth of the newest one by those before it on request. After that `reason` says why there is none ('' when all is well)."""

    reason = ''

    def __init__(self) -> None:
        self.views: deque[tuple[CameraFrame, np.ndarray]] = deque(maxlen=_VIEWS)

    def reset(self) -> None:
        """Forget the frames."""
        self.views.clear()

    def remember(self, frame: CameraFrame, T_odom_cam: np.ndarray) -> None:
        """Keep a frame and its pose (4, 4); the oldest goes when there are too many."""
        self.views.append((frame, T_odom_cam))

    def step(self, middle: float) -> DepthResult | None:
        """Depth of the newest frame, whose usual inverse depth is `middle` [1/m]; None if there is no earlier frame, or nothing to be learned from them."""
        work = self.later(middle)
        return None if work is None else work()

    def later(self, middle: float) -> Callable[[], DepthResult | None] | None:
        """What `step` would do, as work that may be done later and in another thread, one piece at a time; None if there is no earlier frame."""
        frame, T_odom_cam = self.views[-1]
        past = list(self.views)[:-1]
        if not past:
            return None
        T_ref_cur = torch.from_numpy(np.stack([np.linalg.inv(T) @ T_odom_cam for _, T in past])).float()
        chosen = plane_sweep.choose_views(T_ref_cur, 1 / middle, self.baselines)
        return partial(self._work, [frame, *(past[i][0] for i in chosen)], T_ref_cur[chosen], middle)

    @property
    def baselines(self) -> tuple[float, ...]:
        """Of the frames that are wanted, as shares of the usual depth."""
        raise NotImplementedError

    def _work(self, frames: list[CameraFrame], T_ref_cur: torch.Tensor, middle: float) -> DepthResult | None:
        """Depth of the first of the frames, by the others and T_ref_cur (V, 4, 4)."""
        raise NotImplementedError


class Sweeper(PosedFrames):
    """Sweeps planes."""

    def __init__(self, config: SweepSettings = SweepSettings()) -> None:
        super().__init__()
        self.config = config

    @property
    def baselines(self) -> tuple[float, ...]:
        """See plane_sweep.BASELINES."""
        return plane_sweep.BASELINES

    @single_threaded()
    def _work(self, frames: list[CameraFrame], T_ref_cur: torch.Tensor, middle: float) -> DepthResult:
        config = plane_sweep.SweepConfig(planes=self.config.sweep_planes, min_inverse_depth=_SWEPT[0] * middle, max_inverse_depth=_SWEPT[1] * middle)
        small, *views = _views_at(self.config.sweep_width, frames)
        found = plane_sweep.sweep(*views, T_ref_cur, config)
        if self.config.sweep_fine_width > self.config.sweep_width:
            small, *views = _views_at(self.config.sweep_fine_width, frames)
            found = plane_sweep.refine(*views, T_ref_cur, found, config)
        return DepthResult(small, (1 / found.inverse_depth).numpy(), np.ones(found.valid.shape, bool), found.confidence.numpy(), Scale.FREE)


def _views_at(width: int, frames: list[CameraFrame]) -> tuple[CameraFrame, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first of the frames at a width [px], its image (3, h, w), those of the others (V, 3, h, w), and K (3, 3)."""
    size = width, round(width * frames[0].size[1] / frames[0].size[0])
    current, *references = (frame.resized(*size) for frame in frames)
    return current, image_tensor(current.image), image_tensor(np.stack([r.image for r in references])), torch.from_numpy(current.K).float()
