"""For the tests of Global-Local: untrained checkpoints, of which the pose-aware one starts at triangulation, so that its depth means something, and a pair to run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from depth_ros.frames import CameraFrame, FlowResult, ImagePair
from depth_ros.models import checkpoint, registry

FILES = {'published': 'global_local.safetensors', 'pose_aware': 'global_local_pose_aware.safetensors'}

SIZE = 128, 96      # [px]
BASELINE = 0.25     # [m]
T_REF_CUR = np.eye(4)
T_REF_CUR[0, 3] = BASELINE


def wall(current: int = 2 * 10 ** 9, reference: int = 10 ** 9) -> tuple[FlowResult, np.ndarray]:
    """A slanted wall seen from two places side by side at two stamps [ns]: exact flow, and exact depth (H, W) [m]."""
    width, height = SIZE
    K = np.array([[110.0, 0.0, 63.5], [0.0, 110.0, 47.5], [0.0, 0.0, 1.0]])
    depth = np.broadcast_to(np.linspace(3.0, 1.5, height, dtype=np.float32)[:, None], (height, width)).copy()
    rng = np.random.default_rng(0)
    frames = [CameraFrame(stamp, 'camera', rng.integers(0, 256, (height, width, 3), dtype=np.uint8), K) for stamp in (current, reference)]
    flow = np.zeros((height, width, 2), np.float32)
    flow[..., 0] = K[0, 0] * BASELINE / depth
    return FlowResult(ImagePair(*frames), flow, -flow), depth


def living(result: FlowResult) -> FlowResult:
    """The same with a sensor's noise: no two images of different stamps are alike."""
    noisy = lambda f: replace(f, image=np.clip(f.image + np.random.default_rng(f.stamp).integers(-3, 4, f.image.shape), 0, 255).astype(np.uint8))
    return replace(result, pair=ImagePair(noisy(result.pair.current), noisy(result.pair.reference)))


def hits_on(depth: np.ndarray, share: float = 1.0) -> np.ndarray:
    """Range hits (H, W) [m] on one row, at a share of the depth (H, W) [m]."""
    hits = np.zeros_like(depth)
    hits[40, ::2] = share * depth[40, ::2]
    return hits


def network(variant: str, seed: int = 0, **config: bool) -> torch.nn.Module:
    """A network with weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return registry.build('global_local', {'pose_aware': variant == 'pose_aware', **config}).eval()


def blob(variant: str, seed: int = 0, number: int = 1, **config: bool) -> bytes:
    """A network as it travels in a message."""
    return checkpoint.to_bytes('global_local', network(variant, seed, **config), {'number': number})


def write(folder: Path) -> Path:
    """Both variants under the names of the shipped files; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for variant, name in FILES.items():
        checkpoint.save(folder / name, 'global_local', network(variant), {'number': 0})
    return folder
