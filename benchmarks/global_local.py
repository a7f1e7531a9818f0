"""Global-Local live: time a frame of the network and of the engine, and rate and latency of the whole graph from image to depth.

    ./rosenv python benchmarks/global_local.py [--weights FILE] [--variant published] [--bag FOLDER] [--out FOLDER]

Times of the network are medians of calls that take turns, so that what else the machine does weighs on all of them alike: what matters is their ratio.
OpenVINO takes part where it is installed: `./rosenv pip install openvino==2026.4.1`.
Latency is from the arrival of an image's camera_info at a listener to that of its depth; flow is part of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from live import Listener, play, tell
from sensor_msgs.msg import Image
from timing import in_turns

from depth_ros.engines.depth_networks import VARIANTS, NetworkPair, example
from depth_ros.engines.flow import FlowConfig, FlowEngine
from depth_ros.engines.global_local import GlobalLocalEngine, GlobalLocalEngineConfig
from depth_ros.engines.inference import TOLERANCE
from depth_ros.frames import ImagePair
from depth_ros.learning.trajectory import read_trajectory
from depth_ros.learning.tum import open_sequence

ROUNDS = 60
GAP = 10        # frames from the reference to the current image of the engine's pairs


def network_times(args: argparse.Namespace) -> dict[str, float]:
    """The network as each backend runs it, on one thread, and the share of eager torch's time that the graph takes."""
    pair = example((192, 256))
    config = GlobalLocalEngineConfig(variant=args.variant, weights=args.weights)
    networks = {backend: GlobalLocalEngine(replace(config, backend=backend)).networks for backend in ('onnxruntime', 'torch')}
    calls = {f'network_ms_{backend}': lambda one=one: one.run(args.variant, pair) for backend, one in networks.items()}
    graph = networks['onnxruntime'].graph(args.variant)
    if graph and importlib.util.find_spec('openvino') is not None:
        calls['network_ms_openvino'] = openvino_call(graph, pair)
        np.testing.assert_allclose(calls['network_ms_openvino']()[0][0, 0], networks['torch'].run(args.variant, pair)[0], rtol=TOLERANCE)
    times = in_turns(calls, ROUNDS)
    found = {name: float(np.median(milliseconds)) for name, milliseconds in times.items()}
    return {**found, 'network_time_ratio': found['network_ms_onnxruntime'] / found['network_ms_torch']}


def openvino_call(graph: bytes, pair: NetworkPair) -> Callable[[], Any]:
    """The same graph on that pair, as OpenVINO runs it on one thread, in single precision as the others do: where a CPU has bfloat16 it would take that, and err by a hundredth."""
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(io.BytesIO(graph)), 'CPU', {'INFERENCE_NUM_THREADS': 1, 'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'})
    inputs = [part.numpy() for part in pair[:len(compiled.inputs)]]
    return lambda: compiled(inputs)


def engine_times(args: argparse.Namespace) -> dict[str, float]:
    """The engine a frame, and flow beside it, on pairs of the sequence."""
    sequence, poses = open_sequence(args.bag), read_trajectory(args.bag / 'groundtruth.txt')
    engine, flow = GlobalLocalEngine(GlobalLocalEngineConfig(variant=args.variant, weights=args.weights)), FlowEngine(FlowConfig(width=256, height=192, preset='depth'))
    flow_ms, engine_ms = [], []
    for index in range(GAP, len(sequence), 5):
        frames = [sequence[i].resized(256, 192) for i in (index, index - GAP)]
        T = [poses.at(f.stamp) for f in frames]
        if any(t is None for t in T):
            continue
        T_ref_cur = np.linalg.inv(T[1]) @ T[0]
        began = time.perf_counter()
        result = flow.step(ImagePair(*frames))
        flowed = time.perf_counter()
        engine.step(result, T_ref_cur, None, float(np.linalg.norm(T_ref_cur[:3, 3])))
        flow_ms.append(1e3 * (flowed - began))
        engine_ms.append(1e3 * (time.perf_counter() - flowed))
    return {'flow_ms_median': float(np.median(flow_ms)), 'engine_ms_median': float(np.median(engine_ms)), 'engine_ms_p95': float(np.percentile(engine_ms, 95))}


def live(args: argparse.Namespace) -> dict[str, object]:
    """The launched graph on the recording."""
    rclpy.init()
    return play(Listener(Image, '/global_local/depth/image'), 'global_local.launch.py', str(args.bag), 0, f'variant:={args.variant}',
                *([f'weights:={args.weights}'] if args.weights else []))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = Path(os.environ.get('DEPTH_ROS_DATA', Path(__file__).resolve().parents[2] / 'shared/data'))
    parser.add_argument('--bag', type=Path, default=data / 'kitchen', help='a TUM folder with ground truth')
    parser.add_argument('--variant', choices=VARIANTS, default='published')
    parser.add_argument('--weights', default='', help='checkpoint of the variant; empty: the shipped one')
    parser.add_argument('--only', choices=('engine', 'live'), help='half of it')
    parser.add_argument('--out', type=Path, default=Path('evaluation/global_local_live'))
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, object] = {'variant': args.variant, 'cores': len(os.sched_getaffinity(0))}
    if args.only != 'live':
        figures |= network_times(args) | engine_times(args)
    if args.only != 'engine':
        figures |= live(args)
    tell(figures, args.out)


if __name__ == '__main__':
    main()
