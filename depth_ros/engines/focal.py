"""The focal length that a few views of one camera tell, from the flow between all of them."""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from depth_ros.engines.flow import FlowConfig, FlowEngine
from depth_ros.engines.known_flows import KnownFlows, agreeing, reverse
from depth_ros.frames import CameraFrame, FlowResult
from depth_ros.geometry import bundle
from depth_ros.geometry.bundle import Tracks
from depth_ros.geometry.two_view import at_one_scale, essential_from_flow

_FINE = FlowConfig(preset='tuned', finest_scale=0, patch_stride=4, descent_iterations=16, refinement_iterations=5)      # more exact where it begins near enough, and lost where not
_LOST = 0.8                     # share of the pixels whose flow came back that still must with the fine one
_LEAST = 0.2                    # share of a view's pixels whose flow comes back, below which that is chance
_FEW, _MANY = 100, 400          # points of each view, at first and in the end
_FOLLOWED = 2                   # of the searches, to the end
_FACTORS = np.exp(np.linspace(-0.4, 0.4, 5))        # of the focal length that is given, at which the search starts
_FARTHEST = np.exp(0.5)         # such factor that is believed
_TOLD = 0.8                     # of a guess's deviation, beyond which the views have told nothing


@dataclass(frozen=True)
class FocalEstimate:
    """A focal length, as far as views tell it."""

    factor: float       # of the one that was given
    deviation: float    # standard deviation of its logarithm


class FocalEngine:
    """Finds it by bundle adjustment from several starts."""

    def __init__(self) -> None:
        self._fine = FlowEngine(_FINE)

    def step(self, frames: Sequence[CameraFrame], known: KnownFlows) -> FocalEstimate:
        """For two frames or more; `known` has, or finds, the flow between them."""
        flows = self._between_all(frames, known)
        from_first = [flows[0, view] for view in range(1, len(frames))]
        given = frames[0].K
        few = tracks_of(flows, len(frames), _FEW)
        if not few.seen.any():
            return FocalEstimate(1.0, bundle.GIVEN)
        starts = [given * [[factor, 1, 1], [1, factor, 1], [1, 1, 1]] for factor in _FACTORS]
        found = sorted((bundle.adjust(few, _start(from_first, K), K, given[0, 0]) for K in starts), key=lambda one: one.cost)
        many = tracks_of(flows, len(frames), _MANY)
        best = min((bundle.adjust(many, one.T_cam_world, one.K, given[0, 0]) for one in found[:_FOLLOWED]), key=lambda one: one.cost)
        if best.focal_deviation > _TOLD * bundle.GIVEN:
            return FocalEstimate(1.0, bundle.GIVEN)
        return FocalEstimate(float(np.clip(best.K[0, 0] / given[0, 0], 1 / _FARTHEST, _FARTHEST)), best.focal_deviation)

    def _between_all(self, frames: Sequence[CameraFrame], known: KnownFlows) -> dict[tuple[int, int], FlowResult]:
        """Flow between any two frames (i, j), by the better of the ways from either, and the same seen from j."""
        others = [[j for j in range(len(frames)) if j != i] for i in range(len(frames))]
        ways = [dict(zip(js, known.to_views(frames[i], [frames[j] for j in js]), strict=True)) for i, js in enumerate(others)]
        found: dict[tuple[int, int], FlowResult] = {}
        for i, j in itertools.combinations(range(len(frames)), 2):
            usual = max(ways[i][j], reverse(ways[j][i]), key=_share)
            fine = self._fine.step(usual.pair, (usual.flow, usual.backward))
            found[i, j] = fine if _share(fine) > _LOST * _share(usual) else usual
            found[j, i] = reverse(found[i, j])
        return found


def _share(flow: FlowResult) -> float:
    """Of the pixels, whose flow comes back."""
    return float(agreeing(flow).mean())


def tracks_of(flows: dict[tuple[int, int], FlowResult], views: int, count: int, seed: int = 0) -> Tracks:
    """Tracks of so many pixels of each view that `flows` has as a source, to all others; spread evenly over those that flow leads from to another view and back."""
    rng = np.random.default_rng(seed)
    sources, pixels, ends, seen = [], [], [], []
    for source in sorted({source for source, _ in flows}):
        back = {j: agreed for j in range(views) if j != source and (agreed := agreeing(flows[source, j])).mean() >= _LEAST}
        if not back:
            continue
        v, u = np.nonzero(np.any(list(back.values()), 0))
        picked = np.sort(rng.choice(len(u), min(count, len(u)), replace=False))
        u, v = u[picked], v[picked]
        sources.append(np.full(len(u), source))
        pixels.append(np.stack([u, v], -1).astype(np.float64))
        ends.append(np.stack([pixels[-1] + flows[source, j].flow[v, u] if j in back else pixels[-1] for j in range(views)], 1))
        seen.append(np.stack([back[j][v, u] if j in back else np.zeros(len(u), bool) for j in range(views)], 1))
    height = next(iter(flows.values())).flow.shape[0]
    if not sources:
        return Tracks(np.zeros(0, int), np.zeros((0, 2)), np.zeros((0, views, 2)), np.zeros((0, views), bool), height)
    return Tracks(np.concatenate(sources), np.concatenate(pixels), np.concatenate(ends), np.concatenate(seen), height)


def _start(flows: Sequence[FlowResult], K: np.ndarray) -> np.ndarray:
    """Poses T_cam_world (V, 4, 4), the first frame's being the world, that essential matrices say of the flows from it."""
    pairs = [essential_from_flow(flow.flow, K, agreeing(flow)) for flow in flows]
    return np.concatenate([np.eye(4)[None], at_one_scale(pairs, [flow.flow for flow in flows], K)[0]])
