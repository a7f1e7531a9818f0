"""The live graph on a recording: rate and latency of odometry, images lost, memory of each node, and the trajectory's error.

    ./rosenv python benchmarks/live.py BAG [--loops N] [--reference FILE] [--out FOLDER]

Latency is from the arrival of an image's camera_info at a listener to that of its odometry.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from depth_ros import files
from depth_ros.apps import scoring
from depth_ros.frames import Scale
from depth_ros.learning.trajectory import Trajectory, read_trajectory
from depth_ros.ros import codecs, poses
from depth_ros.ros.managed_node import SENSOR_QOS

NODES = ('player', 'flow', 'sparse_depth', 'deepv2d')


class Listener(Node):
    """Notes when each image and its odometry came."""

    def __init__(self) -> None:
        super().__init__('live_benchmark')
        self.images: list[tuple[int, float]] = []
        self.odometry: list[tuple[int, float, np.ndarray]] = []
        self.create_subscription(CameraInfo, '/camera/rgb/camera_info', lambda m: self.images.append((codecs.stamp_ns(m.header.stamp), time.monotonic())), SENSOR_QOS)
        self.create_subscription(Odometry, '/deepv2d/odometry', lambda m: self.odometry.append(
            (codecs.stamp_ns(m.header.stamp), time.monotonic(), poses.matrix(m.pose.pose))), 50)

    @property
    def laps(self) -> int:
        """How often the stamps jumped back."""
        return int((np.diff([s for s, _ in self.images]) < 0).sum()) if self.images else 0


def memory() -> dict[str, float]:
    """Resident MB of each node."""
    found = {}
    for line in subprocess.run(['ps', '-eo', 'rss=,args='], capture_output=True, text=True, check=True).stdout.splitlines():
        size, _, command = line.strip().partition(' ')
        for name in NODES:
            if f'__node:={name}' in command:
                found[name] = int(size) / 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bag', help='what to replay')
    parser.add_argument('--loops', type=int, default=0, help='wraps to wait for; 0 plays once')
    parser.add_argument('--reference', type=Path, help='reference trajectory of the recording')
    parser.add_argument('--out', type=Path, default=Path('evaluation/live'))
    args = parser.parse_args()
    rclpy.init()
    listener, sizes = Listener(), []
    command = ['ros2', 'launch', 'depth_ros', 'deepv2d_slam.launch.py', f'bag:={args.bag}', f'loop:={"true" if args.loops else "false"}', 'rviz:=false']
    job = subprocess.Popen(command, env=os.environ | {'ROS_DOMAIN_ID': os.environ.get('ROS_DOMAIN_ID', '0')}, start_new_session=True)
    next_look = time.monotonic()
    while job.poll() is None and (not args.loops or listener.laps <= args.loops):
        rclpy.spin_once(listener, timeout_sec=0.05)
        if time.monotonic() > next_look and listener.odometry:
            sizes.append(memory())
            next_look += 2.0
    if job.poll() is None:
        job.send_signal(signal.SIGINT)
    status = job.wait()
    report(listener, sizes, status, args)


def report(listener: Listener, sizes: list[dict[str, float]], status: int, args: argparse.Namespace) -> None:
    """The figures on the terminal and as metrics.json."""
    came: dict[int, float] = {}
    latency = []
    events = sorted([(t, 0, s) for s, t in listener.images] + [(t, 1, s) for s, t, _ in listener.odometry])
    for when, kind, stamp in events:
        if kind == 0:
            came[stamp] = when
        elif stamp in came:
            latency.append(1e3 * (when - came[stamp]))
    arrivals = [t for _, t, _ in listener.odometry]
    figures: dict[str, object] = {
        'images': len(listener.images), 'odometry': len(listener.odometry), 'rate_hz': (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]),
        'latency_ms_median': float(np.median(latency)), 'latency_ms_p95': float(np.percentile(latency, 95)), 'wraps': listener.laps, 'exit_status': status,
        'memory_mb_first': sizes[0], 'memory_mb_last': sizes[-1]}
    if args.reference and not listener.laps:
        track = Trajectory(np.array([s for s, _, _ in listener.odometry]), np.array([T for _, _, T in listener.odometry]))
        score = scoring.tracking(track, read_trajectory(args.reference), Scale.METRIC)
        figures |= {'rpe_1s_trans_rmse': score.rpe_1s_trans_rmse, 'ate_rmse': score.ate_rmse}
    with files.whole(args.out / 'metrics.json') as partial:
        partial.write_text(json.dumps(figures, indent=2) + '\n')
    print(json.dumps(figures, indent=2))


if __name__ == '__main__':
    main()
