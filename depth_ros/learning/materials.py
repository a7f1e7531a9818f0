"""Procedural surfaces for the synthetic rooms, baked once into mip-mapped tiles that repeat without a seam.

Each surface has structure at many scales and real corners, as optical flow needs it at every distance. Sampling is band-limited by the footprint of
a pixel (L. Williams, "Pyramidal parametrics", SIGGRAPH 1983).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry.warp import sample

_LOG = logging.getLogger(__name__)

TILE = 512      # texels along a side of a tile; a power of two
LEVELS = 9      # of the pyramid, the coarsest of TILE / 256 texels


class Textures:
    """A pyramid of tiles in one atlas: a column for each level, the tiles below each other, each with a wrapped border of one texel."""

    def __init__(self, tiles: Tensor, metres: Sequence[float], gloss: Sequence[float] | None = None, mirror: float = 0.0) -> None:
        """Tiles (N, TILE, TILE, 3) in [0, 1], row 0 on top, the side of each [m], how strong spots of light are on each (not there by default),
        and what share of that strength a mirror image of the scene has, head on.
        """
        self.metres = tiles.new_tensor(metres)
        self.gloss = tiles.new_tensor([0.0] * len(tiles) if gloss is None else gloss)
        self.mirror = mirror * self.gloss
        columns, level = [], tiles.movedim(-1, 1)
        for _ in range(LEVELS):
            column = F.pad(level, (1, 1, 1, 1), mode='circular').movedim(0, 1).flatten(1, 2)      # (3, N * (side + 2), side + 2)
            columns.append(F.pad(column, (0, 0, 0, len(tiles) * (TILE + 2) - column.shape[1])))
            level = F.avg_pool2d(level, 2)
        self._atlas = torch.cat(columns, dim=2)[None].contiguous()
        sides = [TILE >> i for i in range(LEVELS)]
        self._sides = tiles.new_tensor(sides)
        self._lefts = tiles.new_tensor([sum(s + 2 for s in sides[:i]) for i in range(LEVELS)])

    def to(self, device: torch.device | str) -> Textures:
        """The same on another device."""
        moved = object.__new__(Textures)
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device))
        return moved

    def sample(self, index: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> Tensor:
        """Colours (3, P) in [0, 1] of tiles index (P,) at u right, v up (P,) [m], averaged over about `footprint` (P,) [m]."""
        side = self.metres[index]
        level = torch.log2(footprint * TILE / side).clamp(0.0, LEVELS - 1.001)
        fine = level.floor()
        x, y = u / side, -v / side
        x, y = x - x.floor(), y - y.floor()
        near, far = (self._at_level(index, x, y, fine.long() + i) for i in (0, 1))
        return torch.lerp(near, far, level - fine)

    def _at_level(self, index: Tensor, x: Tensor, y: Tensor, level: Tensor) -> Tensor:
        """Colours (3, P) at x, y (P,) in [0, 1) of one level for each."""
        side = self._sides[level]
        pixels = torch.stack([self._lefts[level] + x * side + 0.5, index * (side + 2.0) + y * side + 0.5], dim=-1)
        return sample(self._atlas, pixels[None, None])[0][0, :, 0]


@functools.lru_cache
def _spread(cells: int) -> Tensor:
    """Weights (TILE, cells) that blend periodic grid values smoothly along a side."""
    at = (torch.arange(TILE) + 0.5) * cells / TILE
    low = at.floor()
    share = (at - low) ** 2 * (3.0 - 2.0 * (at - low))
    low = low.long()
    return F.one_hot(low % cells, cells) * (1.0 - share)[:, None] + F.one_hot((low + 1) % cells, cells) * share[:, None]


class Painter:
    """Paints tiles (TILE, TILE, 3) in [0, 1] from one random generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.y, self.x = torch.meshgrid(*[(torch.arange(TILE) + 0.5) / TILE] * 2, indexing='ij')

    def random(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.generator)

    def noise(self, rows: int, columns: int) -> Tensor:
        """Smooth periodic noise (TILE, TILE) of unit range, with so many cells down and across (powers of two)."""
        return _spread(rows) @ (self.random(rows, columns) - 0.5) @ _spread(columns).T

    def fractal(self, first: int = 4, last: int = 256, stretch: int = 1) -> Tensor:
        """Noise (TILE, TILE) of about unit range from `first` to `last` cells a side, coarse and fine alike; stretched along the rows."""
        octaves = [self.noise(n, max(n // stretch, 2)) for n in (2 ** i for i in range(int(math.log2(first)), int(math.log2(last)) + 1))]
        return sum(octaves) / len(octaves) ** 0.5

    def bricks(self, rows: int, columns: int, base: Sequence[float], joint: Sequence[float], spread: float, gap: float = 0.004, stretch: int = 1) -> Tensor:
        """Courses of bricks, planks or tiles, each of its own shade, with joints of `gap` of the tile's side; every other course moved by half."""
        row = (self.y * rows).floor()
        across = self.x * columns + 0.5 * (row % 2)
        column = across.floor() % columns
        shade = self.random(rows, columns)[row.long(), column.long()] - 0.5
        edge_y = torch.minimum(self.y * rows - row, row + 1 - self.y * rows) / rows
        edge_x = torch.minimum(across - across.floor(), across.floor() + 1 - across) / columns
        grain = 0.35 * self.fractal(8, 256)
        if stretch > 1:     # wood; grain alone would leave motion along it undecided
            grain = 0.8 * grain + 0.2 * self.fractal(16, 256, stretch)
        face = torch.tensor(base) + (spread * shade + grain)[..., None]
        return torch.where((torch.minimum(edge_x, edge_y) < gap)[..., None], torch.tensor(joint) + 0.15 * self.fractal(64, 256)[..., None], face)

    def books(self, shelves: int) -> Tensor:
        """Rows of standing books between boards."""
        tile = torch.tensor([0.28, 0.2, 0.13]).expand(TILE, TILE, 3).clone() + 0.1 * self.fractal(8, 128, 8)[..., None]
        height = TILE // shelves
        for shelf in range(shelves):
            x = 0
            while x < TILE - 6:
                width = min(int(8 + 18 * self.random(1)), TILE - x)
                top = int(height * (0.12 + 0.25 * self.random(1)))
                rows = slice(shelf * height + top, (shelf + 1) * height - height // 14)
                tile[rows, x:x + width - 1] = self.colour(0.6)
                label = shelf * height + top + int(height * 0.15 + height * 0.3 * self.random(1))
                tile[label:label + height // 8, x + 2:x + width - 3] = self.colour(0.4)
                x += width
        return tile + 0.12 * self.fractal(32, 256)[..., None]

    def colour(self, chroma: float) -> Tensor:
        """A random colour (3,), grey for a chroma of 0."""
        grey, colour = 0.1 + 0.8 * self.random(1), self.random(3)
        return (1.0 - chroma) * grey + chroma * colour

    def shapes(self, count: int, background: Sequence[float], contrast: float, chroma: float) -> Tensor:
        """Overlapping rectangles and discs of many sizes, as on posters and parcels."""
        tile = torch.tensor(background).expand(TILE, TILE, 3).clone() + 0.25 * self.fractal(2, 32)[..., None]
        for _ in range(count):
            x, y, size, aspect, kind = self.random(5).tolist()
            half_y = max(int((0.015 + 0.16 * size ** 2) * TILE), 2)
            disc = kind >= 0.7
            half_x = half_y if disc else int(half_y * (0.4 + aspect)) + 1
            dy, dx = torch.arange(-half_y, half_y), torch.arange(-half_x, half_x)
            rows, columns = ((int(y * TILE) + dy) % TILE)[:, None], (int(x * TILE) + dx) % TILE
            inside = ((dx ** 2 + (dy ** 2)[:, None] < half_y ** 2) | (not disc))[..., None]
            below = tile[rows, columns]
            tile[rows, columns] = torch.where(inside, torch.lerp(below, self.colour(chroma).expand_as(below), contrast), below)
        return tile + 0.12 * self.fractal(16, 256)[..., None]

    def marks(self, tile: Tensor, count: int, size: float, contrast: float) -> Tensor:
        """The tile with that many rectangles of up to `size` of its side on it."""
        for x, y, w, h in self.random(count, 4).tolist():
            rows = (int(y * TILE) + torch.arange(int(2 + h * size * TILE)))[:, None] % TILE
            columns = (int(x * TILE) + torch.arange(int(2 + w * size * TILE))) % TILE
            tile[rows, columns] = torch.lerp(tile[rows, columns], self.colour(0.6), contrast)
        return tile

    def marble(self, base: Sequence[float], amplitude: float) -> Tensor:
        """Patches with sharp borders over soft noise."""
        soft = self.fractal(4, 128)
        patches = torch.sign(self.fractal(8, 64)) * 0.5
        return torch.tensor(base) + amplitude * (soft + patches)[..., None]


# What the rooms are made of: (name, side of a tile [m], how to paint it).
MATERIALS: tuple[tuple[str, float, Callable[[Painter], Tensor]], ...] = (
    ('planks', 2.2, lambda p: p.bricks(24, 4, (0.58, 0.43, 0.29), (0.24, 0.17, 0.12), 0.26, 0.0012, stretch=8)),
    ('brick', 2.0, lambda p: p.bricks(24, 8, (0.72, 0.63, 0.54), (0.88, 0.84, 0.8), 0.34, 0.003)),
    ('wallpaper', 2.0, lambda p: p.shapes(420, (0.66, 0.72, 0.68), 0.35, 0.2)),
    ('ceiling', 2.4, lambda p: p.bricks(4, 4, (0.86, 0.86, 0.84), (0.6, 0.6, 0.6), 0.06, 0.003)),
    ('books', 1.2, lambda p: p.books(4)),
    ('poster', 0.9, lambda p: p.shapes(90, (0.85, 0.82, 0.7), 0.85, 0.7)),
    ('picture', 1.1, lambda p: p.shapes(160, (0.2, 0.3, 0.5), 0.75, 0.6)),
    ('parcel', 0.8, lambda p: p.shapes(36, (0.78, 0.6, 0.4), 0.5, 0.3)),
    ('crate', 0.9, lambda p: p.bricks(8, 2, (0.7, 0.52, 0.3), (0.25, 0.17, 0.1), 0.3, 0.005, stretch=8)),
    ('table', 1.3, lambda p: p.bricks(16, 2, (0.45, 0.28, 0.17), (0.3, 0.18, 0.1), 0.14, 0.001, stretch=16)),
    ('fabric', 0.8, lambda p: p.marble((0.36, 0.48, 0.66), 0.26)),
    ('stone', 0.8, lambda p: p.marble((0.56, 0.56, 0.54), 0.25)),
    ('ball', 0.8, lambda p: p.shapes(110, (0.75, 0.25, 0.2), 0.9, 0.8)),
)
NAMES = tuple(name for name, _, _ in MATERIALS)


def bake(seed: int) -> Textures:
    """The tiles of all MATERIALS, deterministic from the seed."""
    painter = Painter(torch.Generator().manual_seed(seed))
    tiles = torch.stack([paint(painter).clamp(0.02, 0.98) for _, _, paint in MATERIALS])
    return Textures(tiles, [metres for _, metres, _ in MATERIALS])


def random_palette(seed: int, count: int, photographs: str = '', mirror: float = 0.0, strict: bool = True) -> Textures:
    """Tiles of as many random surfaces, many plain as painted walls and cupboards are, many with a gloss that may `mirror`; deterministic from the seed.

    With a folder of photographs, a third of the surfaces show parts of them. Raises ValueError naming the folder, or the file, that cannot be used; unless `strict`, the
    next file that can be takes the place of one that cannot.
    """
    painter = Painter(torch.Generator().manual_seed(seed))
    pick = torch.multinomial(torch.tensor([weight for weight, _ in _FAMILIES]), count, replacement=True, generator=painter.generator)
    tiles = [_FAMILIES[i][1](painter) for i in pick.tolist()]
    metres = (0.5 * 6.0 ** painter.random(count)).tolist()
    if photographs:
        files = photograph_files(photographs)
        shown = torch.randint(len(files), (count,), generator=painter.generator).tolist()
        for i in range(0, count, 3):
            image = _photograph([*files[shown[i]:], *files[:shown[i]]], strict)
            if image is None:
                raise ValueError(f'{photographs}: none of its {len(files)} photographs can be read as an image')
            tiles[i] = _part_of(painter, image)
    gloss = torch.where(painter.random(count) < 0.45, 0.6 * painter.random(count) ** 2, 0.0)
    return Textures(torch.stack(tiles).clamp(0.02, 0.98), metres, gloss.tolist(), mirror)


def photograph_files(folder: str) -> list[Path]:
    """The images in a folder and below, in the order of their names. Raises ValueError if there are none."""
    found = sorted(p for p in Path(folder).expanduser().rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not found:
        raise ValueError(f'{folder}: expected a folder with photographs (.jpg, .jpeg, .png)')
    return found


def _photograph(files: Sequence[Path], strict: bool) -> np.ndarray | None:
    """The image (h, w, 3) uint8 BGR of the first file; unless strict, of the first that can be read, None if none can. Raises ValueError naming the file if strict."""
    for path in files:
        with contextlib.suppress(cv2.error):        # it returns None for most of what is wrong, and raises for some
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is not None:
                return image
        if strict:
            raise ValueError(f'{path}: cannot be read as an image')
        _tell_of(path)
    return None


@functools.cache
def _tell_of(path: Path) -> None:
    """Once in a process, though every palette comes upon it."""
    _LOG.warning('going on without a photograph: %s cannot be read as an image', path)


def _part_of(p: Painter, image: np.ndarray) -> Tensor:
    """A random square of a photograph (h, w, 3) uint8 BGR; mirrored, so that it repeats without a seam."""
    side = max(int(min(image.shape[:2]) * (0.5 + 0.5 * p.random(1).item())), 1)
    top, left = (int((length - side + 1) * p.random(1).item()) for length in image.shape[:2])
    part = cv2.resize(image[top:top + side, left:left + side, ::-1], (TILE // 2, TILE // 2), interpolation=cv2.INTER_AREA)
    tile = torch.from_numpy(part).float() / 255.0
    tile = torch.cat([tile, tile.flip(1)], 1)
    return torch.cat([tile, tile.flip(0)], 0)


def _shade(p: Painter, chroma: float) -> Tensor:
    """A colour (3,), often nearly black or white."""
    kind, value = p.random(1), p.random(1)
    grey = torch.where(kind < 0.25, 0.03 + 0.15 * value, torch.where(kind < 0.6, 0.7 + 0.28 * value, 0.15 + 0.6 * value))
    tint = p.random(3)
    return ((1.0 - chroma) * grey + chroma * grey * tint / tint.mean()).clamp(0.02, 0.98)


def _random_bricks(p: Painter) -> Tensor:
    rows, columns, wood = 2 ** (1 + 4.5 * p.random(1)), 2 ** (1 + 3.0 * p.random(1)), p.random(1) < 0.5
    return p.bricks(int(rows), int(columns), _shade(p, 0.4).tolist(), _shade(p, 0.3).tolist(), 0.4 * p.random(1).item(),
                    0.001 + 0.006 * p.random(1).item(), stretch=8 if wood else 1)


def _random_shapes(p: Painter) -> Tensor:
    count, contrast, chroma = p.random(3).tolist()
    return p.shapes(int(12 * 30.0 ** count), _shade(p, 0.4).tolist(), 0.2 + 0.8 * contrast, chroma)


def _random_marble(p: Painter) -> Tensor:
    return p.marble(_shade(p, 0.5).tolist(), 0.05 + 0.3 * p.random(1).item())


def _random_clouds(p: Painter) -> Tensor:
    """Noise of several scales, each in a direction of colour space of its own."""
    first = 2 ** int(1 + 4.0 * p.random(1))
    directions = (p.random(3, 3) - 0.5) + 0.5 * (p.random(3, 1) - 0.5)
    return _shade(p, 0.4) + sum(p.fractal(max(first >> i, 2), 256)[..., None] * directions[i] for i in range(3))


def _random_plain(p: Painter) -> Tensor:
    """Paint: a soft change of shade, a trace of grain, a few marks."""
    chroma = 0.8 * p.random(1).item() ** 2
    tile = _shade(p, chroma) + 0.06 * p.random(1) ** 2 * p.fractal(2, 8)[..., None] + 0.06 * p.random(1) ** 3 * p.fractal(32, 256)[..., None]
    return p.marks(tile, int(10.0 * p.random(1) ** 3), 0.1, 0.5 * p.random(1).item())


def _random_print(p: Painter) -> Tensor:
    """Lines of dark words on paper, with a picture here and there."""
    tile = (0.6 + 0.35 * p.random(1)) * torch.ones(TILE, TILE, 3) + 0.04 * p.fractal(4, 128)[..., None]
    line = int(8 + 24 * p.random(1))
    words = F.interpolate((p.random(1, 1, TILE // line, TILE // 4) < 0.7).float(), (TILE // line, TILE))[0, 0]
    for row in range(TILE // line):
        top = row * line + line // 4
        tile[top:top + line // 2] -= 0.55 * words[row, :, None] * (p.random(1, TILE, 1) < 0.7)
    return p.marks(tile, int(8.0 * p.random(1)), 0.25, 0.9)


def _random_weave(p: Painter) -> Tensor:
    """Stripes or checks, as on cloth, tiles and grilles; they repeat, which misleads matching as in life."""
    across, down = (2 ** int(1 + 4.5 * v) for v in p.random(2).tolist())
    wave_x, wave_y = torch.sin(2.0 * math.pi * across * p.x), torch.sin(2.0 * math.pi * down * p.y)
    kind = p.random(1)
    wave = wave_x if kind < 0.35 else wave_y if kind < 0.6 else wave_x * wave_y
    wave = torch.sign(wave) if p.random(1) < 0.5 else wave
    return _shade(p, 0.4) + 0.5 * (wave[..., None] * (p.random(3) - 0.5)) + 0.2 * p.random(1) * p.fractal(4, 256)[..., None]


_FAMILIES: tuple[tuple[float, Callable[[Painter], Tensor]], ...] = (
    (0.42, _random_plain), (0.12, _random_bricks), (0.11, _random_shapes), (0.06, _random_marble), (0.08, _random_clouds),
    (0.06, _random_print), (0.05, _random_weave), (0.04, lambda p: p.books(int(2 + 5 * p.random(1)))))
