"""Rooms of textured primitives, ray-cast in torch: images with exact depth, flow, visibility and 2D laser scans. Batched, on any device.

The world is z-up [m]. A ray's direction has z = 1 in the camera, so that its parameter is the z-depth itself. Primitives are convex: casting finds the
interval of a ray inside each and keeps the nearest entry (of the room around the camera: the exit).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import induced_flow
from depth_ros.learning.materials import Textures

ROOM, BOX, SPHERE, CYLINDER = range(4)
NEAREST = 1e-4                  # [m] before which nothing is hit
_VISIBLE = 2e-3                 # relative difference of depth up to which two views see the same point
_SUNS = ((0.35, 0.25, 0.9), (-0.6, 0.5, 0.35))      # directions to two far lights, and their strengths below
_STRENGTHS, _AMBIENT = (0.42, 0.22), 0.5
# Where the rays of a pixel on an edge go, off its centre [px]: a rotated grid, so that edges near the axes get four steps.
_SUBPIXELS = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))


@dataclass(frozen=True)
class Scene:
    """N primitives in each of S scenes; S is 1 or the number of cameras."""

    kinds: tuple[int, ...]      # N of ROOM, BOX, SPHERE, CYLINDER (axis along its z)
    T_world_self: Tensor        # (S, N, 4, 4)
    half: Tensor                # (S, N, 3) half extents [m]; sphere: the radius thrice; cylinder: radius, radius, half height
    materials: Tensor           # (S, N, 6) int64: tile of the faces -x, +x, -y, +y, -z, +z; a sphere and a cylinder's side use the first
    textures: Textures

    def to(self, device: torch.device | str) -> Scene:
        """The same on another device."""
        return replace(self, T_world_self=self.T_world_self.to(device), half=self.half.to(device), materials=self.materials.to(device),
                       textures=self.textures.to(device))

    def of_camera(self, index: int) -> Scene:
        """The one scene that a camera of the batch is in."""
        if len(self.half) == 1:
            return self
        pick = slice(index, index + 1)
        return replace(self, T_world_self=self.T_world_self[pick], half=self.half[pick], materials=self.materials[pick])

    def only(self, primitives: list[int]) -> Scene:
        """The scenes with some of their primitives."""
        return replace(self, kinds=tuple(self.kinds[i] for i in primitives), T_world_self=self.T_world_self[:, primitives],
                       half=self.half[:, primitives], materials=self.materials[:, primitives])


class Rays(NamedTuple):
    """Directions in the sensor's frame as three planes that broadcast to (B, H, W): an image's are a row, a column and a one."""

    x: Tensor
    y: Tensor
    z: Tensor

    def cut(self, rows: slice, columns: slice) -> Rays:
        """The rays of a window."""
        return Rays(*(d[:, rows if d.shape[1] > 1 else slice(None), columns if d.shape[2] > 1 else slice(None)] for d in self))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B or 1, H, W)."""
        return tuple(torch.broadcast_shapes(*(d.shape for d in self)))


class Hits(NamedTuple):
    """What rays meet."""

    distance: Tensor    # (B, H, W) along the ray, in lengths of its direction (z-depth [m] for a camera); inf where nothing is met
    primitive: Tensor   # (B, H, W) int64


class Rendering(NamedTuple):
    """Images of B cameras."""

    image: Tensor       # (B, H, W, 3) uint8 RGB
    depth: Tensor       # (B, H, W) float [m], exact at the pixels' centres


def camera_rays(K: Tensor, height: int, width: int) -> Rays:
    """Rays with z = 1 through the pixels' centres, K (3, 3) [px]."""
    u = torch.arange(width, dtype=K.dtype, device=K.device)
    v = torch.arange(height, dtype=K.dtype, device=K.device)
    return _pixel_rays(K, u[None, None, :], v[None, :, None])


def _pixel_rays(K: Tensor, u: Tensor, v: Tensor) -> Rays:
    if K[0, 1] != 0.0:
        raise ValueError('expected a camera without skew')
    return Rays((u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u[:, :1, :1]))


def cast(scene: Scene, T_world_sensor: Tensor, rays: Rays, K: Tensor | None = None) -> Hits:
    """What the rays of sensors T_world_sensor (B, 4, 4) meet first. With K of an image's rays, each primitive is only looked for where it can be."""
    _, height, width = rays.shape
    batch = len(T_world_sensor)
    distance = T_world_sensor.new_full((batch, height, width), torch.inf)
    primitive = torch.zeros(batch, height, width, dtype=torch.int64, device=distance.device)
    T_self_sensor = se3.inverse(scene.T_world_self) @ T_world_sensor[:, None]      # (B, N, 4, 4)
    half = scene.half.expand(batch, -1, -1)
    windows = _windows(scene, T_self_sensor, half, K, height, width)
    for index, (kind, (rows, columns)) in enumerate(zip(scene.kinds, windows)):
        near, far = _interval(kind, T_self_sensor[:, index], half[:, index], rays.cut(rows, columns))
        met = far if kind == ROOM else near
        seen = distance[:, rows, columns]
        closer = (near < far) & (met > NEAREST) & (met < seen)
        distance[:, rows, columns] = torch.where(closer, met, seen)
        primitive[:, rows, columns].masked_fill_(closer, index)
    return Hits(distance, primitive)


def _interval(kind: int, T_self_sensor: Tensor, half: Tensor, rays: Rays) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a primitive, (B, h, w) each; near >= far where they miss. T_self_sensor (B, 4, 4), half (B, 3)."""
    M = T_self_sensor[:, :3, :, None, None]                                            # (B, 3, 4, 1, 1)
    o = [M[:, i, 3] for i in range(3)]
    d = [M[:, i, 0] * rays.x + M[:, i, 2] * rays.z + M[:, i, 1] * rays.y for i in range(3)]
    h = [half[:, i, None, None] for i in range(3)]
    if kind == SPHERE:
        return _quadratic(d[0] ** 2 + d[1] ** 2 + d[2] ** 2, o[0] * d[0] + o[1] * d[1] + o[2] * d[2], o[0] ** 2 + o[1] ** 2 + o[2] ** 2 - h[0] ** 2)
    if kind == CYLINDER:
        near, far = _quadratic(d[0] ** 2 + d[1] ** 2, o[0] * d[0] + o[1] * d[1], o[0] ** 2 + o[1] ** 2 - h[0] ** 2)
        slabs = [_slab(o[2], d[2], h[2])]
    else:
        near, far = _slab(o[0], d[0], h[0])
        slabs = [_slab(o[i], d[i], h[i]) for i in (1, 2)]
    for begin, end in slabs:
        near, far = torch.maximum(near, begin), torch.minimum(far, end)
    return near, far


def _slab(o: Tensor, d: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The interval with |o + t d| <= h; all of it or nothing where d is 0."""
    inverse = 1.0 / d
    low, high = (-h - o) * inverse, (h - o) * inverse
    return torch.minimum(low, high), torch.maximum(low, high)


def _quadratic(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The interval with a t^2 + 2 b t + c <= 0."""
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0.0).sqrt()
    return torch.where(discriminant > 0.0, (-b - root) / a, torch.inf), (-b + root) / a


def _windows(scene: Scene, T_self_sensor: Tensor, half: Tensor, K: Tensor | None, height: int, width: int) -> Iterator[tuple[slice, slice]]:
    """(rows, columns) of a window that holds each primitive in all images of the batch."""
    whole = slice(0, height), slice(0, width)
    if K is None:
        yield from [whole] * len(scene.kinds)
        return
    signs = torch.cartesian_prod(*[half.new_tensor([-1.0, 1.0])] * 3)                  # (8, 3)
    corners = se3.transform(se3.inverse(T_self_sensor), half[:, :, None] * signs)      # (B, N, 8, 3) in the camera
    pixels, in_front = pinhole.dehomogenise(corners @ K.mT)
    first = pixels.amin((0, 2)).floor().long().tolist()
    last = pixels.amax((0, 2)).ceil().long().tolist()
    for (left, top), (right, bottom), bounded in zip(first, last, in_front.all(2).all(0).tolist()):
        yield (slice(*_clip(top, bottom + 1, height)), slice(*_clip(left, right + 1, width))) if bounded else whole


def _clip(begin: int, end: int, size: int) -> tuple[int, int]:
    begin = min(max(begin, 0), size)
    return begin, max(min(end, size), begin)


def colours(scene: Scene, T_world_sensor: Tensor, rays: Rays, hits: Hits, focal: Tensor) -> Tensor:
    """Colours (B, 3, H, W) in [0, 1] of what was met by cameras with that focal length [px]; lit from afar, so the same from everywhere."""
    batch, height, width = hits.distance.shape
    directions = torch.stack([p.expand(batch, height, width).reshape(batch, -1) for p in rays], -1)
    colour = directions.new_zeros(batch, 3, height * width)
    T_self_sensor = se3.inverse(scene.T_world_self) @ T_world_sensor[:, None]
    met = torch.isfinite(hits.distance).flatten(1)
    for b in range(batch):
        one = scene.of_camera(b)
        for k in _present(hits.primitive[b]):
            which = ((hits.primitive[b].flatten() == k) & met[b]).nonzero()[:, 0]
            t, d = hits.distance[b].flatten()[which], directions[b, which] @ T_self_sensor[b, k, :3, :3].T
            face, u, v, normal = _surface(one.kinds[k], one.half[0, k], t[:, None] * d + T_self_sensor[b, k, :3, 3])
            cosine = (normal * d).sum(-1).abs() / d.norm(dim=-1)
            # A slanted surface is averaged over less than a pixel covers of it along the slant and more across: between blur and moire.
            footprint = t / focal / cosine.clamp(min=0.02).sqrt()
            shift = 0.37 * k + 0.61 * face                                              # no two faces show the same part of a tile
            texture = scene.textures.sample(one.materials[0, k][face], u + shift, v + 0.5 * shift, footprint)
            colour[b, :, which] = texture * _light(normal @ one.T_world_self[0, k, :3, :3].T)
    return colour.clamp(0.0, 1.0).reshape(batch, 3, height, width)


def _present(primitive: Tensor) -> list[int]:
    """The primitives that occur."""
    return torch.bincount(primitive.flatten()).nonzero()[:, 0].tolist()


def _light(normal: Tensor) -> Tensor:
    """Brightness (P,) of surfaces with normals (P, 3) in the world."""
    suns = normal.new_tensor(_SUNS)
    return _AMBIENT + (normal @ (suns / suns.norm(dim=1, keepdim=True)).T).clamp(min=0.0) @ normal.new_tensor(_STRENGTHS)


def _surface(kind: int, half: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Face (P,), place on it u, v (P,) [m] and the normal that is seen (P, 3) of points (P, 3) on a primitive, in its own frame."""
    x, y, z = points.unbind(-1)
    sign = torch.where(points > 0.0, 1.0, -1.0)
    if kind == SPHERE:
        return torch.zeros_like(x, dtype=torch.int64), torch.atan2(y, x) * half[0], torch.asin((z / half[0]).clamp(-1.0, 1.0)) * half[0], points / half[0]
    if kind == CYLINDER:
        radius = torch.hypot(x, y)
        cap = z.abs() / half[2] > radius / half[0]
        zero = torch.zeros_like(x)
        normal = torch.where(cap[:, None], torch.stack([zero, zero, sign[:, 2]], -1), torch.stack([x / radius, y / radius, zero], -1))
        return torch.where(cap, 4 + (z > 0.0), 0), torch.where(cap, x, torch.atan2(y, x) * half[0]), torch.where(cap, y, z), normal
    axis = (points.abs() / half).argmax(-1)
    inward = -1.0 if kind == ROOM else 1.0
    normal = inward * sign * (axis[:, None] == torch.arange(3, device=axis.device))
    face = 2 * axis + (points.gather(1, axis[:, None])[:, 0] > 0.0)
    return face, torch.where(axis == 0, y, x), torch.where(axis == 2, y, z), normal


def render(scene: Scene, T_world_cam: Tensor, K: Tensor, height: int, width: int) -> Rendering:
    """Images and exact depth of cameras T_world_cam (B, 4, 4) with K (3, 3) [px]; edges are anti-aliased, depth is that of the pixels' centres."""
    rays = camera_rays(K, height, width)
    hits = cast(scene, T_world_cam, rays, K)
    colour = colours(scene, T_world_cam, rays, hits, K[0, 0])
    for b, edge in enumerate(_edges(hits.primitive)):
        v, u = edge.nonzero(as_tuple=True)
        if len(u):
            offsets, T = K.new_tensor(_SUBPIXELS), T_world_cam[b:b + 1]
            fine = _pixel_rays(K, (u[:, None] + offsets[:, 0])[None], (v[:, None] + offsets[:, 1])[None])
            # What an edge shows a fraction of a pixel away is nearly always seen somewhere else in the image as well.
            present = _present(hits.primitive[b])
            met = cast(scene.of_camera(b).only(present), T, fine)
            met = met._replace(primitive=torch.tensor(present, device=u.device)[met.primitive])
            colour[b, :, v, u] = colours(scene.of_camera(b), T, fine, met, K[0, 0])[0].mean(-1)
    return Rendering((colour * 255.0).round().to(torch.uint8).movedim(1, -1).contiguous(), hits.distance)


def _edges(primitive: Tensor) -> Tensor:
    """Mask (B, H, W) of pixels beside one that shows another primitive."""
    edge = torch.zeros_like(primitive, dtype=torch.bool)
    across, down = primitive[:, :, 1:] != primitive[:, :, :-1], primitive[:, 1:] != primitive[:, :-1]
    edge[:, :, 1:] |= across
    edge[:, :, :-1] |= across
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    return edge


def flow(scene: Scene, depth: Tensor, T_world_a: Tensor, T_world_b: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Exact flow (B, H, W, 2) [px] from cameras a to b of depth (B, H, W) in a, and the mask (B, H, W) of pixels that b sees: inside and not hidden."""
    T_b_a = se3.inverse(T_world_b) @ T_world_a
    moved, in_front = induced_flow(depth, K, T_b_a)
    height, width = depth.shape[1:]
    target = pinhole.pixel_grid(height, width, like=depth) + moved
    inside = ((target >= 0.0) & (target <= target.new_tensor([width - 1, height - 1]))).all(-1)
    expected = se3.transform(T_b_a, pinhole.unproject(depth, K))[..., 2]
    there = cast(scene, T_world_b, _pixel_rays(K, target[..., 0], target[..., 1])).distance
    return moved, in_front & inside & ((there - expected).abs() < _VISIBLE * expected)


def scan(scene: Scene, T_world_laser: Tensor, angles: Tensor) -> Tensor:
    """Ranges (B, N) [m] of 2D lasers T_world_laser (B, 4, 4), x forward, z up, at angles (N,) [rad]; inf where nothing is met."""
    planes = (torch.cos(angles), torch.sin(angles), torch.zeros_like(angles))
    return cast(scene, T_world_laser, Rays(*(p[None, None] for p in planes))).distance[:, 0]
