"""Depth of a keyframe and the motion of the frames around it, each worked out from the other by turns with DeepV2D's networks.

Z. Teed, J. Deng, "DeepV2D: Video to Depth with Differentiable Structure from Motion", ICLR 2020, section 3.3. It begins with a constant depth, a depth that is
given (a single-image network's, a sensor's), poses that are given, or what flow measured between two views tells of both, takes any number of views, and stops after a fixed number of rounds. The networks learned from
scenes of one size, so lengths are scaled for them, by the median depth, and back. Bad input gives a status and a reason, never an exception or a NaN.
"""
from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from depth_ros import settings
from depth_ros.engines.flow import FAR_APART, FlowConfig, FlowEngine
from depth_ros.engines.focal import FocalEngine, tracks_of
from depth_ros.engines.images import image_tensor
from depth_ros.engines.keyframes import DepthMap, View
from depth_ros.engines.known_flows import TEXTURED, KnownFlows, agreeing, along, reverse
from depth_ros.engines.threads import single_threaded
from depth_ros.frames import CameraFrame, FlowResult, nearest_indices, resize_intrinsics, unusable
from depth_ros.geometry import bundle, gauss_newton, pinhole, se3
from depth_ros.geometry.bundle import KnownPoints, Tracks
from depth_ros.geometry.gauss_newton import Damping, Edges
from depth_ros.geometry.two_view import RelativePose, TwoViewStatus, at_one_scale, essential_from_flow, pair_at
from depth_ros.models.deepv2d import TYPICAL_DEPTH, DeepV2D
from depth_ros.models.deepv2d_motion import STRIDE, MeasuredFlow, MotionEstimate, align, damping_for, edges_of
from depth_ros.settings import setting

_LEAST_TEXTURE = 0.02               # share of an image that must have some
_BELIEVABLE = 1e-4, 1e4             # median depths, whatever the unit
_TRACKS = 1000                      # points of the keyframe that are followed into all views
_FARTHEST = 20.0                    # usual depths beyond which what is triangulated says nothing
_CONSTANT_DEVIATION = 0.5           # relative standard deviation of a constant depth
_DEPTH_DEVIATION = 0.3              # the same of depth that was given or that the network gave, more than it errs by, for its errors are alike over wide areas


class AlternationStatus(enum.Enum):
    """What became of a run."""

    OK = 'ok'
    TOO_FEW_FRAMES = 'too few frames'
    BAD_CALIBRATION = 'bad calibration'
    OTHER_CAMERA = 'other camera'       # frames of different sizes or calibrations
    BLANK = 'blank'                     # too little to see
    NO_PARALLAX = 'no parallax'         # the camera rests, or only turns: there is motion, but no depth
    UNSOLVED = 'unsolved'               # nothing ties some pose
    BAD_DEPTH = 'bad depth'             # that was given: of another size than the image, or an expected one that is no length
    NOT_FINITE = 'not finite'


@dataclass(frozen=True)
class AlternationConfig:
    """How long it runs, and what is unknown."""

    rounds: int = setting(3, 'rounds of motion and depth', '', 1, 50)
    iterations: int = setting(3, 'warps and residual flows of one estimate of the motion', '', 1, 20)
    form: str = setting('keyframe', 'keyframe: every pose is solved alone against the keyframe; global: all in one system, with a depth for every frame', choices=('keyframe', 'global'))
    initial_poses: str = setting('identity', 'where poses begin that are not given: at the keyframe; where the pose network puts them, if there is one; or where the essential matrices of '
                                 'measured flow do, and depth, if none is given, at what the view with most parallax triangulates', choices=('identity', 'network', 'flow'))
    uncalibrated: bool = setting(False, 'solve for one focal length, shared by all frames: by the flow between all of them, if that is where poses begin, else in every round')
    adjust_poses: bool = setting(True, 'with a motion network that sees measured flow, in the form keyframe: adjust poses to that flow and to the depth there is after each motion, unless '
                                 'it solves for the focal length')
    min_frames: int = setting(2, 'frames that a run needs, the keyframe among them', '', 2, 100)
    min_parallax: float = setting(0.004, 'largest parallax of the usual depth, as a share of the image width, below which there is no depth', '', 0.0, 0.5)
    remembered: int = setting(16, 'frames whose features are kept, and pairs whose flow is; those of one run always are', '', 1, 1000)


@dataclass(frozen=True)
class AlternationResult:
    """What a run found, in the unit of what was given; without that, in one in which the usual depth is 2."""

    depth: np.ndarray           # (H, W) float32 of the keyframe, 0 where not known
    confidence: np.ndarray      # (H, W) float32 in [0, 1], 0 where not known
    T_view_key: np.ndarray      # (V, 4, 4), always finite; as it began where nothing was found
    K: np.ndarray               # (3, 3) [px], with the focal length found if uncalibrated
    status: AlternationStatus
    reason: str                 # why not OK; '' if OK
    focal_deviation: float | None = None    # of the logarithm of the focal length, if the flow between all frames told it in the beginning


class FeatureCache:
    """Features of the last frames by stamp and size, so that none is worked out twice."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[int, tuple[int, int]], Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget all, as after a jump of the clock."""
        self._kept.clear()

    def of(self, frames: Sequence[CameraFrame], features: Callable[[Tensor], Tensor], device: torch.device | str = 'cpu') -> Tensor:
        """Features (1, N, C, h, w) of the frames by a network that takes images (M, 3, H, W) in [0, 1]."""
        keys = [(frame.stamp, frame.size) for frame in frames]
        missing = {key: frame for key, frame in zip(keys, frames, strict=True) if key not in self._kept}
        if missing:
            found = features(image_tensor(np.stack([frame.image for frame in missing.values()]), device))
            self._kept.update(zip(missing, found))
        for key in keys:
            self._kept.move_to_end(key)
        wanted = torch.stack([self._kept[key] for key in keys])[None]
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return wanted


@dataclass
class _Scene:
    """A run under way, in the networks' unit. The keyframe is frame 0, and its camera the world."""

    frames: Sequence[CameraFrame]
    K: Tensor                   # (1, 3, 3) [px of the maps]
    T: Tensor                   # (1, N, 4, 4) T_cam_world
    depth: Tensor               # (1, N, H, W), 0 where not known
    confidence: Tensor          # (H, W) of the keyframe's depth
    unit: float                 # what one of the caller's lengths is here
    depth_deviation: float      # relative, of the keyframe's depth where it is known; inf: it is only a place to begin at
    flows: list[FlowResult] = field(default_factory=list)       # from the keyframe to each view, once somebody asked for them
    tracks: Tracks | None = None                                # points of the keyframe that these follow, likewise
    measured: dict[tuple[int, int], MeasuredFlow] = field(default_factory=dict)     # of an edge, frames i and j, likewise
    posed: bool = False                                         # whether its poses were given, and no depth
    focal_deviation: float | None = None                        # of the logarithm of the focal length, if the flow between all frames told it

    def rescale(self) -> None:
        """Bring the usual depth of the keyframe back to what the networks know."""
        factor = TYPICAL_DEPTH / median_depth(self.depth[0, 0])
        self.unit *= factor
        self.depth = self.depth * factor
        self.T = scaled(self.T, factor)


class Alternation:
    """Runs with one network. `network` may be a DeepV2D or anything with its interface, such as one whose parts are graphs."""

    def __init__(self, network: DeepV2D, config: AlternationConfig = AlternationConfig(), device: torch.device | str = 'cpu',
                 flow: FlowConfig = FlowConfig(preset=FAR_APART)) -> None:
        """`flow`: how flow is measured, for the networks that are shown it and for all else that is made of it."""
        settings.check(config)
        if config.initial_poses == 'network' and not network.config.pose_network:
            raise ValueError('initial_poses: this network has no pose network')
        self.config = config
        self.network = network
        self.motion_features, self.depth_features = FeatureCache(config.remembered), FeatureCache(config.remembered)
        self.flows = KnownFlows(FlowEngine(flow), config.remembered)
        self._focal = FocalEngine()
        self._device = device

    def reset(self) -> None:
        """Forget all features and flows, as after a jump of the clock."""
        for known in (self.motion_features, self.depth_features, self.flows):
            known.clear()

    @single_threaded()
    @torch.inference_mode()
    def run(self, frames: Sequence[CameraFrame], depth: DepthMap | None = None, T_view_key: np.ndarray | None = None, expected_depth: float | None = None) -> AlternationResult:
        """Depth of the first frame and the motion from it to each of the others.

        `depth` of the keyframe and `T_view_key` (V, 4, 4) are where it begins, in one unit of length, which the result then has too. Poses alone are first given a
        depth, which is the first round; `expected_depth` is then the median of what can be expected. A single round with poses given leaves them as they are.
        """
        refused = self._refused(frames, T_view_key) or _refused_depth(frames[0], depth, expected_depth)
        if refused is not None:
            return self._given_up(frames, T_view_key, *refused)
        self.flows.make_room(len(frames) * (len(frames) - 1) // 2)
        scene = self._begin(frames, depth, T_view_key, expected_depth)
        problem = None
        for number in range(self.config.rounds):
            problem = (None if scene.posed and number == 0 else self._move(scene)) or self._measure(scene)
            if problem is not None:
                break
        return _result(scene, *(problem or (AlternationStatus.OK, '')))

    # What a run is made of. Each part returns what is wrong, and leaves the scene as it was then

    def _refused(self, frames: Sequence[CameraFrame], T_view_key: np.ndarray | None) -> tuple[AlternationStatus, str] | None:
        if len(frames) < self.config.min_frames:
            return AlternationStatus.TOO_FEW_FRAMES, f'{len(frames)} frames of {self.config.min_frames} that are needed'
        bad = next(filter(None, map(unusable, frames)), '')
        if bad:
            return AlternationStatus.BAD_CALIBRATION, bad
        key, *views = frames
        for view in views:
            if view.size != key.size or not np.allclose(view.K, key.K):
                return AlternationStatus.OTHER_CAMERA, f'a frame of {view.size} pixels and focal length {view.K[0, 0]:.1f} beside a keyframe of {key.size} and {key.K[0, 0]:.1f}'
        if T_view_key is not None and not (np.shape(T_view_key) == (len(views), 4, 4) and np.isfinite(T_view_key).all()):
            return AlternationStatus.NOT_FINITE, f'expected a finite pose (4, 4) for each of {len(views)} views, got {np.shape(T_view_key)}'
        if _is_blank(key) or all(map(_is_blank, views)):
            return AlternationStatus.BLANK, 'there is too little to see in the images'
        return None

    def _given_up(self, frames: Sequence[CameraFrame], T_view_key: np.ndarray | None, status: AlternationStatus, reason: str) -> AlternationResult:
        views = max(len(frames) - 1, 0)
        poses = np.tile(np.eye(4), (views, 1, 1))
        if T_view_key is not None and np.shape(T_view_key) == poses.shape and np.isfinite(T_view_key).all():
            poses = np.array(T_view_key, np.float64)
        shape = frames[0].image.shape[:2] if frames else (0, 0)
        return AlternationResult(np.zeros(shape, np.float32), np.zeros(shape, np.float32), poses, frames[0].K if frames else np.eye(3), status, reason)

    def _begin(self, frames: Sequence[CameraFrame], depth: DepthMap | None, T_view_key: np.ndarray | None, expected_depth: float | None) -> _Scene:
        width, height = frames[0].size
        start = torch.zeros(1, len(frames), height, width, device=self._device)
        confidence = torch.zeros(height, width, device=self._device)
        if depth is not None:
            known = depth.valid & np.isfinite(depth.depth) & (depth.depth > 0)
            start[0, 0] = torch.from_numpy(np.where(known, depth.depth, 0.0)).to(start)
            confidence = (start[0, 0] > 0).float()
            expected_depth = median_depth(start[0, 0])
        elif T_view_key is None:
            start[:] = expected_depth = TYPICAL_DEPTH
        unit = TYPICAL_DEPTH / (expected_depth or TYPICAL_DEPTH)
        T = torch.eye(4, device=self._device).repeat(1, len(frames), 1, 1)
        if T_view_key is not None:
            T[0, 1:] = torch.from_numpy(np.asarray(T_view_key)).to(T)
        elif self.config.initial_poses == 'network':
            images = image_tensor(np.stack([frame.image for frame in frames]), self._device)
            T[0, 1:] = se3.exp(self.network.motion.initial_motion(images[:1].expand(len(frames) - 1, -1, -1, -1), images[1:]))
        K = resize_intrinsics(torch.from_numpy(frames[0].K).float(), 1 / STRIDE, 1 / STRIDE)[None].to(self._device)
        scene = _Scene(frames, K, scaled(T, unit if T_view_key is not None else 1.0), start * unit, confidence, unit, _CONSTANT_DEVIATION if depth is None else _DEPTH_DEVIATION,
                       posed=T_view_key is not None and depth is None)
        if self.config.initial_poses == 'flow' and T_view_key is None:
            self._triangulate(scene)
        return scene

    def _triangulate(self, scene: _Scene) -> None:
        """Begin with what the flow from the keyframe to each view tells: rotation and, if there is parallax, translation; the keyframe's depth, unless it is given, by the one with most of it;
        and, if it is not known, the focal length.
        """
        K = scene.frames[0].K.copy()
        if self.config.uncalibrated:
            told = self._focal.step(scene.frames, self.flows)
            K[[0, 1], [0, 1]] *= told.factor
            scene.K[:, [0, 1], [0, 1]] *= told.factor
            scene.focal_deviation = told.deviation
        flows = [flow.flow for flow in self._flows_to_views(scene)]
        pairs = [essential_from_flow(flow, K, agreeing(seen)) for flow, seen in zip(flows, scene.flows)]
        depth = scene.depth[0, 0].double().cpu().numpy()
        given = bool((scene.confidence > 0).any())
        inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=depth > 0) if given else None
        if len(pairs) > 1:
            pairs = _adjust_pairs(pairs, scene.flows, self._tracks(scene), K)
        poses, usual = at_one_scale(pairs, flows, K, inverse, 1.0 / TYPICAL_DEPTH)
        scene.T[0, 1:] = torch.from_numpy(poses).to(scene.T)
        if usual is not None and not given:
            known = usual > 1 / (_FARTHEST * TYPICAL_DEPTH)
            scene.depth[0, 0] = torch.from_numpy(np.divide(1.0, usual, out=np.zeros_like(usual), where=known)).to(scene.depth)
            scene.depth[0, 1:] = 0.0        # of the others nothing is known
            scene.depth_deviation = np.inf  # flow has told it, and would tell it twice

    def _flows_to_views(self, scene: _Scene) -> list[FlowResult]:
        """From the keyframe, worked out when they are first asked for. No second look is taken at those of given poses: what flow loses there the images still tell."""
        if not scene.flows:
            key, *views = scene.frames
            scene.flows = [self.flows.between(key, view) for view in views] if scene.posed else self.flows.to_views(key, views)
        return scene.flows

    def _tracks(self, scene: _Scene) -> Tracks:
        """Points of the keyframe that its flows to the views follow."""
        if scene.tracks is None:
            scene.tracks = tracks_of({(0, 1 + view): flow for view, flow in enumerate(self._flows_to_views(scene))}, len(scene.frames), _TRACKS)
        return scene.tracks

    def _measured(self, scene: _Scene, edges: list[tuple[int, int]]) -> MeasuredFlow:
        """The flow of edges, frames i and j each, as the networks see it; each edge's stays the same in all rounds."""
        for i, j in edges:
            if (i, j) not in scene.measured:
                scene.measured[i, j] = along([self._flow(scene, i, j)]).to(self._device)
        return MeasuredFlow(*(torch.cat([getattr(scene.measured[edge], name) for edge in edges], 1) for name in ('pixels', 'error')))

    def _flow(self, scene: _Scene, i: int, j: int) -> FlowResult:
        if i == 0 or j == 0:
            of_view = self._flows_to_views(scene)[max(i, j) - 1]
            return of_view if i == 0 else reverse(of_view)
        return self.flows.between(scene.frames[i], scene.frames[j])

    def _move(self, scene: _Scene) -> tuple[AlternationStatus, str] | None:
        """Poses by the depth there is, adjusted to it and to the flow, and the focal length if nothing has told it yet.

        What flow told stays: depth that was made with a wrong focal length agrees with it, and would draw it away.
        """
        config, count = self.config, len(scene.frames)
        unknown = config.uncalibrated and scene.focal_deviation is None
        features = self.motion_features.of(scene.frames, self.network.motion.features, self._device)
        edges = edges_of(config.form, count)
        depth = at_maps(scene.depth, features.shape[-2:])
        measured = self._measured(scene, list(zip(*(e.tolist() for e in edges), strict=True))) if self.network.motion.sees_flow else None
        T, K, solved = scene.T, scene.K, True
        for iterations in [1] * config.iterations if unknown else [config.iterations]:
            found = align(self.network.motion, features, depth, K, T, edges, form=config.form, iterations=iterations, measured=measured)
            T, K = self._refocused(found, depth, K, T) if unknown else (found.T_cam_world, K)
            solved = solved and bool(found.solved.all())
        if not (torch.isfinite(T).all() and torch.isfinite(K).all() and torch.isfinite(found.iterations[-1].residual).all()):
            return AlternationStatus.NOT_FINITE, 'the motion network gives what is not a number'
        if not solved:
            lost = int((~found.tied).sum())
            return AlternationStatus.UNSOLVED, f'nothing in the images ties {lost} of {count - 1} views' if lost else 'what the images say of the poses has no solution'
        scene.T, scene.K = T, K
        if config.adjust_poses and self.network.motion.sees_flow and config.form == 'keyframe' and not unknown:
            self._adjust_to_depth(scene)
        return None

    def _adjust_to_depth(self, scene: _Scene) -> None:
        """Move poses such that flow from the keyframe and its depth, which gives way as far as it may err, agree best: by what the network sees alone they drift from round to round."""
        tracks = self._tracks(scene)
        column, row = tracks.pixels.astype(int).T
        depth = scene.depth[0, 0].double().cpu().numpy()[row, column]
        inverse = 1.0 / np.where(depth > 0, depth, median_depth(scene.depth[0, 0]))
        points = KnownPoints(inverse, np.where(depth > 0, scene.depth_deviation * inverse, np.inf))
        K = resize_intrinsics(scene.K[0].double().cpu().numpy(), STRIDE, STRIDE)
        scene.T[0] = torch.from_numpy(bundle.adjust(tracks, scene.T[0].double().cpu().numpy(), K, None, points).T_cam_world).to(scene.T)

    def _refocused(self, found: MotionEstimate, depth: Tensor, K: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
        """Poses and K from what the network said of poses T (1, N, 4, 4), the focal length being solved for as well."""
        said = found.iterations[-1]
        weights = torch.where(said.valid[:, :, None] & torch.isfinite(said.confidence), said.confidence, 0.0)
        edges = Edges(found.source, found.target, pinhole.unproject(depth[:, found.source], K[:, None]).flatten(2, 3), said.pixels.flatten(2, 3), weights.flatten(3).mT, K)
        damping = damping_for(*depth.shape[-2:])
        focal = Damping(damping.absolute, gauss_newton.FOCAL_DAMPING.relative)
        if self.config.form == 'global':
            solved = gauss_newton.uncalibrated_global_form(T, edges, 1, 1, damping, focal)
            return solved.poses, solved.K
        motion = gauss_newton.relative_motion(T, found.source, found.target)
        solved = gauss_newton.uncalibrated_keyframe_form(motion, edges, 2, damping, focal)
        return T.index_copy(1, found.target, solved.poses @ T[:, :1]), solved.K

    def _measure(self, scene: _Scene) -> tuple[AlternationStatus, str] | None:
        """Depth by the poses there are: of the keyframe, and in global form of every other frame too."""
        parallax, width = self._parallax(scene), scene.frames[0].size[0]
        if not parallax >= self.config.min_parallax * width:
            return AlternationStatus.NO_PARALLAX, f'the usual depth moves by {parallax:.2f} pixels: the camera rests or only turns, which tells no depth'
        features = self.depth_features.of(scene.frames, self.network.depth.features, self._device)
        count = len(scene.frames)
        keys = range(count) if self.config.form == 'global' else range(1)
        found = [self._depth_of(scene, features, [key, *(i for i in range(count) if i != key)]) for key in keys]
        if not all(torch.isfinite(part).all() for pair in found for part in pair):
            return AlternationStatus.NOT_FINITE, 'the depth network gives what is not a number'
        scene.depth, scene.confidence = scene.depth.clone(), found[0][1]
        for key, (depth, _) in zip(keys, found, strict=True):
            scene.depth[0, key] = depth
        scene.depth_deviation = _DEPTH_DEVIATION
        scene.rescale()
        return None

    def _depth_of(self, scene: _Scene, features: Tensor, order: list[int]) -> tuple[Tensor, Tensor]:
        """Depth and confidence (H, W) of the first frame of an order."""
        key, *views = order
        T_view_key = scene.T[:, views] @ se3.inverse(scene.T[:, key:key + 1])
        measured = self._measured(scene, [(key, view) for view in views]) if self.network.depth.sees_flow else None
        estimate = self.network.depth(features[:, order], scene.K, T_view_key, self.network.planes(features), scene.depth.shape[-2:], measured=measured)
        return estimate.depths[-1][0], estimate.confidence[0]

    def _parallax(self, scene: _Scene) -> float:
        """Of the usual depth between the keyframe and the view farthest from it [px of the image]."""
        depth = scene.depth[0, 0]
        usual = median_depth(depth) if bool((depth > 0).any()) else TYPICAL_DEPTH
        t = (se3.inverse(scene.T[:, :1]) @ scene.T[:, 1:])[..., :3, 3]
        return STRIDE * float(scene.K[0, 0, 0] * t.norm(dim=-1).max()) / usual


def _refused_depth(key: CameraFrame, depth: DepthMap | None, expected_depth: float | None) -> tuple[AlternationStatus, str] | None:
    if depth is not None and not depth.depth.shape == depth.valid.shape == key.image.shape[:2]:
        return AlternationStatus.BAD_DEPTH, f'a depth map of {depth.depth.shape} and a mask of {depth.valid.shape} for an image of {key.image.shape[:2]} pixels'
    if expected_depth is not None and not 0 < expected_depth < np.inf:
        return AlternationStatus.BAD_DEPTH, f'expected a positive and finite expected depth, got {expected_depth}'
    return None


def _is_blank(frame: CameraFrame) -> bool:
    return bool((View(frame, np.eye(4)).texture > TEXTURED).mean() < _LEAST_TEXTURE)


def median_depth(depth: Tensor) -> float:
    """Median of a depth (H, W) where it is known; of every fourth pixel and row, which is enough."""
    sampled = depth[::4, ::4]
    known = sampled[sampled > 0]
    return float(known.median().clamp(*_BELIEVABLE)) if known.numel() else TYPICAL_DEPTH


def scaled(T: Tensor, factor: float) -> Tensor:
    """Motions (..., 4, 4) in another unit of length."""
    return torch.cat([torch.cat([T[..., :3, :3], T[..., :3, 3:] * factor], -1), T[..., 3:, :]], -2)


def at_maps(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth (1, N, H, W) at the nearest pixels of maps of a size (h, w): nothing is mixed with what is not known."""
    rows, columns = (torch.from_numpy(nearest_indices(before, after)).to(depth.device) for before, after in zip(depth.shape[-2:], size, strict=True))
    return depth.index_select(-2, rows).index_select(-1, columns)


def _adjust_pairs(pairs: Sequence[RelativePose], flows: Sequence[FlowResult], tracks: Tracks, K: np.ndarray) -> list[RelativePose]:
    """Poses that explain the flows of all pairs, and the tracks of these, together: one pair may be taken for another that turns more and moves less, all of them hardly."""
    start = at_one_scale(pairs, [flow.flow for flow in flows], K)[0]
    T = bundle.adjust(tracks, np.concatenate([np.eye(4)[None], start]), K, None).T_cam_world[1:]
    told = [pair_at(pose, flow.flow, K, agreeing(flow)) for pose, flow in zip(T, flows, strict=True)]
    return [now if now.status is TwoViewStatus.OK else before for now, before in zip(told, pairs, strict=True)]


def _result(scene: _Scene, status: AlternationStatus, reason: str) -> AlternationResult:
    """A scene in the caller's unit."""
    K = scene.frames[0].K.copy()
    K[[0, 1], [0, 1]] *= STRIDE * float(scene.K[0, 0, 0]) / K[0, 0]
    T = scaled(scene.T[0, 1:] @ se3.inverse(scene.T[0, :1]), 1 / scene.unit).double().cpu().numpy()
    known = status is AlternationStatus.OK or bool((scene.confidence > 0).any())    # a constant depth that it began with is not a result
    depth = (scene.depth[0, 0] / scene.unit if known else torch.zeros_like(scene.depth[0, 0])).cpu().numpy()
    return AlternationResult(depth, scene.confidence.cpu().numpy(), T, K, status, reason, scene.focal_deviation)
