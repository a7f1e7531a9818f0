"""Rooms of textured primitives, ray-cast in torch: images with exact depth, flow, visibility and 2D laser scans. Batched, on any device.

The world is z-up [m]. A ray's direction has z = 1 in the camera, so that its parameter is the z-depth itself. Primitives are convex: casting finds the
interval of a ray inside each and keeps the nearest entry (of the room around the camera: the exit). Glossy surfaces mirror the scene once: what is seen in them moves as
if it lay behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from depth_ros.geometry import pinhole, se3
from depth_ros.geometry.warp import induced_flow
from depth_ros.learning.lighting import Lights, lights_together, mirrored_share, sunlight
from depth_ros.learning.materials import Textures

ROOM, BOX, SPHERE, CYLINDER = range(4)
NEAREST = 1e-4                  # [m] before which nothing is hit
_VISIBLE = 2e-3                 # relative difference of depth up to which two views see the same point
SUNS = sunlight(torch.tensor([[0.35, 0.25, 0.9], [-0.6, 0.5, 0.35]]), torch.tensor([0.42, 0.22]), 0.5)
_SHIFT = 0.37                   # [m] of the textures from primitive to primitive
_LEAST_MIRRORED = 0.02          # share of the light below which a mirror image is left out
_CLEAR = 1e-3                   # relative distance that a mirrored ray goes before it meets anything, so that it does not meet the mirror
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
    lights: Lights = SUNS
    shifts: Tensor | None = None    # (S, N) [m] of each primitive's textures, so that no two show the same part of a tile; None: by their order

    def to(self, device: torch.device | str) -> Scene:
        """The same on another device."""
        return self._map(lambda values: values.to(device), textures=self.textures.to(device), lights=self.lights.to(device))

    def of_camera(self, index: int) -> Scene:
        """The one scene that a camera of the batch is in."""
        if len(self.half) == 1:
            return self
        return self.of_cameras(slice(index, index + 1))

    def of_cameras(self, scenes: Tensor | slice) -> Scene:
        """For each camera the scene of that index (B,) that it is in."""
        return self._map(lambda values: values[scenes], lights=self.lights.pick(scenes))

    def only(self, primitives: list[int]) -> Scene:
        """The scenes with some of their primitives."""
        return self._map(lambda values: values[:, primitives], kinds=tuple(self.kinds[i] for i in primitives))

    def _map(self, function: Callable[[Tensor], Tensor], **others: object) -> Scene:
        values = {name: getattr(self, name) for name in ('T_world_self', 'half', 'materials', 'shifts')}
        return replace(self, **{name: function(v) for name, v in values.items() if v is not None}, **others)


def together(scenes: Sequence[Scene]) -> Scene:
    """Scenes S = 1 each with the same textures as one of many; where one has fewer primitives of a kind, some that nothing ever meets stand in."""
    counts = {kind: max(s.kinds.count(kind) for s in scenes) for kind in range(4)}
    kinds = tuple(kind for kind, count in counts.items() for _ in range(count))
    T, half, materials = torch.eye(4).repeat(len(scenes), len(kinds), 1, 1), torch.zeros(len(scenes), len(kinds), 3), torch.zeros(len(scenes), len(kinds), 6).long()
    T[:, :, 2, 3] = -1e3       # [m]: out of all rooms, and of no extent
    shifts = torch.zeros(len(scenes), len(kinds))
    for row, scene in enumerate(scenes):
        free = {kind: kinds.index(kind) for kind, count in counts.items() if count}
        for index, kind in enumerate(scene.kinds):
            slot = row, free[kind]
            T[slot], half[slot], materials[slot] = scene.T_world_self[0, index], scene.half[0, index], scene.materials[0, index]
            shifts[slot] = _SHIFT * index
            free[kind] += 1
    return Scene(kinds, T, half, materials, scenes[0].textures, lights_together([s.lights for s in scenes]), shifts)


class Rays(NamedTuple):
    """Directions in the sensor's frame as three planes that broadcast to (B, H, W): an image's are a row, a column and a one."""

    x: Tensor
    y: Tensor
    z: Tensor
    origin: tuple[Tensor, Tensor, Tensor] | None = None     # three planes [m] of where they come from, in the sensor's frame; None: all from the sensor
    nearest: Tensor | float = NEAREST                       # in lengths of the direction, before which nothing is hit

    def cut(self, rows: slice, columns: slice) -> Rays:
        """The rays of a window of an image. Raises ValueError for rays that do not come from the sensor."""
        if self.origin is not None or isinstance(self.nearest, Tensor):
            raise ValueError('expected rays of an image, which all come from the sensor')
        return Rays(*(d[:, rows if d.shape[1] > 1 else slice(None), columns if d.shape[2] > 1 else slice(None)] for d in self[:3]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B or 1, H, W)."""
        return tuple(torch.broadcast_shapes(*(d.shape for d in self[:3])))


class Hits(NamedTuple):
    """What rays meet."""

    distance: Tensor    # (B, H, W) along the ray, in lengths of its direction (z-depth [m] for a camera); inf where nothing is met
    primitive: Tensor   # (B, H, W) int64


class Rendering(NamedTuple):
    """Images of B cameras."""

    image: Tensor       # (B, H, W, 3) uint8 RGB
    depth: Tensor       # (B, H, W) float [m], exact at the pixels' centres


def camera_rays(K: Tensor, height: int, width: int) -> Rays:
    """Rays with z = 1 through the pixels' centres, K (3, 3) [px], or (B, 3, 3) where cameras differ. Raises ValueError for a camera with skew."""
    u = torch.arange(width, dtype=K.dtype, device=K.device)
    v = torch.arange(height, dtype=K.dtype, device=K.device)
    return _pixel_rays(K, u[None, None, :], v[None, :, None])


def _pixel_rays(K: Tensor, u: Tensor, v: Tensor) -> Rays:
    K = K.reshape(-1, 3, 3, 1, 1)
    if (K[:, 0, 1] != 0.0).any():
        raise ValueError('expected a camera without skew')
    return Rays((u - K[:, 0, 2]) / K[:, 0, 0], (v - K[:, 1, 2]) / K[:, 1, 1], torch.ones_like(u[:, :1, :1]))


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
        if rows.start == rows.stop or columns.start == columns.stop:
            continue
        near, far = _interval(kind, T_self_sensor[:, index], half[:, index], rays if K is None else rays.cut(rows, columns))
        met = far if kind == ROOM else near
        seen = distance[:, rows, columns]
        closer = (near < far) & (met > rays.nearest) & (met < seen)
        distance[:, rows, columns] = torch.where(closer, met, seen)
        primitive[:, rows, columns].masked_fill_(closer, index)
    return Hits(distance, primitive)


def _interval(kind: int, T_self_sensor: Tensor, half: Tensor, rays: Rays) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a primitive, (B, h, w) each; near >= far where they miss. T_self_sensor (B, 4, 4), half (B, 3)."""
    M = T_self_sensor[:, :3, :, None, None]                                            # (B, 3, 4, 1, 1)
    o = [M[:, i, 3] for i in range(3)]
    if rays.origin is not None:
        o = [M[:, i, 0] * rays.origin[0] + M[:, i, 1] * rays.origin[1] + M[:, i, 2] * rays.origin[2] + o[i] for i in range(3)]
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
    if K is None or half.is_cuda:      # there, asking for each window takes longer than casting them all
        yield from [whole] * len(scene.kinds)
        return
    signs = torch.cartesian_prod(*[half.new_tensor([-1.0, 1.0])] * 3)                  # (8, 3)
    K = K.reshape(-1, 1, 3, 3)
    corners = se3.transform(se3.inverse(T_self_sensor), half[:, :, None] * signs)      # (B, N, 8, 3) in the camera
    pixels, in_front = pinhole.dehomogenise(corners @ K.mT)
    first = pixels.amin((0, 2)).floor().long().tolist()
    last = pixels.amax((0, 2)).ceil().long().tolist()
    hidden = _beyond_a_side(corners, K, height, width).tolist()
    for (left, top), (right, bottom), bounded, unseen in zip(first, last, in_front.all(2).all(0).tolist(), hidden):
        if unseen:
            yield slice(0, 0), slice(0, 0)
        else:
            yield (slice(*_clip(top, bottom + 1, height)), slice(*_clip(left, right + 1, width))) if bounded else whole


def _beyond_a_side(corners: Tensor, K: Tensor, height: int, width: int) -> Tensor:
    """Mask (N,) of boxes whose corners (B, N, 8, 3) lie beyond one and the same side of the image's pyramid (or behind) in every camera."""
    x, y, z = (corners @ K.mT).unbind(-1)
    sides = torch.stack([z < 0.0, x < -z, x > width * z, y < -z, y > height * z])        # a pixel of margin
    return sides.all(-1).any(0).all(0)


def _clip(begin: int, end: int, size: int) -> tuple[int, int]:
    begin = min(max(begin, 0), size)
    return begin, max(min(end, size), begin)


def colours(scene: Scene, T_world_sensor: Tensor, rays: Rays, hits: Hits, focal: Tensor, mirror: bool = True) -> Tensor:
    """Colours (B, 3, H, W) in [0, 1] of what was met by cameras of the focal length (1,) or (B,) [px]; with what is mirrored in it, unless told otherwise."""
    batch, height, width = hits.distance.shape
    count = len(scene.kinds)
    device = hits.distance.device
    lights = scene.lights.to(device).seen_from(T_world_sensor)
    T = (se3.inverse(scene.T_world_self) @ T_world_sensor[:, None])[:, :, :3].reshape(batch * count, 12).T.contiguous()
    half = scene.half.expand(batch, -1, -1).reshape(-1, 3).T.contiguous()
    materials = scene.materials.expand(batch, -1, -1).reshape(-1)
    shapes = torch.tensor([BOX if kind == ROOM else kind for kind in scene.kinds], device=device)[hits.primitive].flatten()
    shifts = None if scene.shifts is None else scene.shifts.expand(batch, -1).flatten()
    first = torch.arange(batch, device=device)[:, None, None] * count
    slot = (hits.primitive + first).flatten()
    distance = hits.distance.flatten()
    planes = [p.expand(batch, height, width).flatten() for p in rays[:3]]
    origin = None if rays.origin is None else [p.expand(batch, height, width).flatten() for p in rays.origin]
    colour = distance.new_zeros(3, len(slot))
    mirrors = _Mirrors(distance.new_zeros(len(slot)), distance.new_zeros(3, len(slot))) if mirror and scene.textures.mirror.any() else None
    shapes[~torch.isfinite(distance)] = -1
    for shape in sorted({BOX if kind == ROOM else kind for kind in scene.kinds}):
        which = (shapes == shape).nonzero()[:, 0]
        row, t, ray = slot[which], distance[which], [p[which] for p in planes]
        M = T.index_select(1, row)
        d = [M[4 * i] * ray[0] + M[4 * i + 1] * ray[1] + M[4 * i + 2] * ray[2] for i in range(3)]
        point, begin = [t * r for r in ray], [M[4 * i + 3] for i in range(3)]
        if origin is not None:
            o = [p[which] for p in origin]
            point, begin = [p + q for p, q in zip(point, o)], [M[4 * i] * o[0] + M[4 * i + 1] * o[1] + M[4 * i + 2] * o[2] + begin[i] for i in range(3)]
        place = _surface(shape, half.index_select(1, row), [t * d[i] + begin[i] for i in range(3)])
        normal = place.normal
        index = row % count
        if shape == BOX:
            inward = torch.tensor([-1.0 if kind == ROOM else 1.0 for kind in scene.kinds], device=device)[index]
            normal = [inward * n for n in normal]
        cosine = (normal[0] * d[0] + normal[1] * d[1] + normal[2] * d[2]).abs() / (d[0] ** 2 + d[1] ** 2 + d[2] ** 2).sqrt()
        # A slanted surface is averaged over less than a pixel covers of it along the slant and more across: between blur and moire.
        footprint = t / (focal if len(focal) == 1 else focal[row // count]) / cosine.clamp(min=0.02).sqrt()
        shift = (_SHIFT * index if shifts is None else shifts[row]) + 0.61 * place.face    # no two faces show the same part of a tile
        material = materials[6 * row + place.face]
        texture = scene.textures.sample(material, place.u + shift, place.v + 0.5 * shift, footprint)
        camera = row // count
        seen = [M[i] * normal[0] + M[4 + i] * normal[1] + M[8 + i] * normal[2] for i in range(3)]      # the normal in the camera
        shade = texture * lights.diffuse(camera, point, seen)
        gloss = scene.textures.gloss[material]
        shiny = gloss.nonzero()[:, 0]
        if len(shiny):
            facing = [n[shiny] for n in seen]
            shade[:, shiny] += gloss[shiny] * lights.mirrored(camera[shiny], [r[shiny] for r in ray], facing)
            if mirrors is not None:
                mirrors.share[which[shiny]] = mirrored_share(scene.textures.mirror[material[shiny]], cosine[shiny])
                mirrors.normal[:, which[shiny]] = torch.stack(facing)
        colour[:, which] = shade
    colour = colour.reshape(3, batch, height * width)
    if mirrors is not None:
        _add_mirrored(colour, mirrors, scene, T_world_sensor, torch.stack(planes), distance, focal)
    return colour.clamp_(0.0, 1.0).reshape(3, batch, height, width).movedim(0, 1)


class _Mirrors(NamedTuple):
    """How surfaces mirror."""

    share: Tensor       # (P,) of the light
    normal: Tensor      # (3, P) unit, in the camera's frame


def _add_mirrored(colour: Tensor, mirrors: _Mirrors, scene: Scene, T_world_sensor: Tensor, rays: Tensor, distance: Tensor, focal: Tensor) -> None:
    """Blend into colours (3, B, P / B) what surfaces met by rays (3, P) at distances (P,) mirror."""
    batch = len(T_world_sensor)
    shares, normals, rays, distances = mirrors.share.view(batch, -1), mirrors.normal.view(3, batch, -1), rays.view(3, batch, -1), distance.view(batch, -1)
    for b, share in enumerate(shares):
        which = (share > _LEAST_MIRRORED).nonzero()[:, 0]
        if not len(which):
            continue
        ray, normal, t = rays[:, b, which], normals[:, b, which], distances[b, which]
        away = ray - 2.0 * (ray * normal).sum(0) * normal
        # As if they came from behind the mirror, so that distance, and with it what a pixel covers, is that of the whole way.
        seen = Rays(*away[:, None, None], tuple((t * (ray - away))[:, None, None]), (t * (1.0 + _CLEAR))[None, None])
        own, T = scene.of_camera(b), T_world_sensor[b:b + 1]
        met = cast(own, T, seen)        # nothing in corners, and through gaps
        mirrored = colours(own, T, seen, met, focal if len(focal) == 1 else focal[b:b + 1], mirror=False)
        colour[:, b, which] = torch.lerp(colour[:, b, which], mirrored[0, :, 0], torch.where(torch.isfinite(met.distance[0, 0]), share[which], 0.0))


class Place(NamedTuple):
    """Where on a primitive points lie."""

    face: Tensor            # (P,) int64
    u: Tensor               # (P,) [m], on the face
    v: Tensor
    normal: list[Tensor]    # three planes (P,), outward, in the primitive's frame


def _surface(kind: int, half: Tensor, point: list[Tensor]) -> Place:
    """Where points (three planes (P,)) on primitives of one kind (a room counts as a box) with half extents (3, P) lie, in their own frames."""
    x, y, z = point
    if kind == SPHERE:
        return Place(torch.zeros_like(x, dtype=torch.int64), torch.atan2(y, x) * half[0], torch.asin((z / half[0]).clamp(-1.0, 1.0)) * half[0],
                     [p / half[0] for p in point])
    if kind == CYLINDER:
        radius = torch.hypot(x, y)
        cap = z.abs() / half[2] > radius / half[0]
        normal = [torch.where(cap, 0.0, x / radius), torch.where(cap, 0.0, y / radius), torch.where(cap, torch.where(z > 0.0, 1.0, -1.0), 0.0)]
        return Place(torch.where(cap, 4 + (z > 0.0), 0), torch.where(cap, x, torch.atan2(y, x) * half[0]), torch.where(cap, y, z), normal)
    far = [p.abs() / h for p, h in zip(point, half)]
    on_x = (far[0] >= far[1]) & (far[0] >= far[2])
    on_y = ~on_x & (far[1] >= far[2])
    along = torch.where(on_x, x, torch.where(on_y, y, z))
    sign = torch.where(along > 0.0, 1.0, -1.0)
    face = torch.where(on_x, 0, torch.where(on_y, 2, 4)) + (along > 0.0)
    return Place(face, torch.where(on_x, y, x), torch.where(on_x | on_y, z, y), [sign * on_x, sign * on_y, sign * ~(on_x | on_y)])


def _present(primitive: Tensor) -> list[int]:
    """The primitives that occur."""
    return torch.bincount(primitive.flatten()).nonzero()[:, 0].tolist()


def render(scene: Scene, T_world_cam: Tensor, K: Tensor, height: int, width: int, fine: bool = True) -> Rendering:
    """Images and exact depth of cameras T_world_cam (B, 4, 4) with K (3, 3) or (B, 3, 3) [px]; depth is that of the pixels' centres.

    Edges are anti-aliased by four rays a pixel (`fine`), or in a third of the time by blending them with their neighbours, about what a lens does.
    """
    rays = camera_rays(K, height, width)
    hits = cast(scene, T_world_cam, rays, K)
    K = K.reshape(-1, 3, 3)
    colour = colours(scene, T_world_cam, rays, hits, K[:, 0, 0])
    edges = _edges(hits.primitive)
    if fine:
        _cast_edges(colour, edges, scene, T_world_cam, K, hits)
    else:
        kernel = torch.outer(*[K.new_tensor([0.25, 0.5, 0.25])] * 2).expand(3, 1, 3, 3)
        soft = F.conv2d(F.pad(colour, (1, 1, 1, 1), mode='replicate'), kernel, groups=3)
        colour = torch.where(edges[:, None], soft, colour)
    return Rendering((colour * 255.0).round().to(torch.uint8).movedim(1, -1).contiguous(), hits.distance)


def _cast_edges(colour: Tensor, edges: Tensor, scene: Scene, T_world_cam: Tensor, K: Tensor, hits: Hits) -> None:
    """Replace colours (B, 3, H, W) at edges (B, H, W) by those of four rays a pixel."""
    for b, edge in enumerate(edges):
        v, u = edge.nonzero(as_tuple=True)
        if len(u):
            offsets, T = K.new_tensor(_SUBPIXELS), T_world_cam[b:b + 1]
            K_b = K if len(K) == 1 else K[b:b + 1]
            fine = _pixel_rays(K_b, (u[:, None] + offsets[:, 0])[None], (v[:, None] + offsets[:, 1])[None])
            # What an edge shows a fraction of a pixel away is nearly always seen somewhere else in the image as well.
            present = _present(hits.primitive[b])
            met = cast(scene.of_camera(b).only(present), T, fine)
            met = met._replace(primitive=torch.tensor(present, device=u.device)[met.primitive])
            colour[b, :, v, u] = colours(scene.of_camera(b), T, fine, met, K_b[:, 0, 0])[0].mean(-1)


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
