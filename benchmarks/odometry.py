"""RGB-D odometry: accuracy and time a frame of depth_ros and of public systems, in one run on one machine.

    ./rosenv python benchmarks/odometry.py [--sequence FOLDER] [--out FOLDER]

The first call makes the environment of the peers (benchmarks/requirements.txt, about 800 MB). Times are medians over frames of systems run one after
the other and twice over, the faster of the two: what matters is the ratio, for machines differ and are shared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from depth_ros import files
from depth_ros.apps import scoring
from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine
from depth_ros.frames import Scale
from depth_ros.learning.trajectory import Trajectory, read_trajectory
from depth_ros.learning.tum import open_sequence

HERE = Path(__file__).resolve().parent
PEERS = ('open3d_hybrid', 'opencv_rgbd')
YARDSTICK = 'open3d_hybrid'     # times are given as ratios to it
ROUNDS = 2


def peer_python() -> Path:
    """The interpreter of the peers' environment, made at the first call and whenever its requirements change."""
    folder, wanted = HERE / '.peers', (HERE / 'requirements.txt').read_text()
    stamp = folder / 'installed.txt'
    if not stamp.is_file() or stamp.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / 'bin/pip', 'install', '-r', HERE / 'requirements.txt'], check=True, env=clean_environment())
        stamp.write_text(wanted)
    return folder / 'bin/python'


def clean_environment() -> dict[str, str]:
    """The environment without the ROS paths, which would show the peers another NumPy and OpenCV."""
    return {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'LD_LIBRARY_PATH', 'VIRTUAL_ENV')}


def run_peer(name: str, sequence: Path, frames: int, out: Path) -> tuple[Trajectory, np.ndarray]:
    """Trajectory and milliseconds a frame (N,) of one peer."""
    command = [peer_python(), HERE / 'peers.py', name, sequence, out, '--frames', str(frames)]
    subprocess.run(list(map(str, command)), check=True, env=clean_environment())
    return read_trajectory(out / f'{name}.txt'), np.array(json.loads((out / f'{name}.json').read_text()))


def run_ours(sequence: Path, frames: int) -> tuple[Trajectory, np.ndarray]:
    """Trajectory and milliseconds a frame (N,), flow included, of the engine with its defaults and sensor depth."""
    recorded, engine, stamps, poses, milliseconds = open_sequence(sequence), DeepV2DEngine(DeepV2DConfig(depth='sensor')), [], [], []
    for index in tqdm(range(frames), desc='depth_ros', disable=None):
        frame = recorded[index]
        started = time.perf_counter()
        track = engine.step(frame).track
        milliseconds.append(1e3 * (time.perf_counter() - started))
        stamps.append(track.stamp)
        poses.append(track.T_odom_cam)
    return Trajectory(np.array(stamps), np.array(poses)), np.array(milliseconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get('DEPTH_ROS_DATA', HERE.parents[1] / 'shared/data'))
    parser.add_argument('--sequence', type=Path, default=data / 'kitchen', help='a TUM folder with calibration.yaml')
    parser.add_argument('--reference', type=Path, action='append', help='reference trajectories; default: every groundtruth*.txt of the sequence')
    parser.add_argument('--frames', type=int, help='only so many')
    parser.add_argument('--out', type=Path, default=Path('evaluation/odometry'))
    args = parser.parse_args()
    references = {p.stem: read_trajectory(p) for p in args.reference or sorted(args.sequence.glob('groundtruth*.txt'))}
    frames = min(args.frames or sys.maxsize, len(open_sequence(args.sequence)))
    results: dict[str, tuple[Trajectory, np.ndarray]] = {}
    fastest: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(ROUNDS):
            for name in (*PEERS, 'depth_ros'):
                results[name] = run_ours(args.sequence, frames) if name == 'depth_ros' else run_peer(name, args.sequence, frames, Path(scratch))
                fastest[name] = min(fastest.get(name, np.inf), float(np.median(results[name][1])))
    table = {name: {'ms_per_frame_median': fastest[name], 'time_ratio': fastest[name] / fastest[YARDSTICK],
                    **{f'{metric} vs {reference}': getattr(scoring.tracking(track, truth, Scale.METRIC), metric)
                       for reference, truth in references.items() for metric in ('rpe_1s_trans_rmse', 'ate_rmse')}}
             for name, (track, _) in results.items()}
    report(table, args.out)


def report(table: dict[str, dict[str, float]], out: Path) -> None:
    """The table on the terminal and as metrics.json, and a plot of accuracy against time."""
    columns = list(next(iter(table.values())))
    print(f'{"":16}' + ''.join(f'{c:>42}' for c in columns))
    for name, row in table.items():
        print(f'{name:16}' + ''.join(f'{row[c]:42.4f}' for c in columns))
    with files.whole(out / 'metrics.json') as partial:
        partial.write_text(json.dumps(table, indent=2) + '\n')
    figure, axes = plt.subplots(figsize=(6, 4), constrained_layout=True)
    accuracy = next(c for c in reversed(columns) if c.startswith('rpe'))
    for name, row in table.items():
        axes.scatter(row['time_ratio'], 1e3 * row[accuracy])
        axes.annotate(name, (row['time_ratio'], 1e3 * row[accuracy]), xytext=(5, 5), textcoords='offset points')
    axes.set(xlabel=f'time a frame, ratio to {YARDSTICK}', ylabel=f'{accuracy} [mm/s]', xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    with files.whole(out / 'odometry.png') as partial:
        figure.savefig(partial, dpi=110)


if __name__ == '__main__':
    main()
