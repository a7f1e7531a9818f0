"""The motion module of DeepV2D: features, residual flow with confidences, and the alignment of poses by Gauss-Newton steps on them.

Source: Teed & Deng, "DeepV2D", section 3.2 and appendix F. Features of frame j are warped into frame i by the depth of i and the present motion; a network sees
how they miss each other and says where each pixel should go, and how sure it is; poses then move such that they do go there. The features are at a
quarter of the images' size, and so are K, depth and all pixels here.

A module may be shown optical flow that was measured (not in the paper): it then tells by how much that errs, and how far it can be trusted. Finding correspondences is
what takes hundreds of thousands of steps to learn, and a robot has them already; which of them to believe, given a depth and a motion, is learned within the hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depth_ros.geometry import gauss_newton, pinhole, se3
from depth_ros.geometry.gauss_newton import Damping, Edges, Step
from depth_ros.geometry.precision import full_precision, widened
from depth_ros.geometry.warp import induced_flow, sample
from depth_ros.models.deepv2d_blocks import Trunk, cropped, grey_maps, plain_conv, standardised, unit
from depth_ros.models.layers import UpConv, centred
from depth_ros.models.pwc_net import cost_volume

if TYPE_CHECKING:
    from depth_ros.models.deepv2d import DeepV2DNetworkConfig

FORMS = 'keyframe', 'global'
STRIDE = 4                  # [px of the image] of a pixel of the maps
MIN_DEPTH = 0.1             # [m] nearer points, before or after the motion, are no evidence
_STEPS = {'keyframe': 2, 'global': 1}       # Gauss-Newton steps for each prediction of the network
_PIXELS = 160 * 120         # of the paper's maps, which its absolute damping of 100 is meant for
_EXTENT = 4, 5              # what is left of an image of 480 x 640 at the end of the pose network
_POSE_UNIT = 0.01           # [m], [rad] of a unit that the pose network gives
_COARSE = 4                 # [px] of the maps that are one of the coarse correlation
_PATCH = 3                  # [px of the maps] of the grey patches that are correlated
_NOISE = 0.02               # grey values: patches with less contrast match nothing
_SHARPNESS = 10.0           # of the expected displacement, to start with
INCONSISTENT = 1.0          # [px of the maps] of measured flow: more is as bad, and so is what frame j does not show
_CONSISTENT = 0.25          # [px of the maps] of measured flow that tells the scale of what it misses
_KERNEL, _LEAST_SCALE = 2.0, 0.05       # scales at which measured flow counts half, and the least scale [px of the maps]
_FINE, _FINEST = 0.25, 0.05     # [px of the maps] up to which the network sees residual flow, and inconsistency, as they are, and beyond which their logarithm


@dataclass(frozen=True)
class MeasuredFlow:
    """Optical flow of every edge at the size of the maps, by whatever measures it."""

    pixels: Tensor          # (B, E, h, w, 2) [px of the maps] in frame j, of each pixel of frame i; finite
    error: Tensor           # (B, E, h, w) [px of the maps] by how much the flow back misses it, in [0, INCONSISTENT]

    def to(self, device: torch.device | str) -> MeasuredFlow:
        """The same on another device."""
        return MeasuredFlow(self.pixels.to(device), self.error.to(device))

    def pick(self, edges: slice | int) -> MeasuredFlow:
        """That of some edges, or of one, without their axis."""
        return MeasuredFlow(self.pixels[:, edges], self.error[:, edges])


def measured_flow(flow: Tensor, error: Tensor) -> MeasuredFlow:
    """Flow (B, E, H, W, 2) and its inconsistency (B, E, H, W), both [px of the images], as the maps see them: a pixel of theirs is the mean of what it covers.

    What is not a number, or beyond what counts, is as inconsistent as can be.
    """
    sound = torch.isfinite(flow).all(-1) & (error < STRIDE * INCONSISTENT)      # also not where the error is no number
    told = torch.cat([torch.where(torch.isfinite(flow), flow, 0.0), torch.where(sound, error, STRIDE * INCONSISTENT)[..., None]], -1) / STRIDE
    maps = F.avg_pool2d(told.flatten(0, 1).movedim(-1, 1), STRIDE, ceil_mode=True, count_include_pad=False).movedim(1, -1).unflatten(0, flow.shape[:2])
    return MeasuredFlow(maps[..., :2] + pinhole.pixel_grid(*maps.shape[2:4], like=flow), maps[..., 2])


class MotionModule(nn.Module):
    """Features of images, and how those of two frames miss each other; see `align` for what is done with it."""

    def __init__(self, config: DeepV2DNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config.motion_width, config.motion_blocks, config.motion_norm)
        self.embed = plain_conv(2 * config.motion_width, config.motion_features, 1)
        self.patches = config.zncc and config.motion_reach > 0
        seen = config.motion_features + (_PATCH ** 2 if self.patches else 0)
        self.flow = ResidualFlow(seen, config.motion_flow, config.motion_levels, config.motion_widest, config.motion_kernel, config.motion_reach, config.measured_flow)
        self.pose = PoseNetwork() if config.pose_network else None

    @property
    def sees_flow(self) -> bool:
        """Whether it is made to see measured flow."""
        return self.config.measured_flow

    def features(self, images: Tensor) -> Tensor:
        """Features (B, C, h, w), h = ceil(H / 4), of images (B, 3, H, W) in [0, 1]; those to be correlated are of unit length, with grey patches if `zncc` asks for them."""
        maps = self.embed(self.trunk(images))
        if self.config.motion_reach or self.sees_flow:
            maps = standardised(maps)
        if self.config.motion_reach:
            maps = unit(maps)
        return torch.cat([maps, patches(grey_maps(images, maps.shape[-2:]))], 1) if self.patches else maps

    def forward(self, features_i: Tensor, warped_j: Tensor, missed: Tensor | None = None, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Residual flow (E, 2, h, w) [px of the maps] and confidence (E, 2, h, w) in [0, 1], both (u, v), of features i and those of j warped onto i (E, C, h, w).

        missed (E, 2, h, w) and error (E, h, w) [px of the maps]: the residual flow by what was measured, and its inconsistency, for a module that is made to see them.
        """
        return self.flow(features_i, warped_j, missed, error)

    def initial_motion(self, image_i: Tensor, image_j: Tensor) -> Tensor:
        """A first guess of the twist (B, 6) whose exp is T_j_i, from two images (B, 3, H, W) in [0, 1]. Raises ValueError without a pose network."""
        if self.pose is None:
            raise ValueError('this motion module was made without a pose network')
        return self.pose(image_i, image_j)


class ResidualFlow(nn.Module):
    """Encoder and decoder of the residual flow: convolutions and ReLU, no norm.

    With a `reach`, it also sees how features i and j agree at displacements of up to so many pixels, on the maps and on maps of a quarter of their size (as
    RAFT does, Teed & Deng, ECCV 2020): it need not learn what matching is, which takes most of the training otherwise.
    """

    def __init__(self, features: int, width: int, levels: int, widest: int, kernel: int, reach: int, measured: bool) -> None:
        super().__init__()
        self.match = Matching(reach) if reach else None
        seen = 0 if self.match is None else self.match.channels
        widths = [min(width << level, widest) for level in range(levels)]
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        told = 4 if measured else 0
        before = 2 * features + seen + told
        for level, outputs in enumerate(widths):
            size = max(kernel - 2 * level, 3)
            self.encoder.append(nn.Sequential(plain_conv(before, outputs, size, 2), nn.ReLU(), plain_conv(outputs, outputs, size), nn.ReLU()))
            before = outputs + (seen if level == 1 else 0)
        before = widths[-1]
        for outputs, skip in zip([*widths[-2::-1], width], [*widths[-2::-1], told], strict=True):
            self.decoder.append(_Up(before, outputs, skip))
            before = outputs
        self.residual, self.confidence = plain_conv(width, 2, 3), plain_conv(width, 2, 3)
        with torch.no_grad():
            for head in (self.residual, self.confidence):       # no motion, and half sure of it everywhere, to start with
                head.weight.mul_(0.1)

    def forward(self, features_i: Tensor, warped_j: Tensor, missed: Tensor | None = None, error: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See MotionModule.forward."""
        told, agreed = features_i[:, :0], None
        if missed is not None:
            agreed = agreement_weight(missed, error)
            told = torch.cat([torch.asinh(missed / _FINE), torch.asinh(error.unsqueeze(1) / _FINEST), agreed], 1)
        x = torch.cat([features_i, warped_j, told], 1)
        coarse: Tensor | None = None
        if self.match is not None:
            x = torch.cat([x, self.match(features_i, warped_j)], 1)
            coarse = self.match(*(F.avg_pool2d(f, _COARSE, ceil_mode=True) for f in (features_i, warped_j)))
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x)
            skips.append(x)
            if level == 1 and coarse is not None:
                x = torch.cat([x, coarse], 1)
        x = skips.pop()
        for up in self.decoder:
            x = up(x, skips.pop() if skips else told)
        residual, confidence = self.residual(x), torch.sigmoid(self.confidence(x))
        return (residual, confidence) if missed is None else (missed + residual, agreed * confidence)


def agreement_weight(missed: Tensor, error: Tensor) -> Tensor:
    """Cauchy weight (E, 1, h, w) in [0, 1] of measured residual flow (E, 2, h, w), whose scale is its median among consistent pixels (error (E, h, w)) where there are any.

    Robust alignment from the start: the network need not learn what a median is. Pixels without depth, whose residual flow is 0, do not count.
    """
    length = missed.norm(dim=1)
    counted = torch.where((error < _CONSISTENT) & (length > 0), length, torch.nan).flatten(1)
    scale = torch.nan_to_num(counted.nanmedian(1).values, 1.0).clamp(min=_LEAST_SCALE)[:, None, None]
    return (1 + (length / (_KERNEL * scale)) ** 2).reciprocal().unsqueeze(1)


class Matching(nn.Module):
    """How features agree at displacements of up to `reach` px, the displacement that is expected from that, and how sure the best one is."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach, self.channels = reach, (2 * reach + 1) ** 2 + 3
        steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
        v, u = torch.meshgrid(steps, steps, indexing='ij')
        self.register_buffer('displacements', torch.stack([u.flatten(), v.flatten()]), persistent=False)      # (2, n)
        self.sharpness = nn.Parameter(torch.tensor(_SHARPNESS))

    def forward(self, features_i: Tensor, features_j: Tensor) -> Tensor:
        """(E, channels, h, w) of features (E, C, h, w)."""
        found = agreement(features_i, features_j, self.reach)
        probability = torch.softmax(self.sharpness * found, 1)
        expected = torch.einsum('en...,cn->ec...', probability, self.displacements)
        return torch.cat([found, expected, probability.amax(1, keepdim=True)], 1)


class _Up(nn.Module):
    """Transposed convolution to twice the size, and a convolution that sees the encoder's map of that size beside it."""

    def __init__(self, inputs: int, outputs: int, skip: int) -> None:
        super().__init__()
        self.up, self.conv = UpConv(inputs, outputs, 3), plain_conv(outputs + skip, outputs, 3)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, outputs, h, w) of x at half the size and the encoder's map (B, skip, h, w), which may have no channels."""
        return F.relu(self.conv(torch.cat([cropped(F.relu(self.up(x)), skip), skip], 1)))


def agreement(features_i: Tensor, features_j: Tensor, reach: int) -> Tensor:
    """Cosine (E, (2 reach + 1)^2, h, w) of features (E, C, h, w) at every displacement; 0 where there are none."""
    root = features_i.shape[1] ** 0.5
    return cost_volume(*(unit(f) * root for f in (features_i, features_j)), reach)


def patches(grey: Tensor) -> Tensor:
    """The window around each pixel of grey (B, 1, h, w) as channels (B, 9, h, w), without its mean, of length 1 unless it has no contrast."""
    height, width = grey.shape[-2:]
    around = F.unfold(F.pad(grey, (_PATCH // 2,) * 4, mode='replicate'), _PATCH).view(-1, _PATCH ** 2, height, width)
    centre = around - around.mean(1, keepdim=True)
    return centre * (centre.square().sum(1, keepdim=True) + (_PATCH * _NOISE) ** 2).rsqrt()


class PoseNetwork(nn.Sequential):
    """A first guess of the motion between two images at half their size: the generic network of the paper's initialisation.

    Its last convolution spans the map; that of an image of another size than 480 x 640 is brought to the extent it has there.
    """

    def __init__(self) -> None:
        def pair(width: int, length: int) -> list[nn.Module]:
            wide = [nn.Conv2d(width, width, (1, length), padding=(0, length // 2)), nn.Conv2d(width, width, (length, 1), padding=(length // 2, 0))]
            return [wide[0], nn.ReLU(), wide[1], nn.ReLU()]

        layers: list[nn.Module] = [plain_conv(6, 32, 7, 2), nn.ReLU(), *pair(32, 7), plain_conv(32, 64, 3, 2), nn.ReLU(), *pair(64, 5)]
        for inputs, outputs, stride in ((64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 256, 2), (256, 256, 1), (256, 256, 2)):
            layers += [plain_conv(inputs, outputs, 3, stride), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(_EXTENT), nn.Conv2d(256, 512, _EXTENT), nn.ReLU(), nn.Conv2d(512, 6, 1))

    def forward(self, image_i: Tensor, image_j: Tensor) -> Tensor:
        """Twist (B, 6) of T_j_i."""
        pair = F.interpolate(centred(torch.cat([image_i, image_j], 1)), scale_factor=0.5, mode='bilinear', align_corners=False)
        return super().forward(pair)[:, :, 0, 0] * _POSE_UNIT


@dataclass(frozen=True)
class MotionIteration:
    """What the network said in one outer iteration, about the motions that it was given, and the poses that followed. E edges, [px] of the maps."""

    T_cam_world: Tensor     # (B, N, 4, 4) after the iteration; gradients reach the network of this iteration only
    residual: Tensor        # (B, E, 2, h, w) [px]
    confidence: Tensor      # (B, E, 2, h, w) in [0, 1]
    valid: Tensor           # (B, E, h, w) bool: depth is known, and the point was inside frame j
    pixels: Tensor          # (B, E, h, w, 2) [px] in frame j: where the network wants each pixel of frame i


@dataclass(frozen=True)
class MotionEstimate:
    """Aligned poses and how they came about."""

    T_cam_world: Tensor                 # (B, N, 4, 4), finite whatever came
    iterations: list[MotionIteration]
    source: Tensor                      # (E,) frame i of each edge that was used
    target: Tensor                      # (E,) frame j
    solved: Tensor                      # (B,) bool: every system had a solution, and every frame that was to move is tied
    tied: Tensor                        # (B, N) bool: held, or tied to a frame that is by what the network saw at last


def damping_for(height: int, width: int) -> Damping:
    """The paper's damping for maps of another size than its 160 x 120: H is a sum over pixels, so what is added to it goes with their number."""
    return Damping(100.0 * height * width / _PIXELS, 1e-4)


def align(module: MotionModule, features: Tensor, depth: Tensor, K: Tensor, T_cam_world: Tensor, edges: tuple[Tensor, Tensor], form: str = 'keyframe',
          fixed: int = 1, iterations: int = 3, steps: int | None = None, damping: Damping | None = None, measured: MeasuredFlow | None = None) -> MotionEstimate:
    """Poses (B, N, 4, 4) moved such that features (B, N, C, h, w) meet where depth (B, N, h, w) [m], 0 where unknown, projects them by K (B, 3, 3) of the maps.

    edges: frames i and j (E,) each. form keyframe: frame 0 is held, each other frame is solved alone on its edge from 0, and only depth[:, 0] is looked at; more
    edges to the same frame are refused. form global: all poses but the first `fixed` in one system on all edges. steps: Gauss-Newton steps for each of the
    `iterations` of the network; 2 and 1 in the paper for the two forms. Gradients do not pass from one iteration to the next. Under autocast only the network runs in half precision.
    measured: flow of every edge, for a module that is made to see it. Raises ValueError where one such gets none or that of other edges, and for edges that the form cannot take.
    """
    if module.sees_flow and measured is None:
        raise ValueError('this motion module sees measured flow, and got none')
    source, target = _edges(edges, form, T_cam_world.device)
    if module.sees_flow and measured.pixels.shape[1] != len(source):
        raise ValueError(f'expected measured flow of the {len(source)} edges that are used, got that of {measured.pixels.shape[1]}')
    height, width = features.shape[-2:]
    damping, steps = damping or damping_for(height, width), steps or _STEPS[form]
    usable = (K.diagonal(dim1=-2, dim2=-1) > 0).all(-1) & torch.isfinite(K).all(-1).all(-1) & torch.isfinite(T_cam_world).flatten(1).all(-1)
    eye = torch.eye(4, dtype=T_cam_world.dtype, device=T_cam_world.device)
    K, T = torch.where(usable[:, None, None], K, eye[:3, :3]), torch.where(torch.isfinite(T_cam_world).all(-1).all(-1)[..., None, None], T_cam_world, eye)
    known = torch.where(torch.isfinite(depth), depth, 0.0)[:, source] * usable[:, None, None, None]
    points, solved, told = full_precision(pinhole.unproject)(known, K[:, None]).flatten(2, 3), usable, []
    for _ in range(iterations):
        T = T.detach()
        motion = full_precision(gauss_newton.relative_motion)(T, source, target)
        seen, pixels = _look(module, features, known, points, K, motion, source, target, measured if module.sees_flow else None)
        graph = Edges(source, target, points, pixels.flatten(2, 3), seen.weights.flatten(3).mT, K)
        T, step = _solve(form, T, motion, graph, fixed, steps, damping)
        solved = solved & step.solved.reshape(len(T), -1).all(-1)
        told.append(MotionIteration(T, seen.residual, seen.confidence, seen.valid, pixels))
    tied = _tied((seen.weights > 0).flatten(2).any(-1), source, target, T.shape[1], fixed if form == 'global' else 1)
    moving = torch.arange(fixed, T.shape[1], device=T.device) if form == 'global' else target
    return MotionEstimate(T, told, source, target, solved & tied[:, moving].all(-1), tied)


@dataclass(frozen=True)
class _Seen:
    residual: Tensor
    confidence: Tensor
    valid: Tensor
    weights: Tensor     # (B, E, 2, h, w) confidence where valid and finite


def _edges(edges: tuple[Tensor, Tensor], form: str, device: torch.device) -> tuple[Tensor, Tensor]:
    if form not in FORMS:
        raise ValueError(f'expected one of the forms {", ".join(FORMS)}, got {form!r}')
    source, target = (torch.as_tensor(e, device=device) for e in edges)
    if form == 'keyframe':
        source, target = source[source == 0], target[source == 0]
        if len(target.unique()) != len(target) or bool((target == 0).any()):
            raise ValueError(f'expected one edge from frame 0 to each other frame, got edges to {target.tolist()}')
    if not len(source):
        raise ValueError('expected at least one edge' + (' from frame 0, the keyframe' if form == 'keyframe' else ''))
    return source, target


def _look(module: MotionModule, features: Tensor, depth: Tensor, points: Tensor, K: Tensor, motion: Tensor, source: Tensor, target: Tensor,
          measured: MeasuredFlow | None) -> tuple[_Seen, Tensor]:
    """What the network says of every edge, depth (B, E, h, w) and points (B, E, h w, 3) being those of its source, and where it wants the pixels (B, E, h, w, 2)."""
    warped, pixels, valid = _warped(features[:, target], depth, points, K, motion)
    given = ()
    if measured is not None:
        missed = torch.where(valid[..., None], measured.pixels - pixels, 0.0).movedim(-1, 2)
        given = missed.flatten(0, 1), measured.error.flatten(0, 1)
    residual, confidence = module(features[:, source].flatten(0, 1), warped, *given)
    residual, confidence = (widened(x).unflatten(0, depth.shape[:2]) for x in (residual, confidence))
    sound = torch.isfinite(residual).all(2) & torch.isfinite(confidence).all(2) & valid
    weights = torch.where(sound[:, :, None], confidence, 0.0)
    pixels = pixels + torch.where(sound[:, :, None], residual, 0.0).movedim(2, -1)
    return _Seen(residual, confidence, valid, weights), pixels


@full_precision
def _warped(features_j: Tensor, depth: Tensor, points: Tensor, K: Tensor, motion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features j (B, E, C, h, w) as frame i sees them (B E, C, h, w), 0 where it cannot; the pixels (B, E, h, w, 2) they come from, and where there is something (B, E, h, w)."""
    flow, in_front = induced_flow(depth, K[:, None], motion)
    pixels = flow + pinhole.pixel_grid(*depth.shape[-2:], like=depth)
    warped, inside = sample(features_j.flatten(0, 1), pixels.flatten(0, 1))
    far = (depth > MIN_DEPTH) & (se3.transform(motion, points)[..., 2].view_as(depth) > MIN_DEPTH)
    valid = in_front & far & inside.view_as(depth)
    return warped * valid.flatten(0, 1)[:, None], pixels, valid


def _tied(evidence: Tensor, source: Tensor, target: Tensor, frames: int, held: int) -> Tensor:
    """Frames (B, N) that edges with evidence (B, E) join, over others or not, to the first `held` ones."""
    joined = evidence.new_zeros(len(evidence), frames * frames, dtype=torch.int).index_add(1, source * frames + target, evidence.int()).unflatten(1, (frames, frames)) > 0
    joined = joined | joined.mT
    tied = torch.arange(frames, device=evidence.device).expand(len(evidence), -1) < held
    for _ in range(frames - held):
        tied = tied | (joined & tied[:, None]).any(-1)
    return tied


@full_precision
def _solve(form: str, T: Tensor, motion: Tensor, graph: Edges, fixed: int, steps: int, damping: Damping) -> tuple[Tensor, Step]:
    """Poses (B, N, 4, 4) after some Gauss-Newton steps, and the last of them."""
    if form == 'global':
        return gauss_newton.global_form(T, graph, fixed, steps, damping)
    moved, step = gauss_newton.keyframe_form(motion, graph, steps, damping)
    return T.index_copy(1, graph.target, moved @ T[:, graph.source]), step


def keyframe_edges(frames: int) -> tuple[Tensor, Tensor]:
    """Edges from frame 0 to every other frame."""
    others = torch.arange(1, frames)
    return torch.zeros_like(others), others


def edges_of(form: str, frames: int) -> tuple[Tensor, Tensor]:
    """The edges of a form: from the keyframe, or between all pairs."""
    return gauss_newton.all_pairs(frames) if form == 'global' else keyframe_edges(frames)
