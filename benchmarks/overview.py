"""The picture of the README: the built-in sample through the engine of the main job, from colour alone.

    ./rosenv python benchmarks/overview.py [--out resource/overview.png]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from depth_ros import files
from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine
from depth_ros.engines.voxel_map import VoxelMap
from depth_ros.frames import DepthResult, TrackStatus
from depth_ros.learning.tum import open_sequence

EVERY = 10      # frames from one cloud of the map to the next
SHOWN = 200     # frame whose images are shown
VOXEL = 0.02    # of the map, in units of the first median depth


def cloud(result: DepthResult, T_odom_cam: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confident points (N, 3) in odom and their colours (N, 3)."""
    sure = result.valid & (result.confidence > 0.6)
    v, u = np.nonzero(sure)
    rays = np.stack([u, v, np.ones_like(u)], axis=1) @ np.linalg.inv(result.frame.K).T
    points = rays * result.depth[sure][:, None]
    return points @ T_odom_cam[:3, :3].T + T_odom_cam[:3, 3], result.frame.image[sure]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('resource/overview.png'))
    args = parser.parse_args()
    sequence, engine, voxels, path, shown = open_sequence('sample'), DeepV2DEngine(DeepV2DConfig(depth='flow')), VoxelMap(VOXEL, 500_000), [], None
    for index in tqdm(range(len(sequence)), disable=None):
        track, depth = engine.step(replace(sequence[index], depth=None, depth_valid=None))
        if track.status is not TrackStatus.OK or depth is None:
            continue
        path.append(track.T_odom_cam[:3, 3])
        if index % EVERY == 0:
            voxels.add(*cloud(depth, track.T_odom_cam))
        if index == SHOWN:
            shown = depth
    points, colours = voxels.arrays()
    path = np.array(path)
    figure, (colour, dense, above) = plt.subplots(1, 3, figsize=(13, 3.6), constrained_layout=True)
    colour.imshow(shown.frame.image)
    figure.colorbar(dense.imshow(shown.depth, cmap='turbo'), ax=dense, shrink=0.85, label='depth [first median depth]')
    order = np.argsort(points[:, 2])    # what is higher covers what is lower
    above.scatter(-points[order, 1], points[order, 0], c=colours[order] / 255, s=0.4, linewidths=0)
    above.plot(-path[:, 1], path[:, 0], color='deepskyblue', lw=2)
    low, high = np.percentile(points, [1, 99], axis=0)
    above.set(aspect='equal', facecolor='0.12', xlim=(-high[1] - 0.2, -low[1] + 0.2), ylim=(min(low[0], path[:, 0].min()) - 0.2, high[0] + 0.2))
    for axes, title in ((colour, 'image'), (dense, 'depth from colour alone'), (above, 'map and path from above')):
        axes.set(xticks=[], yticks=[], title=title)
    with files.whole(args.out) as partial:
        figure.savefig(partial, dpi=90)


if __name__ == '__main__':
    main()
