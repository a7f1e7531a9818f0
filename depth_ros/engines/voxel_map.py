"""A bounded coloured point map: one averaged point for each cube of space that was seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from depth_ros import files

_OFFSET, _LIMIT = 1 << 20, (1 << 21) - 1     # 21 bits an axis in one int64 key


class VoxelMap:
    """Points (N, 3) [m] averaged by cubes of `size` [m]; the longest unseen cubes make room beyond `capacity`."""

    def __init__(self, size: float, capacity: int) -> None:
        self._size, self._capacity = size, capacity
        self.clear()

    def __len__(self) -> int:
        return len(self._keys)

    def clear(self) -> None:
        """Forget every point."""
        self._keys = np.empty(0, np.int64)
        self._sums = np.empty((0, 6), np.float64)       # of x, y, z [m], r, g, b
        self._counts = np.empty(0, np.int64)
        self._seen = np.empty(0, np.int64)
        self._additions = 0

    def add(self, points: np.ndarray, colours: np.ndarray) -> None:
        """Average points (N, 3) [m] with colours (N, 3) uint8 into the map."""
        cells = np.floor(points / self._size) + _OFFSET
        inside = np.all((cells >= 0) & (cells <= _LIMIT), axis=1)      # false for NaN
        cells = cells[inside].astype(np.int64)
        keys = cells[:, 0] << 42 | cells[:, 1] << 21 | cells[:, 2]
        self._additions += 1
        new, at = np.unique(keys, return_inverse=True)
        values = np.hstack([points[inside], colours[inside]]).astype(np.float64)
        sums = np.stack([np.bincount(at, column, len(new)) for column in values.T], axis=1)
        self._merge(new, sums, np.bincount(at, minlength=len(new)))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The points (N, 3) float32 [m] and their colours (N, 3) uint8."""
        means = self._sums / self._counts[:, None]
        return means[:, :3].astype(np.float32), np.rint(means[:, 3:]).astype(np.uint8)

    def _merge(self, keys: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> None:
        """Add sums by sorted, distinct keys: known ones in place, so that the cost of a frame hardly grows with the map."""
        at = np.searchsorted(self._keys, keys)
        known = np.zeros(len(keys), bool)
        known[at < len(self._keys)] = self._keys[at[at < len(self._keys)]] == keys[at < len(self._keys)]
        self._sums[at[known]] += sums[known]
        self._counts[at[known]] += counts[known]
        self._seen[at[known]] = self._additions
        new = ~known
        if new.any():
            self._keys, self._sums, self._counts, self._seen = (
                np.insert(old, at[new], values, axis=0) for old, values in
                ((self._keys, keys[new]), (self._sums, sums[new]), (self._counts, counts[new]), (self._seen, self._additions)))
        if len(self) > self._capacity:
            # A tenth at once: not every frame should pay for making room.
            keep = np.sort(np.argsort(self._seen, kind='stable')[len(self) - (9 * self._capacity + 9) // 10:])
            self._keys, self._sums, self._counts, self._seen = (a[keep] for a in (self._keys, self._sums, self._counts, self._seen))


def write_ply(path: Path, points: np.ndarray, colours: np.ndarray) -> None:
    """Write points (N, 3) [m] with colours (N, 3) uint8 as a binary PLY file, whole or not at all."""
    vertices = np.empty(len(points), [('x', '<f4'), ('y', '<f4'), ('z', '<f4'), ('red', 'u1'), ('green', 'u1'), ('blue', 'u1')])
    for column, name in enumerate(('x', 'y', 'z')):
        vertices[name] = points[:, column]
    for column, name in enumerate(('red', 'green', 'blue')):
        vertices[name] = colours[:, column]
    properties = ''.join(f'property {"float" if kind == "<f4" else "uchar"} {name}\n' for name, kind in vertices.dtype.descr)
    with files.whole(path) as partial, open(partial, 'wb') as out:
        out.write(f'ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n{properties}end_header\n'.encode('ascii'))
        out.write(vertices.tobytes())
