"""Global-Local live while a learner beside it hands it new weights: its rate, and the pairs that get no depth when weights are exchanged.

    ./rosenv python benchmarks/online_learning.py [--bag FOLDER] [--loops 3] [--rate 0.5] [--variant pose_aware] [--out FOLDER]

A swap is what happens within two seconds of new weights on their topic. `lost_at_swap` is, for each, the longest run of pairs in that time that flow came for and
depth did not; `lost_otherwise_p95` the same of stretches as long in which nothing was exchanged: a busy machine drops pairs at any time, and a camera at rest has no depth.
"""

from __future__ import annotations

import argparse
import os
import time
from itertools import groupby
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from live import Listener, play, tell
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import UInt8MultiArray

from depth_ros.ros import codecs
from depth_ros.ros.managed_node import LATCHED_QOS, SENSOR_QOS

WINDOW = 2.0        # [s] after new weights


class LearningListener(Listener):
    """Notes pairs and weights as well, and the learner's last figures."""

    def __init__(self) -> None:
        super().__init__(Image, '/global_local/depth/image')
        self.pairs: list[tuple[int, float]] = []
        self.weights: list[float] = []
        self.figures: dict[str, str] = {}
        self.create_subscription(CameraInfo, '/flow/camera_info', lambda m: self.pairs.append((codecs.stamp_ns(m.header.stamp), time.monotonic())), SENSOR_QOS)
        self.create_subscription(UInt8MultiArray, '/online_learning/weights', lambda _: self.weights.append(time.monotonic()), LATCHED_QOS, raw=True)
        self.create_subscription(DiagnosticArray, '/online_learning/metrics', lambda m: self.figures.update({v.key: v.value for v in m.status[0].values}), 10)

    def longest_run_without_depth(self, begin: float, end: float) -> int:
        """Of the pairs that came in that time."""
        results = [(stamp, when) for stamp, when, _ in self.results if begin - 1.0 <= when <= end + 2.0]
        missed = [not any(stamp == s for s, _ in results) for stamp, when in self.pairs if begin <= when < end]
        return max((len(list(run)) for lost, run in groupby(missed) if lost), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get('DEPTH_ROS_DATA', Path(__file__).resolve().parents[2] / 'shared/data'))
    parser.add_argument('--bag', default=str(data / 'kitchen'), help='what to replay')
    parser.add_argument('--loops', type=int, default=3, help='wraps to wait for')
    parser.add_argument('--rate', type=float, default=0.5, help='speed of the replay')
    parser.add_argument('--variant', default='pose_aware')
    parser.add_argument('--out', type=Path, default=Path('evaluation/online_learning_live'))
    args = parser.parse_args()
    rclpy.init()
    listener = LearningListener()
    figures = play(listener, 'online_learning.launch.py', args.bag, args.loops, f'variant:={args.variant}', f'rate:={args.rate}', 'resume:=false')
    begin, end = listener.results[0][1], listener.results[-1][1]
    swaps = [t for t in listener.weights if begin <= t <= end - WINDOW]
    others = [t for t in np.arange(begin, end - WINDOW, WINDOW) if all(abs(t - s) > WINDOW for s in swaps)]
    at_swap, otherwise = ([listener.longest_run_without_depth(t, t + WINDOW) for t in times] for times in (swaps, others))
    seen = [t for _, t in listener.pairs if begin <= t <= end]
    figures |= {'pairs_hz': len(seen) / (end - begin), 'swaps': len(swaps), 'lost_at_swap': at_swap, 'lost_at_swap_median': float(np.median(at_swap)) if at_swap else None,
                'lost_otherwise_median': float(np.median(otherwise)) if otherwise else None, 'lost_otherwise_p95': float(np.percentile(otherwise, 95)) if otherwise else None,
                'learner': listener.figures}
    tell(figures, args.out)


if __name__ == '__main__':
    main()
