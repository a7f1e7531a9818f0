"""DeepV2D: time of each part of its networks, on a CPU as it comes, with channels last, and as an exported graph; on an accelerator against its arithmetic limit.

    ./rosenv python benchmarks/deepv2d.py [--config live|paper] [--width 320 --height 240] [--frames 5] [--threads 1 2] [--precision tf32] [--peak TFLOPS] [--out FOLDER]

`live` is timed on the CPU against what a robot allows: 400 ms for the depth of a keyframe, 100 ms for the pose of a frame. `paper` is timed on whatever accelerator
there is, at 480 x 640 with 5 frames, a round being one of motion and one of depth: 440 ms in the paper (Teed & Deng, "DeepV2D", ICLR 2020, appendix B), at most 44 here.
Without an accelerator only its operations are counted, at full size on tensors without values (two for a multiplication and an addition; convolutions and matrix
products, which sampling and norms are small beside). The arithmetic limit is what these would take at the peak rate.
Parts take turns. Weights are untrained: they do not change what anything costs.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from timing import in_turns, told
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from depth_ros import files
from depth_ros.apps import report
from depth_ros.engines.flow import FlowEngine
from depth_ros.engines.inference import ExportedModel, InferenceConfig
from depth_ros.engines.known_flows import KnownFlows, along
from depth_ros.engines.learned_depth import for_cpu
from depth_ros.frames import CameraFrame
from depth_ros.geometry.pinhole import pixel_grid
from depth_ros.models.deepv2d import LIVE, PAPER, DeepV2D
from depth_ros.models.deepv2d_motion import MeasuredFlow, align, keyframe_edges

CONFIGS = {'live': (LIVE, 320, 240), 'paper': (PAPER, 640, 480)}
PEAKS = {'fp32': 66.9, 'tf32': 494.7, 'bf16': 989.5, 'fp16': 989.5}                                         # [TFLOPS] of an H200, dense
DTYPES = {'bf16': torch.bfloat16, 'fp16': torch.float16}
STRIDE, ITERATIONS = 4, 3
FLOW, FLOWS, POSE, DEPTH = 'measured flow, a view', 'measured flow, all views', 'pose of a frame', 'depth of a keyframe'
LIMITS = {'live': {DEPTH: 400.0, POSE: 100.0}, 'paper': {'round': 44.0}}      # [ms]
MATCHING = 'depth.stem', 'depth.matchers', 'depth.heads', 'depth.prior', 'depth.excite', 'depth.correction', 'depth.convex'        # the 3D network and what it ends in
_FLOW = FlowEngine()        # as tracking and learned depth have it
CONVOLUTIONS = 'motion.trunk', 'motion.embed', 'motion.flow', 'depth.trunk', 'depth.hourglasses', 'depth.embed', *MATCHING


@dataclass
class Inputs:
    """Images and a motion of a few frames, and what each part gives the next."""

    images: Tensor          # (N, 3, H, W)
    K: Tensor               # (1, 3, 3) [px of the maps]
    T: Tensor               # (1, N, 4, 4)
    depth: Tensor           # (1, N, h, w) [m]
    motion: Tensor          # (1, N, C, h, w)
    stereo: Tensor          # (1, N, C, h, w)
    measured: MeasuredFlow | None       # from frame 0 to the others, for modules that see it

    @staticmethod
    def of(network: DeepV2D, frames: int, width: int, height: int, device: str) -> Inputs:
        """Frames a few centimetres apart."""
        h, w = -(-height // STRIDE), -(-width // STRIDE)
        K = torch.tensor([[[0.8 * w, 0.0, (w - 1) / 2], [0.0, 0.8 * w, (h - 1) / 2], [0.0, 0.0, 1.0]]])
        T = torch.eye(4).repeat(1, frames, 1, 1)
        T[0, :, 0, 3] = 0.05 * torch.arange(frames)
        images, depth = torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0)), torch.full((1, frames, h, w), 2.0)
        images, K, T, depth = (x.to(device) for x in (images, K, T, depth))
        flow = MeasuredFlow(pixel_grid(h, w).to(device).expand(1, frames - 1, h, w, 2), torch.zeros(1, frames - 1, h, w, device=device)) if network.motion.sees_flow or network.depth.sees_flow else None
        return Inputs(images, K, T, depth, network.motion.features(images)[None], network.depth.features(images)[None], flow)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return tuple(self.images.shape[-2:])

    def pair(self, sees_flow: bool) -> tuple[Tensor, ...]:
        """What the residual flow of a view is found from."""
        features = self.motion[:, 0], self.motion[:, 0]         # the time is the same
        return (*features, self.measured.pixels[:, 0].movedim(-1, 1), self.measured.error[:, 0]) if sees_flow else features

    def measure(self, views: int) -> object:
        """The flow from frame 0 to so many views, as learned depth and a tracker have it measured; what the images show costs it nothing."""
        key, *others = (CameraFrame(stamp, '', (255 * image.permute(1, 2, 0)).byte().contiguous().numpy(), np.eye(3)) for stamp, image in enumerate(self.images[:1 + views]))
        known = KnownFlows(_FLOW, views)
        return along([known.between(key, view) for view in others])


class Features(nn.Module):
    """The features of a module as a module, to export."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, h, w)."""
        return self.module.features(images)


class Matching(nn.Module):
    """What of the 3D network comes after the views have met, as a module, to export; the volume before it stays torch's."""

    def __init__(self, network: DeepV2D) -> None:
        super().__init__()
        self.matchers, self.heads = network.depth.matchers, network.depth.heads

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, D, h, w) of (B, C, D, h, w)."""
        for matcher, head in zip(self.matchers, self.heads):
            x = matcher(x)
            logits = head(x)
        return logits


def met(network: DeepV2D, x: Inputs) -> Tensor:
    """Something of the size of the views' mean, (1, C, D, h, w)."""
    return torch.rand(1, network.config.volume_width, network.config.planes, *x.stereo.shape[-2:], device=x.images.device)


def update(motion: nn.Module, x: Inputs, views: int) -> object:
    """Poses of so many views by the depth of the keyframe and a motion module, or what stands for its residual flow."""
    flow = x.measured and x.measured.pick(slice(views))
    return align(motion, x.motion[:, :1 + views], x.depth[:, :1 + views], x.K, x.T[:, :1 + views], keyframe_edges(1 + views), iterations=ITERATIONS, measured=flow)


def measured(network: DeepV2D, x: Inputs) -> object:
    """Depth of the keyframe by the poses of all views."""
    return network.depth(x.stereo, x.K, x.T[:, 1:], network.planes(x.K), x.size, measured=x.measured)


def calls_of(network: DeepV2D, x: Inputs) -> dict[str, Callable[[], object]]:
    """Every part, and what a live graph waits for, as torch runs it."""
    views = len(x.images) - 1
    matching, volume = Matching(network), met(network, x)
    parts = {'motion features, a frame': lambda: network.motion.features(x.images[:1]), 'depth features, a frame': lambda: network.depth.features(x.images[:1]),
             'residual flow, a view': lambda: network.motion(*x.pair(network.motion.sees_flow)), 'motion update, a view': lambda: update(network.motion, x, 1),
             f'motion update, {views} views': lambda: update(network.motion, x, views), 'hourglasses and heads': lambda: matching(volume),
             'volume and 3D network': lambda: measured(network, x)}
    of_pose = parts['motion features, a frame'], parts['motion update, a view']
    if network.motion.sees_flow:
        parts[FLOW] = lambda: x.measure(1)
        of_pose = parts[FLOW], *of_pose
    of_depth = parts['depth features, a frame'], parts['volume and 3D network']
    if network.depth.sees_flow:
        parts[FLOWS] = lambda: x.measure(views)
        of_depth = parts[FLOWS], *of_depth
    return parts | {POSE: _all(*of_pose), DEPTH: _all(*of_depth)}


def graphs_of(network: DeepV2D, x: Inputs, threads: int) -> dict[str, Callable[[], object]]:
    """The same with exported graphs, as far as parts can be; residual flow with its median, alignment and volume stay torch's."""
    examples = {'motion features, a frame': (Features(network.motion), (x.images[:1],)), 'depth features, a frame': (Features(network.depth), (x.images[:1],)),
                'hourglasses and heads': (Matching(network), (met(network, x),))}
    graphs = {name: ExportedModel(module, example, InferenceConfig('onnxruntime', threads)) for name, (module, example) in examples.items()}
    return {name: lambda name=name: graphs[name](*examples[name][1]) for name, graph in graphs.items() if graph.backend == 'onnxruntime'}


def _all(*calls: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        for call in calls:
            call()
    return run


def with_threads(call: Callable[[], object], threads: int) -> Callable[[], object]:
    """The call, with so many of torch's threads."""
    def run() -> None:
        torch.set_num_threads(threads)
        call()
    return run


def submodules(network: DeepV2D, names: Iterable[str]) -> Iterator[nn.Module]:
    """Those of these names that the network has, one by one where a name is a list's."""
    known = dict(network.named_modules())
    for name in names:
        module = known.get(name)
        yield from module if isinstance(module, nn.ModuleList) else [module] if module is not None else []


@contextmanager
def share_of(network: DeepV2D, names: Iterable[str], now: Callable[[], float]) -> Iterator[list[float]]:
    """What submodules take of anything that `now` tells the amount of so far; a number for each of their calls inside."""
    begun, taken = [], []
    handles = [handle for module in submodules(network, names) for handle in (
        module.register_forward_pre_hook(lambda *_: begun.append(now())), module.register_forward_hook(lambda *_: taken.append(now() - begun.pop())))]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def lowered(network: DeepV2D, precision: str, device: str) -> DeepV2D:
    """The network with its convolutions in another precision; geometry stays in float32."""
    torch.backends.cudnn.allow_tf32 = precision != 'fp32'
    if precision in DTYPES:
        for module in submodules(network, CONVOLUTIONS):
            module.forward = _in_precision(module.forward, DTYPES[precision], device)
    return network


def _in_precision(forward: Callable[..., object], dtype: torch.dtype, device: str) -> Callable[..., object]:
    def run(*inputs: Tensor) -> object:
        with torch.autocast(device, dtype):
            found = forward(*inputs)
        return tuple(f.float() for f in found) if isinstance(found, tuple) else found.float()
    return run


def operations(network: DeepV2D, frames: int, width: int, height: int) -> dict[str, float]:
    """Operations [GFLOP] of each part for all frames and a round, counted on tensors without values."""
    network = copy.deepcopy(network).to('meta')
    with FlopCounterMode(display=False) as counter:
        x = Inputs.of(network, 2, width, height, 'meta')
        x = replace(x, images=x.images[:1], stereo=x.stereo[:, :1], T=x.T[:, :1])       # the features of one count
        each, views = {}, frames - 1
        for name, call in {'motion features': lambda: network.motion.features(x.images), 'depth features': lambda: network.depth.features(x.images),
                           'residual flow': lambda: network.motion(*x.pair(network.motion.sees_flow))}.items():
            before = counter.get_total_flops()
            call()
            each[name] = counter.get_total_flops() - before
        flow = x.measured and MeasuredFlow(x.measured.pixels.expand(-1, views, -1, -1, -1), x.measured.error.expand(-1, views, -1, -1))
        x = replace(x, stereo=x.stereo.expand(-1, frames, -1, -1, -1), T=x.T.expand(-1, frames, -1, -1), measured=flow)
        before = counter.get_total_flops()
        with share_of(network, MATCHING, counter.get_total_flops) as matching:
            measured(network, x)
        depth = counter.get_total_flops() - before
    found = {'features': frames * (each['motion features'] + each['depth features']), 'residual flow': views * ITERATIONS * each['residual flow'],
             'volume': depth - sum(matching), '3D network': sum(matching)}
    return {name: 1e-9 * flops for name, flops in found.items()} | {'round': 1e-9 * (found['residual flow'] + depth)}


def on_cpu(args: argparse.Namespace, network: DeepV2D) -> dict[str, dict[str, dict[str, float]]]:
    """Times by variant and part."""
    width, height = args.width, args.height
    x = Inputs.of(network, args.frames, width, height, 'cpu')
    last = for_cpu(copy.deepcopy(network))
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for threads in args.threads:
        variants = {'as it comes': calls_of(network, x), 'channels last': calls_of(last, x), 'graph': graphs_of(network, x, threads)}
        for variant, parts in variants.items():
            calls |= {(f'{variant}, {threads}', part): with_threads(call, threads) for part, call in parts.items()}
    times = in_turns(calls, args.rounds)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (variant, part), milliseconds in times.items():
        found.setdefault(variant, {})[part] = told(milliseconds)
    for threads in args.threads:
        torch.set_num_threads(threads)
        found[f'channels last, {threads}'] |= _volume_and_network(last, x, args.rounds, lambda: 1e3 * time.perf_counter())
    return found


def _volume_and_network(network: DeepV2D, x: Inputs, rounds: int, now: Callable[[], float]) -> dict[str, dict[str, float]]:
    """The two halves of the depth of a keyframe."""
    whole, halves = [], []
    for _ in range(rounds):
        with share_of(network, MATCHING, now) as matching:
            before = now()
            measured(network, x)
            whole.append(now() - before)
        halves.append(sum(matching))
    return {'volume': told(np.array(whole) - halves), '3D network': told(np.array(halves))}


def on_accelerator(args: argparse.Namespace, network: DeepV2D) -> dict[str, dict[str, dict[str, float]]]:
    """The same on an accelerator, for all frames at once."""
    network = lowered(for_cpu(network).cuda(), args.precision, 'cuda')     # channels last is what tensor cores take, too
    x = Inputs.of(network, args.frames, args.width, args.height, 'cuda')
    views = args.frames - 1

    def synchronised(call: Callable[[], object]) -> Callable[[], object]:
        return _all(call, torch.cuda.synchronize)

    def now() -> float:
        torch.cuda.synchronize()
        return 1e3 * time.perf_counter()

    parts = {'features': _all(lambda: network.motion.features(x.images), lambda: network.depth.features(x.images)),
             'motion update': lambda: update(network.motion, x, views), 'volume and 3D network': lambda: measured(network, x)}
    parts['round'] = _all(parts['motion update'], parts['volume and 3D network'])
    found = {name: told(milliseconds) for name, milliseconds in in_turns({name: synchronised(call) for name, call in parts.items()}, args.rounds).items()}
    flow = []
    for _ in range(args.rounds):
        with share_of(network, ('motion.flow',), now) as taken:
            update(network.motion, x, views)
        flow.append(sum(taken))
    return {f'{torch.cuda.get_device_name()}, {args.precision}': found | {'residual flow': told(np.array(flow))} | _volume_and_network(network, x, args.rounds, now)}


def limits(args: argparse.Namespace, times: dict[str, dict[str, dict[str, float]]], counted: dict[str, float]) -> dict[str, object]:
    """How far the best variant is from what is asked for, and from what the arithmetic alone would take."""
    told_: dict[str, object] = {f'{name} [GFLOP]': value for name, value in counted.items()}
    if args.config == 'paper':
        told_ |= {'peak [TFLOPS]': args.peak, 'arithmetic limit of a round [ms]': counted['round'] / args.peak}
    for part, limit in LIMITS[args.config].items():
        best = min(((parts[part]['median'], variant) for variant, parts in times.items() if part in parts), default=None)
        if best is not None:
            told_ |= {f'{part} [ms]': best[0], f'{part}, limit [ms]': limit, f'{part}, best variant': best[1]}
            if part in counted:
                told_ |= {f'{part}, reached [TFLOPS]': counted[part] / best[0], f'{part}, times the arithmetic limit': best[0] * args.peak / counted[part]}
    return told_


def show(times: dict[str, dict[str, dict[str, float]]], out: Path) -> None:
    """The table of times on the terminal, and as a plot."""
    parts = list(dict.fromkeys(part for found in times.values() for part in found))
    width = max(map(len, parts))
    print('median (p95) [ms]'.ljust(width) + ''.join(f'{variant:>24}' for variant in times))
    for part in parts:
        cells = (f'{found[part]["median"]:.1f} ({found[part]["p95"]:.1f})' if part in found else '-' for found in times.values())
        print(part.ljust(width) + ''.join(f'{cell:>24}' for cell in cells))
    figure, axes = plt.subplots(figsize=(9, 1.0 + 0.12 * len(parts) * (1 + len(times))), constrained_layout=True)
    height = 0.8 / len(times)
    for row, (variant, found) in enumerate(times.items()):
        places = [parts.index(part) + row * height for part in found]
        median, p95 = (np.array([one[key] for one in found.values()]) for key in ('median', 'p95'))
        axes.barh(places, median, height, xerr=[np.zeros(len(median)), p95 - median], label=variant)
    axes.set(yticks=np.arange(len(parts)) + 0.4 - height / 2, yticklabels=parts, xlabel='median, and up to the 95th percentile [ms]')
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    with files.whole(out / 'deepv2d.png') as partial:
        figure.savefig(partial, dpi=110)
    plt.close(figure)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--config', choices=tuple(CONFIGS), default='live')
    parser.add_argument('--width', type=int, help='[px] (default: 320 for live, 640 for paper)')
    parser.add_argument('--height', type=int, help='[px] (default: 240 for live, 480 for paper)')
    parser.add_argument('--frames', type=int, default=5, help='the keyframe and the views (default: %(default)s)')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2], help='on the CPU (default: 1 2)')
    parser.add_argument('--rounds', type=int, default=30, help='times that every part is run (default: %(default)s)')
    parser.add_argument('--precision', choices=tuple(PEAKS), default='tf32', help='of convolutions on an accelerator (default: %(default)s)')
    parser.add_argument('--peak', type=float, help='[TFLOPS] of the accelerator (default: what an H200 has at that precision)')
    parser.add_argument('--time', choices=('auto', 'always', 'never'), default='auto', help='auto: time paper on an accelerator only, where there is none count its operations')
    parser.add_argument('--out', type=Path, default=Path('evaluation/deepv2d_time'))
    args = parser.parse_args()
    config, width, height = CONFIGS[args.config]
    args.width, args.height, args.peak = args.width or width, args.height or height, args.peak or PEAKS[args.precision]
    torch.manual_seed(0)
    network = DeepV2D(config).eval()
    counted = operations(network, args.frames, args.width, args.height)
    times: dict[str, dict[str, dict[str, float]]] = {}
    accelerated = args.config == 'paper' and torch.cuda.is_available()
    if args.time == 'always' or args.time == 'auto' and (accelerated or args.config == 'live'):
        times = on_accelerator(args, network) if accelerated else on_cpu(args, network)
        show(times, args.out)
    size = {'config': args.config, 'width': args.width, 'height': args.height, 'frames': args.frames}
    report.write(args.out, size | limits(args, times, counted), {'times_ms': times})


if __name__ == '__main__':
    main()
