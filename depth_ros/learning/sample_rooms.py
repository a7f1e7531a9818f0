"""The rooms of the built-in sequence. The robot drives the same arc through each, 2.05 m around their middle, which it looks across."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.spatial.transform import Rotation

from depth_ros.learning import synthetic

Thing = tuple[int, np.ndarray, tuple[float, float, float], tuple[str, ...]]
"""Kind, T_world_self (4, 4), half extents [m], six materials."""


def _room() -> Iterator[Thing]:
    """6.8 x 5.6 x 2.6 m, furnished as one lives and works in."""
    walls = ('brick', 'wallpaper', 'wallpaper', 'brick')
    yield synthetic.ROOM, _place(0.0, 0.0, 1.3), (3.4, 2.8, 1.3), (*walls, 'planks', 'ceiling')
    # In the middle: a counter with things on it.
    yield _box(0.05, 0.0, 0.35, 1.12, 0.72, 0.7, 12.0, 'crate')
    yield _box(0.05, 0.0, 0.73, 1.2, 0.8, 0.06, 12.0, 'table')
    yield _box(-0.25, 0.1, 0.89, 0.34, 0.26, 0.26, 35.0, 'parcel')
    yield _box(0.4, -0.12, 0.83, 0.3, 0.22, 0.14, -20.0, 'picture')
    yield synthetic.SPHERE, _place(0.1, 0.16, 0.89), (0.13,) * 3, ('ball',) * 6
    # Around it: stools, parcels, a column.
    yield synthetic.CYLINDER, _place(-0.85, 0.62, 0.23), (0.2, 0.2, 0.23), ('fabric',) * 6
    yield synthetic.CYLINDER, _place(0.75, -0.72, 0.2), (0.18, 0.18, 0.2), ('stone',) * 6
    yield synthetic.CYLINDER, _place(-1.9, -1.6, 1.3), (0.16, 0.16, 1.3), ('stone',) * 6
    yield _box(-1.0, -0.6, 0.25, 0.5, 0.45, 0.5, 25.0, 'parcel')
    yield _box(-0.95, -0.55, 0.62, 0.32, 0.3, 0.24, -10.0, 'crate')
    # Along the walls: shelves, a cupboard, a sofa, posters.
    yield _box(-3.2, 0.3, 1.0, 0.36, 1.3, 2.0, 0.0, 'books')
    yield _box(-3.1, -1.5, 0.55, 0.56, 1.0, 1.1, 0.0, 'crate')
    yield _box(-1.6, 2.6, 1.0, 1.3, 0.36, 2.0, 0.0, 'books')
    yield _box(0.6, 2.42, 0.22, 1.7, 0.75, 0.44, 0.0, 'fabric')
    yield _box(0.6, 2.7, 0.5, 1.7, 0.2, 1.0, 0.0, 'fabric')
    yield _box(2.6, 2.35, 0.4, 0.7, 0.7, 0.8, 15.0, 'parcel')
    yield _box(-2.9, 2.3, 0.45, 0.6, 0.6, 0.9, -8.0, 'crate')
    for x, y, width, depth, name in ((0.2, 2.79, 0.9, 0.03, 'poster'), (1.5, 2.79, 1.1, 0.03, 'picture'), (-3.39, 1.6, 0.03, 0.9, 'poster'),
                                     (-3.39, -1.5, 0.03, 1.1, 'picture'), (-0.4, -2.79, 1.1, 0.03, 'poster'), (3.39, 0.4, 0.03, 1.1, 'picture')):
        yield _box(x, y, 1.65, width, depth, 0.75, 0.0, name)


def _hall() -> Iterator[Thing]:
    """13 x 11 x 4.4 m of stone: columns, racks and pallets, most of them far away."""
    yield synthetic.ROOM, _place(0.0, 0.0, 2.2), (6.5, 5.5, 2.2), ('stone', 'brick', 'stone', 'brick', 'stone', 'ceiling')
    for x, y in ((-0.7, 0.5), (0.5, 0.9), (-3.4, 0.4), (-2.2, 3.4), (1.4, 3.6), (-5.0, -2.6)):
        yield synthetic.CYLINDER, _place(x, y, 2.2), (0.22, 0.22, 2.2), ('stone',) * 6
    for x, y, yaw in ((-4.6, 2.2, 20.0), (-1.0, 4.6, 0.0), (-5.6, -0.6, 90.0), (2.6, 4.4, -10.0)):
        yield _box(x, y, 1.3, 2.2, 0.7, 2.6, yaw, 'books')
    for x, y, size, yaw, name in ((0.3, -0.2, 0.5, 30.0, 'crate'), (-0.3, -0.6, 0.7, 5.0, 'parcel'), (-2.9, 1.7, 0.9, 45.0, 'crate'), (-2.7, -1.6, 0.8, 12.0, 'parcel'),
                                  (0.7, 2.9, 0.8, -25.0, 'crate'), (-4.2, -3.9, 1.2, 8.0, 'table'), (3.9, 2.9, 1.0, 15.0, 'crate')):
        yield _box(x, y, size / 2, size, 0.8 * size, size, yaw, name)
    yield synthetic.SPHERE, _place(-1.5, 2.3, 0.35), (0.35,) * 3, ('ball',) * 6


def _store() -> Iterator[Thing]:
    """6.4 x 6 x 2.4 m, so full that little is farther than an arm or two: shelves stand close to the way, with gaps to look through."""
    yield synthetic.ROOM, _place(0.0, 0.0, 1.2), (3.2, 3.0, 1.2), ('wallpaper', 'planks', 'wallpaper', 'planks', 'planks', 'ceiling')
    for angle, height, name in ((-100.0, 1.5, 'books'), (-72.0, 0.9, 'crate'), (-44.0, 1.9, 'books'), (-12.0, 1.1, 'fabric'), (18.0, 1.7, 'books'), (48.0, 1.3, 'crate'),
                                (160.0, 2.0, 'books')):
        x, y = 0.1 + 1.15 * np.cos(np.radians(angle)), 1.15 * np.sin(np.radians(angle))
        yield _box(x, y, height / 2, 0.34, 0.42, height, angle, name)
        yield _box(x, y, height + 0.1, 0.22, 0.26, 0.2, angle + 20.0, 'parcel')
    yield synthetic.CYLINDER, _place(0.1, 0.0, 0.5), (0.3, 0.3, 0.5), ('fabric',) * 6
    yield synthetic.SPHERE, _place(-0.45, 0.35, 0.3), (0.3,) * 3, ('ball',) * 6
    for x, y, height, yaw, name in ((-2.6, 1.6, 1.8, 0.0, 'crate'), (-2.5, -1.2, 1.2, 10.0, 'parcel'), (-1.2, 2.5, 2.1, 90.0, 'books'), (0.9, 2.6, 1.4, 90.0, 'table'),
                                    (2.7, 1.9, 0.9, 30.0, 'crate')):
        yield _box(x, y, height / 2, 0.6, 0.9, height, yaw, name)


FIRST = 'room'
ROOMS: dict[str, Callable[[], Iterator[Thing]]] = {FIRST: _room, 'hall': _hall, 'store': _store}


def _place(x: float, y: float, z: float, yaw: float = 0.0) -> np.ndarray:
    """T (4, 4) of something at x, y, z [m], turned by yaw [deg]."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler('Z', yaw, degrees=True).as_matrix()
    T[:3, 3] = x, y, z
    return T


def _box(x: float, y: float, z: float, width: float, depth: float, height: float, yaw: float, material: str) -> tuple:
    return synthetic.BOX, _place(x, y, z, yaw), (width / 2, depth / 2, height / 2), (material,) * 6
