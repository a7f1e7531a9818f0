"""RGB-D odometry of public systems, run by odometry.py in an environment of their own.

Reads nothing of depth_ros: a TUM folder in, `<name>.txt` (TUM text) and `<name>.json` (milliseconds a frame) out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import open3d as o3d
from scipy.spatial.transform import Rotation

MAX_DEPTH = 8.0     # [m]
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]   # colour (H, W, 3) RGB, depth (H, W) [m, 0 unknown] -> T_previous_current (4, 4)


def open3d_hybrid(K: np.ndarray) -> Step:
    """Open3D's tensor RGB-D odometry, hybrid (photometric and geometric), frame to frame."""
    intrinsics = o3d.core.Tensor(K)
    previous: o3d.t.geometry.RGBDImage | None = None

    def step(colour: np.ndarray, depth: np.ndarray) -> np.ndarray:
        nonlocal previous
        current = o3d.t.geometry.RGBDImage(o3d.t.geometry.Image(colour), o3d.t.geometry.Image(depth))
        pose = np.eye(4)
        if previous is not None:
            result = o3d.t.pipelines.odometry.rgbd_odometry_multi_scale(
                current, previous, intrinsics, o3d.core.Tensor.eye(4), depth_scale=1.0, depth_max=MAX_DEPTH,
                method=o3d.t.pipelines.odometry.Method.Hybrid)
            pose = result.transformation.numpy()
        previous = current
        return pose

    return step


def opencv_rgbd(K: np.ndarray) -> Step:
    """OpenCV 4's RgbdOdometry (contrib), frame to frame."""
    odometry = cv2.rgbd.RgbdOdometry_create(K, maxDepth=MAX_DEPTH)
    previous = None

    def step(colour: np.ndarray, depth: np.ndarray) -> np.ndarray:
        nonlocal previous
        current = cv2.rgbd.OdometryFrame_create(cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY), np.where(depth > 0, depth, np.nan).astype(np.float32))
        pose = np.eye(4)
        if previous is not None:
            found, estimate = odometry.compute2(current, previous)
            pose = estimate if found else pose
        previous = current
        return pose

    return step


PEERS = {'open3d_hybrid': open3d_hybrid, 'opencv_rgbd': opencv_rgbd}


def read(folder: Path) -> tuple[np.ndarray, list[tuple[str, Path, Path]]]:
    """Intrinsics (3, 3) and (stamp text, colour, depth) a frame of a TUM folder with equally many of both."""
    facts = dict(line.split(':') for line in (folder / 'calibration.yaml').read_text().splitlines() if ':' in line)
    K = np.array([[float(facts['fx']), 0, float(facts['cx'])], [0, float(facts['fy']), float(facts['cy'])], [0, 0, 1]])
    lists = [[line.split() for line in (folder / name).read_text().splitlines() if line and line[0] != '#'] for name in ('rgb.txt', 'depth.txt')]
    return K, [(colour[0], folder / colour[1], folder / depth[1]) for colour, depth in zip(*lists, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('peer', choices=sorted(PEERS))
    parser.add_argument('sequence', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--frames', type=int)
    args = parser.parse_args()
    K, frames = read(args.sequence)
    step, pose, rows, milliseconds = PEERS[args.peer](K), np.eye(4), [], []
    for stamp, colour_file, depth_file in frames[:args.frames]:
        colour = cv2.cvtColor(cv2.imread(str(colour_file)), cv2.COLOR_BGR2RGB)
        depth = cv2.imread(str(depth_file), cv2.IMREAD_UNCHANGED).astype(np.float32) / 5000
        started = time.perf_counter()
        pose = pose @ step(colour, depth)
        milliseconds.append(1e3 * (time.perf_counter() - started))
        rows.append(' '.join([stamp, *(f'{v:.9f}' for v in (*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat()))]))
    (args.out / f'{args.peer}.txt').write_text('\n'.join(rows) + '\n')
    (args.out / f'{args.peer}.json').write_text(json.dumps(milliseconds))


if __name__ == '__main__':
    main()
