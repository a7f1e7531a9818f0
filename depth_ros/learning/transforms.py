"""A small tree of recorded transforms, in rows of translation and quaternion, so that poses come out of a bag as they went in.

Row (7,): tx ty tz [m], qx qy qz qw. Turning rows into matrices and back would round; composing with an identity does not.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from scipy.spatial.transform import Rotation

from depth_ros.learning.trajectory import PoseTable

IDENTITY = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])


def compose(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row of T_a T_b; exact where one of them is the identity."""
    if np.array_equal(a, IDENTITY):
        return b
    if np.array_equal(b, IDENTITY):
        return a
    turn = Rotation.from_quat(a[3:])
    return np.hstack([turn.apply(b[:3]) + a[:3], (turn * Rotation.from_quat(b[3:])).as_quat()])


def inverse(a: np.ndarray) -> np.ndarray:
    """Row of the inverse; exact for the identity."""
    if np.array_equal(a, IDENTITY):
        return a
    turn = Rotation.from_quat(a[3:]).inv()
    return np.hstack([-turn.apply(a[:3]), turn.as_quat()])


class TransformTree:
    """Transforms by child frame over time. An edge holds from its stamp until its next one, and before its first."""

    def __init__(self) -> None:
        self._edges: dict[str, tuple[str, dict[int, np.ndarray]]] = {}
        self._sorted: dict[str, tuple[list[int], list[np.ndarray]]] = {}

    def add(self, parent: str, child: str, stamp: int, row: np.ndarray) -> None:
        """T_parent_child at a stamp [ns]; the first of a stamp counts, and a child keeps its first parent."""
        self._edges.setdefault(child, (parent, {}))[1].setdefault(stamp, row)
        self._sorted.pop(child, None)

    def ancestors(self, frame: str) -> list[str]:
        """The frame, its parent, and so on up to the root."""
        chain = [frame]
        while chain[-1] in self._edges and self._edges[chain[-1]][0] not in chain:
            chain.append(self._edges[chain[-1]][0])
        return chain

    def lookup(self, target: str, source: str, stamp: int | None = None) -> np.ndarray | None:
        """Row (7,) of T_target_source at a stamp [ns] (the first known one if None), or None if the frames are not connected."""
        up, down = self.ancestors(target), self.ancestors(source)
        common = next((f for f in up if f in down), None)
        if common is None:
            return None
        return compose(inverse(self._chain(up[:up.index(common)], stamp)), self._chain(down[:down.index(common)], stamp))

    def over_time(self, root: str, frame: str) -> PoseTable | None:
        """T_root_frame at every stamp of the edge that leaves the root, or None if the root is not above the frame."""
        chain = self.ancestors(frame)
        if root not in chain[1:]:
            return None
        chain = chain[:chain.index(root)]
        stamps = self._in_order(chain[-1])[0]
        return PoseTable(np.array(stamps, np.int64), np.array([self._chain(chain, s) for s in stamps]))

    def _chain(self, frames: list[str], stamp: int | None) -> np.ndarray:
        """Row that takes points of frames[0] to the parent of frames[-1]."""
        row = IDENTITY
        for frame in reversed(frames):
            stamps, rows = self._in_order(frame)
            at = 0 if stamp is None else max(bisect_right(stamps, stamp) - 1, 0)
            row = compose(row, rows[at])
        return row

    def _in_order(self, child: str) -> tuple[list[int], list[np.ndarray]]:
        if child not in self._sorted:
            edges = sorted(self._edges[child][1].items())
            self._sorted[child] = [s for s, _ in edges], [r for _, r in edges]
        return self._sorted[child]
