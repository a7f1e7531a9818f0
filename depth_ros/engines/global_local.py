"""Depth of an image from its flow to an earlier one by the Global-Local network, live: the network as a graph, its scale, and new weights in flight.

The network speaks in units of the baseline ("Global-Local Network for Learning Depth with Very Sparse Supervision", section 3). Metres come from range hits or
from the length of the step that an odometry measured; where neither is there, depth is given up to scale only if asked for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch

from depth_ros import settings
from depth_ros.engines.carried_depth import CarriedDepth
from depth_ros.engines.depth_networks import VARIANTS, NetworkPair, Networks
from depth_ros.engines.flow_guide import FlowGuide, prior_of
from depth_ros.engines.hanging_image import HangingImage
from depth_ros.engines.images import image_tensor
from depth_ros.engines.inference import InferenceConfig
from depth_ros.engines.late_hits import LateHits
from depth_ros.engines.range_projection import resize_hits
from depth_ros.engines.scale import MetricScale, MetricScaleConfig
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import CameraFrame, DepthResult, FlowResult, Scale, pixel_grid
from depth_ros.settings import setting

log = logging.getLogger(__name__)

_ERROR_KNEE = 1.0       # [px] forward-backward error that halves the confidence
_PARALLAX_KNEE = 2.0    # [px] parallax that halves it
_NO_BASELINE = 1e-6     # [m] a shorter step has no direction
_LONGEST_GAP = 0.5      # [s] between images that the motion of late hits is interpolated over
_AT_ONCE = 1.0          # a smoothing that takes the newest frame's word
_FOCAL_SPREAD = 0.2     # relative difference from the focal length of the training from which depth suffers
_RECOGNISED = 0.5       # share of an image whose flow must be consistent for an earlier image's depth to be that of the same place
CARRIED = 'carried along'
_HITS_PATIENCE = 300_000_000, 1_000_000_000     # [ns] without a hit, after which auto takes the odometry's metre: for three times as long as from one hit to the next, within these
_NEVER = -10 ** 18                  # [ns]
_OF_THE_NETWORK = 'variant', 'weights', 'width', 'height', 'backend', 'threads'     # settings that cannot change without loading it again


@dataclass(frozen=True)
class GlobalLocalEngineConfig(InferenceConfig, MetricScaleConfig):
    """Which network at which size, and what tells its scale."""

    variant: str = setting('published', 'the published network, whose shipped weights depart from the paper: a channel of ones for the generated filters, a global module '
                           'that sees the pair 32 px wide, a softplus at the end, and training on log depth, dense and synthetic; or the pose-aware one, which begins '
                           'with what flow and odometry tell of depth', choices=VARIANTS)
    weights: str = setting('', 'checkpoint of the variant (safetensors); empty: the one that comes with the package')
    width: int = setting(256, 'image width that the network works at', 'px', 64, 1920)
    height: int = setting(192, 'image height that the network works at', 'px', 48, 1200)
    scale: str = setting('auto', 'what tells metres: range hits, the step of an odometry, which must be metric; auto: hits while there are any, else odometry; none: depth is in '
                         'units of the baseline. The pose-aware network has its depth from the odometry, so with auto its metre, too, where that is metric. '
                         'Fewer than scale_min_hits hits an image, as of a single rangefinder, are gathered over images only where odometry tells the motion',
                         choices=('auto', 'hits', 'odometry', 'none'))
    # Of a recording with a row of hits: 0.190 (Abs-Rel) with 0.5, 0.200 with 0.3, 0.250 with 0.1; with a single hit an image 0.250, 0.248, 0.248
    scale_smoothing: float = setting(0.5, 'share by which one frame moves the scale, once some have told it: a network errs by another factor in every view', '', 0.001, 1.0)
    scale_patience: int = setting(4, 'frames in a row that must contradict the scale before it starts anew; no more than have told it', '', 1, 10000)
    hits_offset: float = setting(0.25, 'longest time between an image and the range hits that tell its scale; where odometry tells the motion, hits that come late are '
                                 'compared with the image of their own time', 's', 0.0, 1.0)
    guided: bool = setting(True, 'let a pose-aware network begin with what a recursive filter has made of the flow so far, which takes a third of the time of a pair; '
                           'false: with what each pair triangulates by itself')
    min_displacement: float = setting(0.006, 'median displacement, less that of the rotation where it is known, as a share of the width, below which a pair has no depth of its own', '', 0.0, 0.5)
    carry_time: float = setting(5.0, 'how long depth is carried along by the odometry where pairs show less displacement than min_displacement; 0: such pairs have no depth', 's', 0.0, 9.0)
    max_depth: float = setting(20.0, 'depth beyond which a pixel is not valid, once metres are known', 'm', 0.1, 1000.0)


class GlobalLocalResult(NamedTuple):
    """What a step gave; `depth` is None where there is none, `parameters` where the network was not asked."""

    depth: DepthResult | None
    parameters: np.ndarray | None   # (6,) float32, what the global module said of the pair


class _Depth(NamedTuple):
    """An image's depth that range hits may be compared with."""

    depth: np.ndarray       # (H, W) float32 [unit of the odometry]
    trusted: np.ndarray     # (H, W) bool


class GlobalLocalEngine:
    """Steps through flow results of one camera. After a step `reason` says what was missing ('' when all is well), `used` which variant gave the depth (CARRIED: that of an earlier
    image is carried along), and `known` what it began with (None where it takes nothing beforehand).

    `offer` and `rollback` may be called from another thread than `step`.
    """

    def __init__(self, config: GlobalLocalEngineConfig = GlobalLocalEngineConfig()) -> None:
        """Raises ValueError or OSError, naming the file, for weights that cannot be used."""
        settings.check(config)
        self.config = config
        self.networks = Networks(config.variant, config.weights, (config.height, config.width), config)
        self.offer, self.rollback = self.networks.offer, self.networks.rollback
        self.reason = self.used = self.scale_from = ''
        self.known: DepthResult | None = None
        self._scale = MetricScale(config)
        self._late: LateHits[_Depth] = LateHits(config.hits_offset, _LONGEST_GAP)
        self._still, self._last_hits, self._last_hit = HangingImage(), None, _NEVER      # of those that hit something, the stamp [ns]
        self._hits_patience = _HITS_PATIENCE[0]
        self._guide = FlowGuide()
        self._carried = CarriedDepth()
        self._metre, self._carried_scale = 1.0, ''        # of what is carried along: [m] per unit of the odometry, and the setting that told it
        self._told_resize: tuple[int, int] | None = None
        self._told_focal = False

    def change(self, config: GlobalLocalEngineConfig) -> bool:
        """Take over settings that leave the network as it is, even in the midst of a step; False, and nothing changes, for those that need another engine."""
        settings.check(config)
        if any(getattr(config, name) != getattr(self.config, name) for name in _OF_THE_NETWORK):
            return False
        if config.hits_offset != self.config.hits_offset:
            self._late = LateHits(config.hits_offset, _LONGEST_GAP)
        self.config = self._scale.config = config
        return True

    def reset(self) -> None:
        """Forget the scale, as after a jump of the clock; weights stay."""
        self._scale.reset()
        self._still.reset()
        self.forget_places()

    def forget_places(self) -> None:
        """The odometry jumped: late hits no longer lie where its poses say."""
        self._late.clear()
        self._last_hits, self._last_hit = None, _NEVER
        self._guide.reset()
        self._carried.clear()

    def put_hits(self, stamp: int, hits: np.ndarray) -> None:
        """Take in range hits (h, w) [m], 0 where none, as the camera saw them at a stamp [ns], be it in the past: steps that know their pose learn the scale from them."""
        self._late.put(stamp, hits)
        self._last_hits = hits
        self._note_hit(stamp, hits)

    def _note_hit(self, stamp: int, hits: np.ndarray) -> None:
        if stamp > self._last_hit and (hits > 0).any():
            least, most = _HITS_PATIENCE
            self._hits_patience = min(max(least, 3 * (stamp - self._last_hit)), most)
            self._last_hit = stamp

    def asks_hits(self, step_length: float | None) -> bool:
        """Whether hits are asked for the metre where an odometry measured a step [m], or none did (None)."""
        return self.config.scale == 'hits' or self.config.scale == 'auto' and not (self.config.variant == 'pose_aware' and _is_step(step_length))

    @single_threaded()
    def step(self, result: FlowResult, T_ref_cur: np.ndarray | None = None, hits: np.ndarray | None = None, step_length: float | None = None,
             T_odom_cam: np.ndarray | None = None) -> GlobalLocalResult:
        """Depth of the pair's current image, at the network's size.

        `T_ref_cur`: motion (4, 4) of the pair in any unit of length, which the pose-aware network needs. `hits`: sparse depth (h, w) [m] of the current image, 0
        where none, at any size. `step_length`: of T_ref_cur's translation [m], if an odometry measured it. `T_odom_cam`: pose (4, 4) of the current image in T_ref_cur's
        unit; with it, hits of `put_hits` count too, each beside the image of its own time, and a camera that hangs is noticed.
        """
        self.reason = self.used = self.scale_from = ''
        self.known = None
        if hits is not None:
            self._note_hit(result.pair.current.stamp, hits)
        result = self._at_network_size(result)
        self.reason = self._still.step(result.pair, T_odom_cam, T_ref_cur, self._last_hits if hits is None else hits)
        if self.reason:
            return GlobalLocalResult(None, None)
        parallax = parallax_of(result, T_ref_cur)
        moved = float(np.median(parallax[result.valid])) / self.config.width if result.valid.any() else 0.0
        if not moved >= self.config.min_displacement:
            return GlobalLocalResult(self._without_parallax(result, T_ref_cur, T_odom_cam, moved), None)
        self.used = self._variant_for(T_ref_cur)
        if not self.used:
            return GlobalLocalResult(None, None)
        self._compare_focal(result.pair.current)
        if self.config.guided and self.networks.takes_prior(self.used):
            self.known = self._guide.step(result, T_ref_cur, T_odom_cam)
        z, parameters = self.networks.run(self.used, network_pair(result, T_ref_cur, self.known))
        confidence = confidence_of(result, parallax)
        length = _length(T_ref_cur)
        is_placed = T_odom_cam is not None and length > _NO_BASELINE
        if is_placed:
            if self.asks_hits(step_length):
                self._compare_late(_Depth(1.0 / z * np.float32(length), _trusted(confidence)), result.pair.current, T_odom_cam, hits)
            hits = None
        baseline, unit = self._baseline(1.0 / z, confidence, hits, T_ref_cur, step_length, result.pair.current.stamp)
        if baseline is None:
            return GlobalLocalResult(None, parameters)
        depth = 1.0 / z * np.float32(baseline)
        if is_placed and unit is Scale.METRIC:
            self._metre, self._carried_scale = baseline / length, self.config.scale
            self._carried.remember(result.pair.current, T_odom_cam, depth / np.float32(self._metre), confidence)
        return GlobalLocalResult(self._bounded(result.pair.current, depth, confidence, unit), parameters)

    def _without_parallax(self, result: FlowResult, T_ref_cur: np.ndarray | None, T_odom_cam: np.ndarray | None, moved: float) -> DepthResult | None:
        """Depth of a pair whose image moved too little, by this share of its width, to have any of its own; of one that little is recognised in, none."""
        carried = None
        if self.config.scale == self._carried_scale and T_ref_cur is not None and T_odom_cam is not None and result.valid.mean() >= _RECOGNISED:
            carried = self._carried.at(result, T_ref_cur, T_odom_cam, self.config.carry_time)
        if carried is None:
            beyond = '' if T_ref_cur is None else ' beyond what its rotation makes'
            self.reason = f'the image moved by {moved:.4f} of its width{beyond}, less than min_displacement {self.config.min_displacement}: no parallax, no depth'
            return None
        self.used = self.scale_from = CARRIED
        return self._bounded(result.pair.current, carried.depth * np.float32(self._metre), carried.confidence, Scale.METRIC)

    def _bounded(self, frame: CameraFrame, depth: np.ndarray, confidence: np.ndarray, unit: Scale) -> DepthResult:
        """Depth (H, W), 0 where not known, as far as it is to be believed."""
        valid = (depth > 0) & ((depth <= self.config.max_depth) | (unit is not Scale.METRIC))
        return DepthResult(frame, np.where(valid, depth, np.float32(0.0)), valid, confidence, unit)

    def _compare_late(self, depth: _Depth, frame: CameraFrame, T_odom_cam: np.ndarray, hits: np.ndarray | None) -> None:
        """Learn the scale from this image's hits and from those of earlier ones that have come since."""
        if hits is not None:
            self._late.put(frame.stamp, hits)
        self._late.remember(frame, T_odom_cam, depth)
        for then, late in self._late.compared(self._scale.factor):
            self._scale.update(then.depth, then.trusted, late)

    def _variant_for(self, T_ref_cur: np.ndarray | None) -> str:
        """The variant that this pair can have; '' and a reason if none."""
        if self.config.variant == 'published' or _length(T_ref_cur) > _NO_BASELINE:
            return self.config.variant
        self.reason = 'no motion of the pair is known, which the pose-aware network needs'
        if 'published' in self.networks.variants:
            self.reason += ': the published one stands in'
            return 'published'
        return ''

    def _baseline(self, depth: np.ndarray, confidence: np.ndarray, hits: np.ndarray | None, T_ref_cur: np.ndarray | None,
                  step_length: float | None, stamp: int) -> tuple[float | None, Scale]:
        """Length [m] of the baseline, which depth (H, W) of an image's stamp [ns] is in units of, or 1 with `scale: none`; None and a reason where nothing tells it."""
        wanted = self.config.scale
        if wanted == 'none':
            self._add_reason('depth is in units of the baseline, as scale: none asks for')
            return 1.0, Scale.FREE
        is_over = wanted == 'auto' and _is_step(step_length) and stamp - self._last_hit > self._hits_patience       # the last scale may be that of another place, where the network errs otherwise
        asked = not is_over and self.asks_hits(step_length if self.used == self.config.variant else None)       # what stands in speaks of pairs whose motion is not known
        length = self._by_hits(depth, confidence, hits, T_ref_cur) if asked else None
        if length is not None:
            self.scale_from = 'hits'
        elif _is_step(step_length) and wanted in ('auto', 'odometry'):
            length, self.scale_from = step_length, 'odometry'
        if length is None:
            missing = {'auto': 'neither range hits nor odometry tell', 'hits': 'no range hits tell', 'odometry': 'no odometry tells'}[wanted]
            told = '' if hits is None or wanted == 'odometry' else self._lack_of(int((hits > 0).sum()), T_ref_cur)
            self._add_reason(f'{missing} the scale{told}: no depth (scale: none gives it in units of the baseline)')
        return length, Scale.METRIC

    def _by_hits(self, depth: np.ndarray, confidence: np.ndarray, hits: np.ndarray | None, T_ref_cur: np.ndarray | None) -> float | None:
        """Length of the baseline [m] that range hits tell.

        Baselines differ from pair to pair. Where the motion is known in some unit, the metre in that unit is what is smoothed; else every frame speaks for itself.
        """
        length = _length(T_ref_cur)
        known = length > _NO_BASELINE
        scale, unit = (self._scale, length) if known else (MetricScale(replace(self._scale.config, scale_smoothing=_AT_ONCE)), 1.0)
        if hits is not None:
            small = resize_hits(hits, (depth.shape[1], depth.shape[0]))
            scale.update(depth * np.float32(unit), _trusted(confidence), small)
        return None if scale.factor is None else scale.factor * unit

    def _lack_of(self, hits: int, T_ref_cur: np.ndarray | None) -> str:
        """What the hits of a frame, so many, lack to tell the scale."""
        if _length(T_ref_cur) > _NO_BASELINE or hits >= self.config.scale_min_hits:
            return f' ({hits} hits are too few or contradict each other)'
        return (f' ({hits} hits an image are fewer than scale_min_hits {self.config.scale_min_hits}, and they are gathered over images only where odometry tells the motion: '
                'a single rangefinder needs tracking:=true)')

    def _compare_focal(self, camera: CameraFrame) -> None:
        """Warn once of a camera unlike that of the training: the published network sees no calibration, so it takes another angle of view for another motion."""
        trained, focal = self.networks.focal(self.used), camera.K[0, 0] / self.config.width
        if self.used == 'published' and not self._told_focal and trained and abs(focal / trained - 1.0) > _FOCAL_SPREAD:
            self._told_focal = True
            log.warning('the focal length is %.2f of the image width, and the published network learned from %.2f: its depth suffers; '
                        'crop the images if the first is less, or train weights for this camera', focal, trained)

    def _add_reason(self, reason: str) -> None:
        self.reason = f'{self.reason}; {reason}' if self.reason else reason

    def _at_network_size(self, result: FlowResult) -> FlowResult:
        size = self.config.width, self.config.height
        if result.pair.current.size not in (size, self._told_resize):
            self._told_resize = result.pair.current.size
            log.warning('flow of %d x %d pixels is resized to the network\'s %d x %d: give both the same size', *self._told_resize, *size)
        return result.resized(*size)


def _length(T_ref_cur: np.ndarray | None) -> float:
    """Of a motion's translation; 0 where the motion is not known."""
    return 0.0 if T_ref_cur is None else float(np.linalg.norm(T_ref_cur[:3, 3]))


def _is_step(length: float | None) -> bool:
    return length is not None and length > _NO_BASELINE


def _trusted(confidence: np.ndarray) -> np.ndarray:
    """Where depth of a confidence (H, W) may be compared with hits (H, W) bool: at half of the pixels at least."""
    return confidence >= min(0.5, float(np.median(confidence)))


def parallax_of(result: FlowResult, T_ref_cur: np.ndarray | None) -> np.ndarray:
    """(H, W) float32 [px]: length of the flow less what the rotation of T_ref_cur (4, 4) alone makes; of all of it where the motion is not known."""
    flow = result.flow
    if T_ref_cur is not None:
        K, pixels = result.pair.current.K, pixel_grid(*result.pair.current.size)
        flow = flow + pixels - cv2.perspectiveTransform(pixels, K @ np.asarray(T_ref_cur, np.float64)[:3, :3] @ np.linalg.inv(K))
    return cv2.magnitude(*cv2.split(flow))


def confidence_of(result: FlowResult, parallax: np.ndarray) -> np.ndarray:
    """(H, W) float32 in [0, 1]: high where the two directions of the flow agree and the parallax (H, W) [px] is enough to see depth by."""
    consistent = 1 / (1 + (result.error / _ERROR_KNEE) ** 2)
    return (consistent * (parallax / (parallax + _PARALLAX_KNEE))).astype(np.float32)


def network_pair(result: FlowResult, T_ref_cur: np.ndarray | None, known: DepthResult | None = None) -> NetworkPair:
    """What networks see of a pair; without a motion (4, 4) one step sideways stands in its place, which no network looks at. `known`: depth from flow in the motion's unit."""
    T = np.eye(4) if T_ref_cur is None else np.array(T_ref_cur, np.float64)
    length = np.linalg.norm(T[:3, 3])
    T[:3, 3] = T[:3, 3] / length if length > _NO_BASELINE else (1.0, 0.0, 0.0)
    return NetworkPair(*(image_tensor(f.image[None]) for f in (result.pair.current, result.pair.reference)), torch.from_numpy(np.ascontiguousarray(result.flow)).permute(2, 0, 1)[None],
                       torch.from_numpy(result.pair.current.K).float()[None], torch.from_numpy(T).float()[None],
                       torch.from_numpy(prior_of(known, float(length), result.pair.current.size)).permute(2, 0, 1)[None])
