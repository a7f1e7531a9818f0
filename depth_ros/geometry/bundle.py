"""Bundle adjustment of a few views of one camera whose focal length may not be known.

Poses, the focal length, and one inverse depth a point are solved for together, the points by elimination (Triggs et al., "Bundle Adjustment - A Modern Synthesis",
2000), with Levenberg-Marquardt steps and the robust error of Geman and McClure. Essential matrices see two views at a time and leave a point's depth free in each pair;
here all views share it, which tells the focal length far better. A shift that grows from row to row is solved for as well, for rows are read one after
the other: what a turning camera makes of that looks much like another focal length.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from depth_ros.geometry import pinhole

INDEPENDENT = 100           # the errors of flow are alike over wide areas: however many observations there are, they tell as much as so many
GIVEN = 0.3                 # standard deviation of the logarithm of a focal length that somebody guessed
_READOUT = 1.0              # [px] the same, of the shift between the first row and the last
_LEAST_NOISE = 1e-3         # [px^2] variance of flow, each way, that is believed
_TRIANGULATIONS = 6         # steps of the points alone, to begin with
_STAGES = (5.0, 8, False), (2.0, 8, True), (0.7, 25, True)      # scale of the robust error [px], most steps, and whether the focal length is free
_CONVERGED = 1e-5           # of the cost, by which a last step lessens it
_NEAREST_ZERO = 1e-4        # inverse depth, of a usual one of about 1
_MAX_FOCAL_STEP = 0.1       # of the logarithm
_DOUBTED = 2.0              # deviations from what is known of a point, at which that pulls a quarter as hard
_MEDIAN_OF_TWO = 2.0 * np.log(2.0)     # of the sum of two squared normal errors, in their variance
_TINY = 1e-6


@dataclass(frozen=True)
class Tracks:
    """Pixels of some of V views, and where the others see the same points."""

    source: np.ndarray      # (P,) int, the view that a pixel is of
    pixels: np.ndarray      # (P, 2) [px]
    ends: np.ndarray        # (P, V, 2) [px]
    seen: np.ndarray        # (P, V) bool, whether the end is known; False for the source itself
    height: int             # [px] of the images


@dataclass(frozen=True)
class Bundle:
    """What explains tracks; the first camera is the world. Lengths are in the unit of what was known of the points, else in none."""

    T_cam_world: np.ndarray     # (V, 4, 4)
    inverse_depth: np.ndarray   # (P,) in the source's camera
    K: np.ndarray               # (3, 3) [px]
    readout: np.ndarray         # (V, 2) [px] shift between the first row and the last
    cost: float = np.inf        # [px^2] robust squared error of an observation, and its share of what pulls at the points
    noise: float = np.inf       # [px^2] variance of one, each way, by the median of what is left
    information: float = 0.0    # [px^2] about the logarithm of the focal length, whatever else may change with it, of as many observations as are independent

    @property
    def focal_deviation(self) -> float:
        """Standard deviation of the logarithm of the focal length, as far as flow and the guess tell."""
        return float((self.information / max(self.noise, _LEAST_NOISE) + GIVEN ** -2) ** -0.5)


@dataclass(frozen=True)
class KnownPoints:
    """What somebody knows of the points of tracks beforehand."""

    inverse_depth: np.ndarray   # (P,) in the source's camera, positive
    deviation: np.ndarray       # (P,) standard deviation of it; inf: it is only a place to begin at


def adjust(tracks: Tracks, T_cam_world: np.ndarray, K: np.ndarray, given: float | None, known: KnownPoints | None = None) -> Bundle:
    """The poses, inverse depths and focal length nearest to T_cam_world (V, 4, 4) and K (3, 3) [px] that explain the tracks best.

    The focal length is pulled towards the `given` one [px, along x] as weakly as a guess deserves, which decides only where the tracks tell nothing. None: the camera is calibrated, so that
    its focal length stays, and it reads all rows at once. Points begin at what is `known` of them and are pulled towards it, by a robust error too, which also gives lengths the unit that it has;
    where nothing is known of any, they begin where the poses triangulate them.
    """
    known = known or KnownPoints(np.ones(len(tracks.pixels)), np.full(len(tracks.pixels), np.inf))
    state = Bundle(np.array(T_cam_world, np.float64), known.inverse_depth.astype(np.float64), np.array(K, np.float64), np.zeros((len(T_cam_world), 2)))
    if not tracks.seen.any():
        return state
    for _ in range(0 if np.isfinite(known.deviation).any() else _TRIANGULATIONS):
        state = replace(state, inverse_depth=_triangulated(_linearise(tracks, state), state.inverse_depth, _STAGES[0][0]))
    for scale, steps, free in _STAGES:
        state = _descend(tracks, state, given, known, scale, steps, free)
    return state


@dataclass(frozen=True)
class _Linear:
    """O observations at a state: residuals and their derivatives by the 8 V + 1 unknowns beside the points, and by the observed point's inverse depth."""

    point: np.ndarray       # (O,) ascending
    error: np.ndarray       # (O, 2) [px]
    by_rest: np.ndarray     # (O, 2, 8 V + 1): twists of the views, read-outs of the views, logarithm of the focal length
    by_depth: np.ndarray    # (O, 2)


def _linearise(tracks: Tracks, state: Bundle) -> _Linear:
    """Observations and their derivatives; twists move a camera from the left."""
    point, target, source, towards, ends, points, T = _moved(tracks, state)
    views, focal = len(state.T_cam_world), state.K[[0, 1], [0, 1]]
    by_point = np.zeros((len(point), 2, 3))         # derivative of the pixel by the moved point
    inverse_z = 1.0 / points[:, 2]
    by_point[:, [0, 1], [0, 1]] = focal * inverse_z[:, None]
    by_point[:, :, 2] = -focal * points[:, :2] * inverse_z[:, None] ** 2
    by_twist = np.concatenate([by_point * state.inverse_depth[point, None, None], -by_point @ _hat(points)], -1)
    rest = np.zeros((len(point), 2, 8 * views + 1))
    twists, readouts = rest[:, :, :6 * views].reshape(-1, 2, views, 6), rest[:, :, 6 * views:-1].reshape(-1, 2, views, 2)
    every = np.arange(len(point))
    twists[every, :, target], twists[every, :, source] = by_twist, -by_twist @ _adjoint(T)
    readouts[every, :, target] = _rows(tracks, state, ends)[:, None, None] * np.eye(2)
    readouts[every, :, source] = -_rows(tracks, state, tracks.pixels[point])[:, None, None] * (by_point @ T[:, :3, :2] / focal)
    # Growing, the focal length spreads the image of the moved point, and draws the point itself towards the axis.
    rest[:, :, -1] = focal * points[:, :2] * inverse_z[:, None] - np.einsum('oab,obc,oc->oa', by_point, T[:, :3, :2], towards[:, :2])
    return _Linear(point, _errors(tracks, state, target, ends, points), rest, (by_point @ T[:, :3, 3:])[..., 0])


def _moved(tracks: Tracks, state: Bundle) -> tuple[np.ndarray, ...]:
    """Of all observations (O): point, target and source view, ray (O, 3) in the source, end (O, 2) [px], point (O, 3) in the target times its inverse depth, T_target_source."""
    point, target = np.nonzero(tracks.seen)
    source = tracks.source[point]
    centre = state.K[:2, 2]
    straight = tracks.pixels[point] - _rows(tracks, state, tracks.pixels[point])[:, None] * state.readout[source] - centre
    rays = np.pad(straight / state.K[[0, 1], [0, 1]], ((0, 0), (0, 1)), constant_values=1.0)
    T = (state.T_cam_world[:, None] @ np.linalg.inv(state.T_cam_world))[target, source]
    points = (T[:, :3, :3] @ rays[..., None])[..., 0] + state.inverse_depth[point, None] * T[:, :3, 3]
    points[:, 2] = np.maximum(points[:, 2], pinhole.MIN_DEPTH)
    return point, target, source, rays, tracks.ends[point, target], points, T


def _errors(tracks: Tracks, state: Bundle, target: np.ndarray, ends: np.ndarray, points: np.ndarray) -> np.ndarray:
    """What is left (O, 2) [px] between ends and moved points."""
    return ends - _rows(tracks, state, ends)[:, None] * state.readout[target] - state.K[[0, 1], [0, 1]] * points[:, :2] / points[:, 2:] - state.K[:2, 2]


def _rows(tracks: Tracks, state: Bundle, pixels: np.ndarray) -> np.ndarray:
    """Rows (O,) of pixels (O, 2) from the principal point, as shares of the height."""
    return (pixels[:, 1] - state.K[1, 2]) / tracks.height


def _squared_errors(tracks: Tracks, state: Bundle) -> np.ndarray:
    """Of all observations (O,) [px^2]."""
    _, target, _, _, ends, points, _ = _moved(tracks, state)
    return (_errors(tracks, state, target, ends, points) ** 2).sum(1)


def _cost(tracks: Tracks, state: Bundle, pull: _Pull, scale: float) -> float:
    squared = _squared_errors(tracks, state)
    return float((squared / (1 + squared / scale ** 2)).sum()) + pull.cost(state)


@dataclass(frozen=True)
class _Pull:
    """What is expected of the unknowns beside what is observed."""

    given: float        # [px] focal length
    observations: int
    noise: float        # [px^2] variance of one, each way
    known: KnownPoints

    @property
    def by_readout(self) -> float:
        """Information [px^2] in the units of the observations."""
        return self.noise * self.observations / INDEPENDENT / _READOUT ** 2

    @property
    def by_focal(self) -> float:
        """Likewise."""
        return self.noise * self.observations / INDEPENDENT / GIVEN ** 2

    def on_points(self, state: Bundle) -> tuple[np.ndarray, np.ndarray]:
        """Information and gradient (P,) likewise of each point's inverse depth, the less the farther that is from what is known of it: what flow contradicts, gives way."""
        off = (self.known.inverse_depth - state.inverse_depth) / self.known.deviation
        information = self.noise / self.known.deviation ** 2 * (1 + (off / _DOUBTED) ** 2) ** -2.0
        return information, information * (self.known.inverse_depth - state.inverse_depth)

    def cost(self, state: Bundle) -> float:
        """[px^2]"""
        off = ((self.known.inverse_depth - state.inverse_depth) / self.known.deviation) ** 2
        rest = self.by_readout * float((state.readout ** 2).sum()) + self.by_focal * float(np.log(state.K[0, 0] / self.given) ** 2)
        return rest + self.noise * float((off / (1 + off / _DOUBTED ** 2)).sum())


def _weights(error: np.ndarray, scale: float) -> np.ndarray:
    """Of Geman and McClure's error, for residuals (O, 2)."""
    return (1 + (error ** 2).sum(1) / scale ** 2) ** -2.0


def _per_point(linear: _Linear, weights: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums over every point's observations: information (P,), gradient (P,) of its inverse depth, and what ties it to the rest (P, 8 V + 1)."""
    weighed = weights[:, None] * linear.by_depth
    tie = np.zeros((points, linear.by_rest.shape[-1]))
    first = np.unique(linear.point, return_index=True)
    tie[first[0]] = np.add.reduceat(np.einsum('oa,oan->on', weighed, linear.by_rest), first[1])
    return (np.bincount(linear.point, (weighed * linear.by_depth).sum(1), points), np.bincount(linear.point, (weighed * linear.error).sum(1), points), tie)


def _triangulated(linear: _Linear, inverse_depth: np.ndarray, scale: float) -> np.ndarray:
    """Inverse depths (P,) after a step of theirs alone."""
    information, gradient, _ = _per_point(linear, _weights(linear.error, scale), len(inverse_depth))
    return np.clip(inverse_depth + np.clip(gradient / (information + 1e-3), -1.0, 1.0), _NEAREST_ZERO, 20.0)


def _descend(tracks: Tracks, state: Bundle, given: float | None, known: KnownPoints, scale: float, steps: int, free: bool) -> Bundle:
    """Levenberg-Marquardt steps until they gain nothing. The first pose stays; its unknowns, and the focal length unless it is free, are left out."""
    views, count = len(state.T_cam_world), int(tracks.seen.sum())
    chosen = np.arange(6, 6 * views if given is None else 8 * views + free)
    given = given or state.K[0, 0]
    noise = max(0.5 * _cost(tracks, state, _Pull(given, count, 0.0, known), _STAGES[-1][0]) / count, _LEAST_NOISE)
    pull, damping = _Pull(given, count, noise, known), 1e-3
    cost = _cost(tracks, state, pull, scale)
    for _ in range(steps):
        linear = _linearise(tracks, state)
        weights = _weights(linear.error, scale)
        depth_information, depth_gradient, tie = _per_point(linear, weights, len(state.inverse_depth))
        pull_information, pull_gradient = pull.on_points(state)
        depth_information, depth_gradient = depth_information + pull_information, depth_gradient + pull_gradient
        J = linear.by_rest.reshape(-1, 8 * views + 1)
        H, b = _gram(J, np.repeat(weights, 2)), J.T @ (weights[:, None] * linear.error).reshape(-1)
        expected = np.concatenate([np.zeros(6 * views), np.full(2 * views, pull.by_readout), [pull.by_focal]])
        H[np.diag_indices_from(H)] += expected
        b -= expected * np.concatenate([np.zeros(6 * views), state.readout.ravel(), [np.log(state.K[0, 0] / given)]])
        while damping < 1e3:
            left = 1.0 / (depth_information * (1 + damping) + _TINY)
            reduced = (H - _gram(tie, left))[np.ix_(chosen, chosen)]
            step = np.zeros(8 * views + 1)
            step[chosen] = np.linalg.solve(reduced + np.diag(damping * np.diag(H)[chosen] + _TINY), (b - tie.T @ (depth_gradient * left))[chosen])
            tried = _stepped(state, step, (depth_gradient - tie @ step) * left)
            after = _cost(tracks, tried, pull, scale)
            if after < cost:
                break
            damping *= 5.0
        else:
            break
        gained, state, cost, damping = cost - after, tried, after, max(damping / 5.0, 1e-9)
        if gained < _CONVERGED * cost:
            break
    left = float(np.median(_squared_errors(tracks, state)))
    information = min(INDEPENDENT, count) / count * _focal_information(H, tie, depth_information, pull)
    return replace(state, cost=cost / count, noise=left / _MEDIAN_OF_TWO, information=information)


def _gram(J: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """J^T W J (n, n) of J (N, n) and weights (N,), by torch, whose threads are as many as its caller wants."""
    rows = torch.from_numpy(J)
    return ((rows * torch.from_numpy(weights)[:, None]).T @ rows).numpy()


def _stepped(state: Bundle, step: np.ndarray, depth_step: np.ndarray) -> Bundle:
    views = len(state.T_cam_world)
    T = np.stack([_exp(twist) @ pose for twist, pose in zip(step[:6 * views].reshape(views, 6), state.T_cam_world, strict=True)])
    K = state.K.copy()
    K[[0, 1], [0, 1]] *= np.exp(np.clip(step[-1], -_MAX_FOCAL_STEP, _MAX_FOCAL_STEP))
    return replace(state, T_cam_world=T, K=K, inverse_depth=np.maximum(state.inverse_depth + depth_step, _NEAREST_ZERO), readout=state.readout + step[6 * views:-1].reshape(views, 2))


def _focal_information(H: np.ndarray, tie: np.ndarray, depth_information: np.ndarray, pull: _Pull) -> float:
    """What is known of the last unknown but by what was expected of it, when all others may be anything."""
    reduced = (H - _gram(tie, 1.0 / (depth_information + _TINY)))[6:, 6:]
    others, coupling = reduced[:-1, :-1] + _TINY * np.eye(len(reduced) - 1), reduced[:-1, -1]
    return max(float(reduced[-1, -1] - pull.by_focal - coupling @ np.linalg.solve(others, coupling)), 0.0)


def _exp(twist: np.ndarray) -> np.ndarray:
    """(4, 4) of a small motion (6,): translation, rotation vector."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(twist[3:])[0], twist[:3]
    return T


def _hat(v: np.ndarray) -> np.ndarray:
    """Cross-product matrices (..., 3, 3) of vectors (..., 3)."""
    return np.cross(np.eye(3), v[..., None, :]).swapaxes(-1, -2) * -1.0


def _adjoint(T: np.ndarray) -> np.ndarray:
    """(..., 6, 6) of poses (..., 4, 4), for twists of translation and rotation."""
    R = T[..., :3, :3]
    return np.concatenate([np.concatenate([R, _hat(T[..., :3, 3]) @ R], -1), np.concatenate([np.zeros_like(R), R], -1)], -2)
