"""Random scenes of primitives: furnished rooms as people and robots see them, and rooms full of shapes that obey nothing.

All lengths in metres, z up, the floor at z = 0 and the room's centre at x = y = 0.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from depth_ros.learning import synthetic
from depth_ros.learning.lighting import Lights
from depth_ros.learning.materials import Textures

_SPOTS = 8         # that a glossy surface mirrors
_WALL = 0.02        # [m] of air between furniture and wall, so that no two faces coincide


class Furnisher:
    """Puts primitives into a room, drawing everything from one generator."""

    def __init__(self, rng: np.random.Generator, materials: int) -> None:
        """materials: how many there are to choose from."""
        self.rng = rng
        self._materials = materials
        self._kinds: list[int] = []
        self._poses: list[np.ndarray] = []
        self._halves: list[tuple[float, float, float]] = []
        self._faces: list[list[int]] = []

    def scene(self, textures: Textures) -> synthetic.Scene:
        """All that was put there."""
        return synthetic.Scene(tuple(self._kinds), torch.tensor(np.stack(self._poses), dtype=torch.float32)[None],
                               torch.tensor(self._halves, dtype=torch.float32)[None], torch.tensor(self._faces)[None], textures, self._lights())

    def _lights(self) -> Lights:
        """A few lamps under the ceiling or in windows, and what glossy surfaces mirror."""
        width, depth, height = self._size
        lamps = [[self.within(-0.5, 0.5) * width, self.within(-0.5, 0.5) * depth, self.within(0.6, 1.0) * height] for _ in range(self.rng.integers(1, 4))]
        spots = self.rng.normal(size=(_SPOTS, 3))
        spots /= np.linalg.norm(spots, axis=1, keepdims=True)
        spots = np.hstack([spots, 4.0 * 100.0 ** self.rng.random((_SPOTS, 1)), self.rng.uniform(0.2, 2.0, (_SPOTS, 1))])
        strengths = self.rng.uniform(0.5, 1.6, len(lamps)) / len(lamps) ** 0.5
        lamps = np.column_stack([lamps, strengths])
        return Lights(*(torch.tensor(np.array(v), dtype=torch.float32)[None] for v in (self.within(0.2, 0.6), np.zeros((0, 4)), lamps, spots)))

    def within(self, low: float, high: float) -> float:
        """A number between the two, evenly."""
        return float(self.rng.uniform(low, high))

    def chance(self, share: float) -> bool:
        """True so often."""
        return bool(self.rng.random() < share)

    def material(self) -> int:
        """Any of the palette."""
        return int(self.rng.integers(self._materials))

    def put(self, kind: int, T: np.ndarray, half: tuple[float, float, float], faces: int | list[int] | None = None) -> None:
        """Add a primitive; `faces`: one material for all, or six."""
        faces = self.material() if faces is None else faces
        self._kinds.append(kind)
        self._poses.append(T)
        self._halves.append(half)
        self._faces.append([faces] * 6 if isinstance(faces, int) else faces)

    def box(self, T: np.ndarray, size: tuple[float, float, float], at: tuple[float, float, float], material: int | None = None) -> None:
        """A box of that size whose centre is at `at` in the frame T."""
        self.put(synthetic.BOX, T @ _moved(*at), tuple(s / 2 for s in size), material)

    def room(self, size: tuple[float, float, float]) -> None:
        """Walls, a floor and a ceiling."""
        self._size = size
        walls = self.material()
        faces = [walls if self.chance(0.6) else self.material() for _ in range(4)] + [self.material(), self.material()]
        self.put(synthetic.ROOM, _moved(0.0, 0.0, size[2] / 2), (size[0] / 2, size[1] / 2, size[2] / 2), faces)

    def item(self, T: np.ndarray, x: float, y: float, z: float, largest: float) -> None:
        """Something that stands or lies at a place on a surface of frame T, at most `largest` high."""
        size = self.within(0.05, max(min(0.45, largest), 0.06))
        turned = T @ _moved(x, y, z) @ _turned(z=self.within(-180.0, 180.0))
        kind = self.rng.random()
        if kind < 0.55:
            shape = (size * self.within(0.3, 1.4), size * self.within(0.2, 1.0), size)
            self.box(turned, shape, (0.0, 0.0, size / 2))
        elif kind < 0.75:
            radius = size * self.within(0.15, 0.5)
            self.put(synthetic.CYLINDER, turned @ _moved(0.0, 0.0, size / 2), (radius, radius, size / 2))
        elif kind < 0.85:
            radius = size * self.within(0.1, 0.35)
            self.put(synthetic.CYLINDER, turned @ _moved(0.0, 0.0, radius) @ _turned(x=90.0), (radius, radius, size / 2))
        else:
            self.put(synthetic.SPHERE, turned @ _moved(0.0, 0.0, size / 2), (size / 2,) * 3)

    def items(self, T: np.ndarray, width: float, depth: float, z: float, count: int, largest: float) -> None:
        """So many items over a surface around T's origin."""
        for _ in range(count):
            self.item(T, self.within(-0.45, 0.45) * width, self.within(-0.4, 0.4) * depth, z, largest)

    def table(self, T: np.ndarray) -> None:
        """A top on four legs or a foot, with things on it and under it."""
        width, depth, height = self.within(0.5, 1.9), self.within(0.45, 1.0), self.within(0.4, 0.95)
        top, leg = self.material(), self.material()
        self.box(T, (width, depth, 0.04), (0.0, 0.0, height), top)
        if self.chance(0.7):
            for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
                self.box(T, (0.05, 0.05, height - 0.02), (x * (width / 2 - 0.05), y * (depth / 2 - 0.05), height / 2 - 0.01), leg)
        else:
            self.put(synthetic.CYLINDER, T @ _moved(0.0, 0.0, height / 2), (0.06, 0.06, height / 2), leg)
        self.items(T, width, depth, height + 0.02, int(self.rng.integers(1, 9)), 0.4)
        if self.chance(0.3):
            self.item(T, 0.0, 0.0, 0.0, height - 0.1)

    def chair(self, T: np.ndarray) -> None:
        """A seat, a back, four legs."""
        seat, material = self.within(0.4, 0.5), self.material()
        self.box(T, (0.42, 0.42, 0.05), (0.0, 0.0, seat), material)
        self.box(T, (0.42, 0.04, self.within(0.3, 0.55)), (0.0, 0.21, seat + 0.27), material)
        for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            self.box(T, (0.04, 0.04, seat), (x * 0.18, y * 0.18, seat / 2), material)

    def shelf(self, T: np.ndarray) -> None:
        """Boards between sides before a back, filled."""
        width, depth, height = self.within(0.6, 1.6), self.within(0.22, 0.45), self.within(0.7, 2.1)
        material = self.material()
        for x in (-1, 1):
            self.box(T, (0.03, depth, height), (x * width / 2, 0.0, height / 2), material)
        self.box(T, (width, 0.02, height), (0.0, depth / 2, height / 2), self.material())
        boards = int(self.rng.integers(2, 6))
        for board in range(boards):
            z = 0.05 + board * (height - 0.1) / max(boards - 1, 1)
            self.box(T, (width, depth, 0.03), (0.0, 0.0, z), material)
            if board + 1 < boards:
                self.items(T, width, depth * 0.6, z + 0.015, int(self.rng.integers(0, 6)), (height - 0.1) / (boards - 1) - 0.04)

    def counter(self, T: np.ndarray) -> None:
        """A kitchen's: cupboards under a worktop, things on it, sometimes cupboards above."""
        width, depth, height = self.within(0.8, 2.6), self.within(0.5, 0.7), self.within(0.8, 0.95)
        front = self.material()
        self.box(T, (width, depth - 0.05, height - 0.04), (0.0, 0.02, height / 2 - 0.02), front)
        self.box(T, (width + 0.02, depth, 0.04), (0.0, 0.0, height))
        self.items(T, width, depth * 0.8, height + 0.02, int(self.rng.integers(2, 10)), 0.45)
        if self.chance(0.6):
            self.box(T, (width * self.within(0.5, 1.0), 0.35, self.within(0.4, 0.8)), (0.0, depth / 2 - 0.18, height + self.within(0.85, 1.0)), front)

    def cupboard(self, T: np.ndarray) -> None:
        """A plain large box: a cupboard, a fridge, a parcel; sometimes things on it."""
        width, depth, height = self.within(0.4, 1.2), self.within(0.35, 0.7), self.within(0.5, 2.0)
        self.box(T, (width, depth, height), (0.0, 0.0, height / 2))
        if self.chance(0.6):
            self.items(T, width, depth, height, int(self.rng.integers(1, 4)), 0.5)

    def sofa(self, T: np.ndarray) -> None:
        """Seat, back, arms, cushions."""
        width, material = self.within(0.8, 2.2), self.material()
        self.box(T, (width, 0.8, 0.42), (0.0, 0.0, 0.21), material)
        self.box(T, (width, 0.2, 0.45), (0.0, 0.35, 0.62), material)
        for x in (-1, 1):
            self.box(T, (0.18, 0.8, 0.62), (x * (width / 2 + 0.07), 0.0, 0.31), material)
        self.items(T, width * 0.8, 0.4, 0.42, int(self.rng.integers(0, 4)), 0.4)

    def pile(self, T: np.ndarray) -> None:
        """Boxes on boxes."""
        z, size = 0.0, self.within(0.3, 0.8)
        for _ in range(int(self.rng.integers(1, 5))):
            height = self.within(0.12, 0.5)
            self.box(T @ _turned(z=self.within(-20.0, 20.0)), (size, size * self.within(0.6, 1.2), height), (0.0, 0.0, z + height / 2))
            z, size = z + height, size * self.within(0.6, 1.0)

    def against_walls(self, density: float) -> None:
        """Furniture along the four walls, backs to them, and what hangs above."""
        for side in range(4):
            length, away = (self._size[0], self._size[1]) if side % 2 == 0 else (self._size[1], self._size[0])
            wall = _turned(z=90.0 * side) @ _moved(0.0, away / 2, 0.0)
            x = -length / 2 + self.within(0.2, 1.0)
            while x < length / 2 - 0.6:
                if self.chance(density):
                    kind = self.rng.choice([self.shelf, self.counter, self.cupboard, self.sofa, self.table], p=[0.25, 0.3, 0.25, 0.1, 0.1])
                    kind(wall @ _moved(x + 0.5, -0.45 - _WALL, 0.0))
                if self.chance(0.5):
                    width, height = self.within(0.2, 1.2), self.within(0.2, 1.0)
                    self.box(wall, (width, 0.03, height), (x + 0.4, -0.03, self.within(1.2, max(self._size[2] - 0.6, 1.3))))
                x += self.within(0.9, 2.2)

    def in_the_middle(self, count: int) -> None:
        """Free-standing furniture, columns, lamps and clutter on the floor."""
        for _ in range(count):
            T = self._somewhere() @ _turned(z=self.within(-180.0, 180.0))
            kind = self.rng.choice([self.table, self.chair, self.pile, self.cupboard, self.shelf, self.counter, self.sofa, self._column, self._lamp],
                                   p=[0.25, 0.22, 0.17, 0.05, 0.07, 0.06, 0.05, 0.06, 0.07])
            kind(T)
        for _ in range(int(self.rng.integers(0, 2 + count))):
            self.item(self._somewhere(), 0.0, 0.0, 0.0, 0.6)

    def shapes(self, count: int) -> None:
        """Boxes, balls and cylinders of all sizes at any place and attitude."""
        for _ in range(count):
            T = self._somewhere() @ _moved(0.0, 0.0, self.within(0.0, self._size[2]))
            T[:3, :3] = Rotation.random(random_state=self.rng).as_matrix()
            size = 0.08 * 10.0 ** self.within(0.0, 1.0)
            kind = int(self.rng.choice([synthetic.BOX, synthetic.SPHERE, synthetic.CYLINDER], p=[0.55, 0.2, 0.25]))
            half = {synthetic.BOX: tuple(size * self.within(0.2, 1.2) for _ in range(3)), synthetic.SPHERE: (0.7 * size,) * 3,
                    synthetic.CYLINDER: (*[size * self.within(0.15, 0.8)] * 2, size)}[kind]
            self.put(kind, T, half)

    def _column(self, T: np.ndarray) -> None:
        radius = self.within(0.05, 0.3)
        self.put(synthetic.CYLINDER, T @ _moved(0.0, 0.0, self._size[2] / 2), (radius, radius, self._size[2] / 2))

    def _lamp(self, T: np.ndarray) -> None:
        radius, z = self.within(0.08, 0.3), self._size[2] - self.within(0.3, 1.0)
        self.put(synthetic.SPHERE, T @ _moved(0.0, 0.0, z), (radius,) * 3)
        self.put(synthetic.CYLINDER, T @ _moved(0.0, 0.0, (z + self._size[2]) / 2), (0.01, 0.01, (self._size[2] - z) / 2))

    def _somewhere(self) -> np.ndarray:
        return _moved(self.within(-0.4, 0.4) * self._size[0], self.within(-0.4, 0.4) * self._size[1], 0.0)


def furnished_room(rng: np.random.Generator, textures: Textures) -> synthetic.Scene:
    """A kitchen, an office, a store room."""
    f = Furnisher(rng, len(textures.metres))
    f.room((f.within(2.6, 8.0), f.within(2.6, 7.0), f.within(2.3, 3.2)))
    f.against_walls(f.within(0.4, 1.0))
    f.in_the_middle(int(rng.integers(2, 8)))
    return f.scene(textures)


def shapes_room(rng: np.random.Generator, textures: Textures) -> synthetic.Scene:
    """Shapes in the air of a room, as in the Scenes11 set."""
    f = Furnisher(rng, len(textures.metres))
    f.room((f.within(3.0, 9.0), f.within(3.0, 9.0), f.within(2.4, 4.0)))
    f.shapes(int(rng.integers(14, 44)))
    return f.scene(textures)


def _moved(x: float, y: float, z: float) -> np.ndarray:
    T = np.eye(4)
    T[:3, 3] = x, y, z
    return T


def _turned(x: float = 0.0, z: float = 0.0) -> np.ndarray:
    """T (4, 4) of a turn about z, then x [deg]."""
    T = np.eye(4)
    cx, sx, cz, sz = math.cos(math.radians(x)), math.sin(math.radians(x)), math.cos(math.radians(z)), math.sin(math.radians(z))
    T[:3, :3] = np.array([[cz, -sz, 0.0], [sz, cz, 0.0], [0.0, 0.0, 1.0]]) @ np.array([[1.0, 0.0, 0.0], [0.0, cx, -sx], [0.0, sx, cx]])
    return T
