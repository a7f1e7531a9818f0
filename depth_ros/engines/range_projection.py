"""Range hits as a sparse depth image: what a 2D laser or a rangefinder says about the camera's pixels."""
from __future__ import annotations

import numpy as np

MIN_DEPTH = 0.01     # [m] nearer points are not projected


def project_points(points_cam: np.ndarray, K: np.ndarray, size: tuple[int, int], occlusion_radius: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) float32 [m] and mask of points (N, 3) [m] in the optical frame, K (3, 3) [px], size (width, height).

    A pixel takes the nearest of the points that fall on it. With `occlusion_radius` [px], a point is also dropped where another lies within so
    many pixels and at less than 0.8 of its depth: a laser mounted beside the camera sees past edges that hide its hits from the camera.
    """
    width, height = size
    depth, valid = np.zeros((height, width), np.float32), np.zeros((height, width), bool)
    points = np.asarray(points_cam, np.float64).reshape(-1, 3)
    points = points[np.isfinite(points).all(1)]
    points = points[points[:, 2] > MIN_DEPTH]
    projected = points @ K.T
    columns, rows = np.floor(projected[:, :2] / projected[:, 2:] + 0.5).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    columns, rows, z = columns[inside].astype(int), rows[inside].astype(int), points[inside, 2]
    order = np.argsort(-z, kind='stable')       # the nearest is written last
    depth[rows[order], columns[order]] = z[order]
    valid[rows, columns] = True
    if occlusion_radius:
        valid &= ~_hidden(depth, valid, occlusion_radius)
        depth[~valid] = 0
    return depth, valid


def _hidden(depth: np.ndarray, valid: np.ndarray, radius: int) -> np.ndarray:
    """Pixels (H, W) that have a much nearer one within `radius` [px]."""
    rows, columns = np.nonzero(valid)
    near = np.pad(np.where(valid, depth, np.inf), radius, constant_values=np.inf)
    window = np.lib.stride_tricks.sliding_window_view(near, (2 * radius + 1,) * 2)[rows, columns]
    hidden = np.zeros_like(valid)
    hidden[rows, columns] = window.min((1, 2)) < 0.8 * depth[rows, columns]
    return hidden


def resize_hits(hits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sparse depth (h, w) float32 [m], 0 where none, at another size (width, height): every hit goes to the pixel that it falls in, the nearest wins."""
    width, height = size
    valid = np.isfinite(hits) & (hits > 0)
    rows, columns = np.nonzero(valid)
    z = hits[rows, columns]
    order = np.argsort(-z, kind='stable')
    resized = np.zeros((height, width), np.float32)
    resized[rows[order] * height // hits.shape[0], columns[order] * width // hits.shape[1]] = z[order]
    return resized
