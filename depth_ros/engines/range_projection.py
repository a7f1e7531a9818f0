"""Range hits as a sparse depth image: what a 2D laser or a rangefinder says about the camera's pixels."""
from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial.transform import Rotation, Slerp

MIN_DEPTH = 0.01            # [m] nearer points are not projected
_HIDES = 0.8                # share of a hit's depth below which one beside it hides it
_KNOT_SPACING = 5_000_000   # [ns] between two looks at the sensor's pose; a robot that turns at 3 rad/s turns by a degree


def knots(stamps: np.ndarray) -> np.ndarray:
    """The times (K,) int64 [ns], rising, at which to know the sensor's pose so as to know it at every one of the stamps (N,) [ns], N > 0."""
    first, last = int(stamps.min()), int(stamps.max())
    return np.linspace(first, last, 1 + -(-(last - first) // _KNOT_SPACING)).astype(np.int64)


def moved(points: np.ndarray, stamps: np.ndarray, times: np.ndarray, T_cam_sensor: np.ndarray) -> np.ndarray:
    """Points (N, 3) [m] of a sensor that moves, each measured at its own stamp (N,) [ns], in the camera's frame at one time.

    T_cam_sensor (K, 4, 4) holds at the times (K,) [ns], rising; between them it turns at a constant rate and shifts along a line, as TF takes it to.
    """
    R, t = T_cam_sensor[:, :3, :3], T_cam_sensor[:, :3, 3]
    if len(times) == 1:
        return points @ R[0].T + t[0]
    seconds, at = (times - times[0]) * 1e-9, np.clip((stamps - times[0]) * 1e-9, 0.0, (times[-1] - times[0]) * 1e-9)
    shift = np.stack([np.interp(at, seconds, t[:, axis]) for axis in range(3)], axis=-1)
    return Slerp(seconds, Rotation.from_matrix(R))(at).apply(points) + shift


def project_points(points_cam: np.ndarray, K: np.ndarray, size: tuple[int, int], occlusion_radius: int = 0,
                   spread: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) float32 [m] and mask of points (N, 3) [m] in the optical frame, K (3, 3) [px], size (width, height).

    A pixel takes the nearest of the points that fall on it. With `occlusion_radius` [px], a point is also dropped where another lies within so
    many pixels and at less than 0.8 of its depth: a laser mounted beside the camera sees past edges that hide its hits from the camera.

    `spread` (N,) [rad]: half the angle of the cone that a hit may lie in, 0 for a beam. Such a hit stands at the cone's axis, but only where no narrower one
    lies in its cone: that one tells better what is there.
    """
    points = np.asarray(points_cam, np.float64).reshape(-1, 3)
    reach = np.zeros(len(points)) if spread is None else max(K[0, 0], K[1, 1]) * np.tan(spread)     # [px]
    seen, (columns, rows) = _pixels_of(points, K, size)
    z, reach = points[seen, 2], reach[seen]
    depth, valid = np.zeros(size[::-1], np.float32), np.zeros(size[::-1], bool)
    narrow = reach < 0.5
    order = np.flatnonzero(narrow)[np.argsort(-z[narrow], kind='stable')]       # the nearest is written last
    depth[rows[order], columns[order]] = z[order]
    valid[rows[order], columns[order]] = True
    if occlusion_radius:
        valid &= ~_hidden(depth, valid, occlusion_radius)
        depth[~valid] = 0
    for i in sorted(np.flatnonzero(~narrow), key=lambda i: (reach[i], z[i])):
        if not _any_within(valid, columns[i], rows[i], reach[i]):
            depth[rows[i], columns[i]], valid[rows[i], columns[i]] = z[i], True
    return depth, valid


def _pixels_of(points: np.ndarray, K: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices (M,) of the points in view, and their columns and rows (2, M) [px]."""
    seen = np.flatnonzero(np.isfinite(points).all(1) & (points[:, 2] > MIN_DEPTH))
    projected = points[seen] @ K.T
    pixels = np.floor(projected[:, :2] / projected[:, 2:] + 0.5)
    inside = ((pixels >= 0) & (pixels < size)).all(1)
    return seen[inside], pixels[inside].astype(int).T


def _hidden(depth: np.ndarray, valid: np.ndarray, radius: int) -> np.ndarray:
    """Pixels (H, W) that have a much nearer one within `radius` [px]."""
    nearest = cv2.erode(np.where(valid, depth, np.float32(np.inf)), np.ones((2 * radius + 1,) * 2, np.uint8))
    return valid & (nearest < _HIDES * depth)


def _any_within(valid: np.ndarray, column: int, row: int, radius: float) -> bool:
    """Whether a pixel of the mask (H, W) lies within radius [px] of a place."""
    rows, columns = np.nonzero(valid)
    return bool(((rows - row) ** 2 + (columns - column) ** 2 <= radius ** 2).any())


def hit_pixels(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (N,) of the hits among sparse depth (h, w): what is positive and finite. In a third of the time of np.nonzero, which counts as it goes."""
    return np.divmod(np.flatnonzero((hits > 0) & (hits < np.inf)), hits.shape[1])


def resize_hits(hits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sparse depth (h, w) float32 [m], 0 where none, at another size (width, height): every hit goes to the pixel that it falls in, the nearest wins."""
    width, height = size
    rows, columns = hit_pixels(hits)
    z = hits[rows, columns]
    order = np.argsort(-z, kind='stable')
    resized = np.zeros((height, width), np.float32)
    resized[rows[order] * height // hits.shape[0], columns[order] * width // hits.shape[1]] = z[order]
    return resized


def unproject_hits(hits: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Points (N, 3) [m] in the optical frame of sparse depth (H, W) [m], 0 where none, seen through K (3, 3) [px]."""
    rows, columns = hit_pixels(hits)
    rays = np.stack([columns, rows, np.ones(len(rows))], 1) @ np.linalg.inv(K).T
    return rays * hits[rows, columns][:, None]
