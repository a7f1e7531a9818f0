"""The live graph on a recording: rate and latency of odometry, images lost, memory and processor time of each node, and the trajectory's error.

    ./rosenv python benchmarks/live.py BAG [--loops N] [--reference FILE] [--viewer] [--launch NAME:=VALUE] [--out FOLDER]

It launches deepv2d_slam on BAG and listens. Latency is from the arrival of an image's camera_info at the listener to that of its odometry; `dropped` are
the images that no odometry came for, `lost` is odometry whose covariance says that its pose is not known. With --loops the bag is replayed until the
stamps have jumped back N times; memory at the first and at the last look then tells whether anything grows. With --viewer it also takes the path, the
points and the map, as RViz does: the node makes them only for who listens. `cores_worth` tells how many times the work of one process the machine does with
one on each core, once the graph has ended: two virtual cores may be two threads of one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rclpy
from nav_msgs.msg import Odometry, Path as PathMessage
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, PointCloud2
from timing import worth_of_cores

from depth_ros import files
from depth_ros.apps import scoring
from depth_ros.frames import Scale
from depth_ros.learning.trajectory import Trajectory, read_trajectory
from depth_ros.ros import codecs, poses
from depth_ros.ros.executables import make_executor
from depth_ros.ros.managed_node import LATCHED_QOS, SENSOR_QOS
from depth_ros.ros.odometry_outputs import UNKNOWN_VARIANCE
from depth_ros.ros.online_recording import processor_time

NODES = ('player', 'flow', 'sparse_depth', 'deepv2d', 'global_local', 'online_learning')
LOOK_EVERY = 2.0    # [s]


class Listener(Node):
    """Notes when each image came, and when the message of its stamp on a topic, with what `value` makes of it."""

    def __init__(self, kind: type, topic: str, value: Callable[[Any], Any] = lambda _: None) -> None:
        super().__init__('live_benchmark')
        self.images: list[tuple[int, float]] = []
        self.laps = 0       # how often the stamps jumped back
        self.results: list[tuple[int, float, Any]] = []
        self.create_subscription(CameraInfo, '/camera/rgb/camera_info', self._note_image, SENSOR_QOS)
        self.create_subscription(kind, topic, lambda m: self.results.append((codecs.stamp_ns(m.header.stamp), time.monotonic(), value(m))), 50)

    def view(self) -> dict[str, int]:
        """Take what RViz shows, too; how many messages of each topic have come."""
        counts: dict[str, int] = {}
        for kind, topic, qos in ((PathMessage, 'path', 5), (PointCloud2, 'points', 5), (PointCloud2, 'map', LATCHED_QOS)):
            counts[topic] = 0
            # Raw: taking messages apart here would delay the odometry that is timed.
            self.create_subscription(kind, f'/deepv2d/{topic}', lambda _, topic=topic: counts.update({topic: counts[topic] + 1}), qos, raw=True)
        return counts

    def _note_image(self, info: CameraInfo) -> None:
        stamp = codecs.stamp_ns(info.header.stamp)
        self.laps += bool(self.images) and stamp < self.images[-1][0]
        self.images.append((stamp, time.monotonic()))

    def latencies(self) -> list[float]:
        """Milliseconds from each image to its result."""
        came: dict[int, float] = {}
        found = []
        for when, kind, stamp in sorted([(t, 0, s) for s, t in self.images] + [(t, 1, s) for s, t, _ in self.results]):
            if kind == 0:
                came[stamp] = when
            elif stamp in came:
                found.append(1e3 * (when - came[stamp]))
        return found


class Usage(NamedTuple):
    """Of one node."""

    memory: float       # [MB] of its own; what it shares with others through Fast DDS is bounded by the segments, and not its own
    processor: float    # [s] on any core, so far


def usage(launch: int) -> dict[str, Usage]:
    """What each node takes that a launch, of this process id, has started."""
    found = {}
    for child in subprocess.run(['ps', '--ppid', str(launch), '-o', 'pid='], capture_output=True, text=True).stdout.split():
        try:
            command, status = (Path(f'/proc/{child}/{name}').read_text() for name in ('cmdline', 'status'))
            seconds = processor_time(child)
        except OSError:     # it has ended
            continue
        own = next((int(line.split()[1]) for line in status.splitlines() if line.startswith('RssAnon:')), None)
        for name in NODES:
            if own is not None and f'__node:={name}\0' in command:
                found[name] = Usage(own / 1024, seconds)
    return found


def play(listener: Listener, launch_file: str, bag: str, loops: int = 0, *arguments: str, minutes: float = 0.0,
         look: Callable[[dict[str, float]], None] = lambda _: None) -> dict[str, object]:
    """Launch a replay, listen until it ends, has wrapped so often or has played for so many minutes, and tell the figures that every live graph has.

    `look` is called with the memory [MB] of each node whenever that is looked at.
    """
    sizes: list[dict[str, float]] = []
    worked: list[tuple[float, dict[str, float]]] = []
    command = ['ros2', 'launch', 'depth_ros', launch_file, f'bag:={bag}', f'loop:={"true" if loops or minutes else "false"}', 'rviz:=false', *arguments]
    job = subprocess.Popen(command, env=os.environ | {'ROS_DOMAIN_ID': os.environ.get('ROS_DOMAIN_ID', '0')}, start_new_session=True)
    executor = make_executor()
    executor.add_node(listener)
    next_look = time.monotonic()
    try:
        while job.poll() is None and (not loops or listener.laps < loops) and (not minutes or _played(listener) < 60 * minutes):
            executor.spin_once(timeout_sec=0.05)
            if time.monotonic() > next_look and listener.results:
                seen = usage(job.pid)
                if seen:        # empty once the nodes have ended
                    sizes.append({name: node.memory for name, node in seen.items()})
                    worked.append((time.monotonic(), {name: node.processor for name, node in seen.items()}))
                    look(sizes[-1])
                next_look += LOOK_EVERY
    finally:
        if job.poll() is None:
            job.send_signal(signal.SIGINT)
    status = job.wait()
    if len(listener.results) < 2:
        raise SystemExit(f'{launch_file} gave {len(listener.results)} results on {len(listener.images)} images; its exit status is {status}')
    arrivals, latency = [t for _, t, _ in listener.results], listener.latencies()
    return {'images': len(listener.images), 'results': len(arrivals), 'dropped': len(listener.images) - len(arrivals),
            'rate_hz': (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]),
            'latency_ms_median': float(np.median(latency)), 'latency_ms_p95': float(np.percentile(latency, 95)), 'wraps': listener.laps, 'exit_status': status,
            'load': os.getloadavg()[0], 'cores_worth': worth_of_cores(), 'cores': _cores(worked), 'memory_mb_first': sizes[0], 'memory_mb_last': sizes[-1]}


def _cores(worked: list[tuple[float, dict[str, float]]]) -> dict[str, float]:
    """How many cores each node had in the mean, of the processor's time [s] that it had had by several moments [s]."""
    (begin, before), (end, after) = worked[0], worked[-1]
    return {name: round((seconds - before[name]) / (end - begin), 3) for name, seconds in after.items() if name in before and end > begin}


def _played(listener: Listener) -> float:
    """Time since the first image [s]."""
    return time.monotonic() - listener.images[0][1] if listener.images else 0.0


def tell(figures: dict[str, object], out: Path) -> None:
    """The figures on the terminal and as metrics.json."""
    with files.whole(out / 'metrics.json') as partial:
        partial.write_text(json.dumps(figures, indent=2) + '\n')
    print(json.dumps(figures, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('bag', help='what to replay')
    parser.add_argument('--loops', type=int, default=0, help='wraps to wait for; 0 plays the bag once')
    parser.add_argument('--reference', type=Path, help='reference trajectory of the recording')
    parser.add_argument('--viewer', action='store_true', help='take path, points and map as well, as RViz does')
    parser.add_argument('--launch', action='append', default=[], metavar='NAME:=VALUE', help='an argument for the launch file, such as params_file:=FILE')
    parser.add_argument('--out', type=Path, default=Path('evaluation/live'))
    args = parser.parse_args()
    rclpy.init()
    listener = Listener(Odometry, '/deepv2d/odometry', lambda m: (poses.matrix(m.pose.pose), m.pose.covariance[0] >= UNKNOWN_VARIANCE))
    viewed = listener.view() if args.viewer else {}
    figures = play(listener, 'deepv2d_slam.launch.py', args.bag, args.loops, *args.launch)
    figures |= {f'{topic}_messages': count for topic, count in viewed.items()}
    figures['lost'] = int(sum(lost for _, _, (_, lost) in listener.results))
    if args.reference and not listener.laps:
        track = Trajectory(np.array([s for s, _, _ in listener.results]), np.array([T for _, _, (T, _) in listener.results]))
        score = scoring.tracking(track, read_trajectory(args.reference), Scale.METRIC)
        figures |= {'rpe_1s_trans_rmse': score.rpe_1s_trans_rmse, 'ate_rmse': score.ate_rmse}
    tell(figures, args.out)


if __name__ == '__main__':
    main()
