"""The built-in sequence `sample`: a robot drives in an arc through a furnished room, its camera turned half aside; rendered once for each user.

640 x 480 at 30 Hz, RGB and exact depth, a 2D laser at 10 Hz below the camera, ground truth in a z-up world.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from depth_ros import files
from depth_ros.frames import R_BODY_OPTICAL
from depth_ros.geometry import se3
from depth_ros.learning import synthetic
from depth_ros.learning.materials import NAMES, bake
from depth_ros.learning.sample_rooms import FIRST, ROOMS
from depth_ros.learning.sequences import DEFAULT_FRAME_ID, ColourEvent, DepthEvent, Event, Mount, PoseEvent, Scan, ScanEvent, camera_matrix
from depth_ros.learning.trajectory import NANOSECONDS, pose_matrices, pose_rows
from depth_ros.learning.tum_writer import TumWriter

_LOG = logging.getLogger(__name__)
_FORMAT = 5             # raise it whenever what is rendered changes
_MAX_WORKERS = 4


@dataclass(frozen=True)
class SampleSettings:
    """All that decides the sequence."""

    seed: int = 7
    frames: int = 312
    rate: float = 30.0              # [Hz]
    width: int = 640                # [px]
    height: int = 480
    focal: float = 525.0            # [px]
    start: int = 1_700_000_000      # [s], stamp of the first frame
    radius: float = 2.05            # [m] of the arc
    speed: float = 0.42             # [m/s], reached after `ramp`
    ramp: float = 1.0               # [s]
    camera_height: float = 0.72     # [m]
    camera_yaw: float = 65.0        # [deg] to the left of the way ahead: parallax needs motion across the view
    camera_pitch: float = 11.0      # [deg] down
    laser_height: float = 0.24      # [m]
    laser_every: int = 3            # frames
    laser_beams: int = 360
    laser_range: tuple[float, float] = (0.12, 10.0)     # [m]
    room: str = FIRST               # one of ROOMS


def sample_folder(settings: SampleSettings = SampleSettings()) -> Path:
    """The TUM folder of the sample in the user's cache, rendered now if it is not there (well under a minute, about 80 MB)."""
    # The first room was once the only one: its folder keeps its name.
    known = {name: value for name, value in asdict(settings).items() if (name, value) != ('room', FIRST)}
    key = hashlib.sha256(json.dumps([_FORMAT, known], sort_keys=True).encode()).hexdigest()[:12]
    cache = files.user_cache()
    folder = cache / f'sample-{key}'
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / '.sample.lock').open('w') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)    # of two programs that start together, the second waits for the first one's
            # Whoever rendered these was killed: it would hold the lock. Other samples stay, for another checkout may be at them.
            for partial in cache.glob('.sample-*'):
                shutil.rmtree(partial, ignore_errors=True)
            if not folder.exists():
                _LOG.info('rendering the sample sequence into %s: about a minute, this once', folder)
                with files.whole(folder) as partial:
                    write_sample(partial, settings)
    return folder


def write_sample(folder: Path, settings: SampleSettings = SampleSettings(), device: str = 'cpu') -> None:
    """Render the sequence as a TUM folder at a path that does not exist yet."""
    K = sample_matrix(settings)
    writer = TumWriter(folder, K, (settings.width, settings.height), DEFAULT_FRAME_ID, laser_mount(settings), lossless=False)
    with tqdm(total=settings.frames, desc='rendering the sample', unit='frame', disable=None) as progress:
        for event in sample_events(settings, device):
            writer.add(event)
            progress.update(isinstance(event, ColourEvent))
    writer.close()


def sample_matrix(settings: SampleSettings) -> np.ndarray:
    """K (3, 3) [px]."""
    return camera_matrix(settings.focal, settings.focal, (settings.width - 1) / 2, (settings.height - 1) / 2)


def sample_events(settings: SampleSettings, device: str = 'cpu') -> Iterator[Event]:
    """Everything that the robot records, in the order of its stamps."""
    scene = sample_scene(settings.seed, settings.room).to(device)
    stamps = [settings.start * NANOSECONDS + round(i * NANOSECONDS / settings.rate) for i in range(settings.frames)]
    rows = pose_rows(camera_poses(settings))
    poses = torch.tensor(pose_matrices(rows), dtype=torch.float32, device=device)      # of the very rows that are recorded
    K = torch.tensor(sample_matrix(settings), dtype=torch.float32, device=device)
    T_cam_laser = torch.tensor(laser_mount(settings).T_cam_laser, dtype=torch.float32, device=device)

    def record(i: int) -> list[Event]:
        pose, stamp = poses[i:i + 1], stamps[i]
        image, depth = (t[0].cpu().numpy() for t in synthetic.render(scene, pose, K, settings.height, settings.width))
        events: list[Event] = [PoseEvent(stamp, rows[i])]
        if i % settings.laser_every == 0:
            events.append(ScanEvent(stamp, _scan(scene, pose @ T_cam_laser, stamp, settings)))
        return [*events, DepthEvent(stamp, np.where(np.isfinite(depth), depth, np.float32(np.nan))), ColourEvent(stamp, image)]

    for events in _in_parallel(record, settings.frames):
        yield from events


def _in_parallel(work: Callable[[int], list[Event]], count: int) -> Iterator[list[Event]]:
    """work(0), work(1), ... in order, computed ahead by one thread a core.

    Each works on a whole image alone: threads that share every small operation lose most of their time waiting for each other on a busy machine.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, _MAX_WORKERS))
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(workers)
    try:
        ahead = deque(pool.submit(work, i) for i in range(min(2 * workers, count)))
        for i in range(count):
            done = ahead.popleft().result()
            if i + 2 * workers < count:
                ahead.append(pool.submit(work, i + 2 * workers))
            yield done
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _scan(scene: synthetic.Scene, T_world_laser: torch.Tensor, stamp: int, settings: SampleSettings) -> Scan:
    step = np.float32(2.0 * math.pi / settings.laser_beams)
    first = np.float32(-math.pi)
    angles = first + step * np.arange(settings.laser_beams, dtype=np.float32)
    near, far = (np.float32(r) for r in settings.laser_range)
    ranges = synthetic.scan(scene, T_world_laser, torch.from_numpy(angles).to(T_world_laser.device))[0].cpu().numpy()
    ranges = np.where(ranges < near, np.float32(-np.inf), np.where(ranges > far, np.float32(np.inf), ranges))      # REP 117
    return Scan(stamp, 'laser', float(first), float(angles[-1]), float(step), 0.0, float(np.float32(settings.laser_every / settings.rate)),
                float(near), float(far), ranges)


def body_poses(settings: SampleSettings) -> np.ndarray:
    """T_world_body (N, 4, 4) of the robot: a soft start, then an arc to the left, with a little swaying as on a real floor."""
    t = np.arange(settings.frames) / settings.rate
    way = settings.speed * np.where(t < settings.ramp, t ** 2 / (2.0 * settings.ramp), t - settings.ramp / 2.0)
    angle = way / settings.radius - 1.9
    share = np.minimum(t / settings.ramp, 1.0)                                          # it does not sway before it moves
    roll, pitch = (np.radians(a) * share * np.sin(2.0 * np.pi * f * t + p) for a, f, p in ((0.35, 0.9, 0.3), (0.45, 1.3, 1.1)))
    T = np.tile(np.eye(4), (settings.frames, 1, 1))
    T[:, :3, :3] = Rotation.from_euler('ZYX', np.stack([angle + np.pi / 2, pitch, roll], 1)).as_matrix()
    T[:, 0, 3], T[:, 1, 3] = 0.1 + settings.radius * np.cos(angle), settings.radius * np.sin(angle)
    T[:, 2, 3] = 0.0015 * share * np.sin(2.0 * np.pi * 2.1 * t)
    return T


def _T_body_cam(settings: SampleSettings) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler('ZY', [settings.camera_yaw, settings.camera_pitch], degrees=True).as_matrix() @ R_BODY_OPTICAL
    T[:3, 3] = 0.1, 0.0, settings.camera_height
    return T


def camera_poses(settings: SampleSettings) -> np.ndarray:
    """T_world_cam (N, 4, 4), cam is optical."""
    return body_poses(settings) @ _T_body_cam(settings)


def laser_mount(settings: SampleSettings) -> Mount:
    """The laser looks ahead, level with the robot, below the camera."""
    T_body_laser = np.eye(4)
    T_body_laser[:3, 3] = 0.1, 0.0, settings.laser_height
    T_cam_laser = se3.inverse(torch.from_numpy(_T_body_cam(settings))).numpy() @ T_body_laser
    return Mount('laser', pose_rows(T_cam_laser[None])[0])


def sample_scene(seed: int, room: str = FIRST) -> synthetic.Scene:
    """One of the ROOMS, with furniture in its middle and along its walls. Raises ValueError for a room that is not among them."""
    if room not in ROOMS:
        raise ValueError(f'no such room: {room!r}; there are {", ".join(ROOMS)}')
    kinds, poses, halves, materials = zip(*ROOMS[room]())
    T = np.stack(poses)[None]
    faces = torch.tensor([[NAMES.index(n) for n in names] for names in materials])[None]
    return synthetic.Scene(tuple(kinds), torch.tensor(T, dtype=torch.float32), torch.tensor(np.array(halves), dtype=torch.float32)[None], faces, bake(seed))
