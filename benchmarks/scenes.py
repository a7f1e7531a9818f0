"""How fast the synthetic scenes are rendered, how their flow errs, and what they look like.

    ./rosenv python benchmarks/scenes.py [--processes 2] [--device cuda --together 24] [--sequence FOLDER --poses FILE] [--out FOLDER]

Pairs a second are given by the clock and by the processors' time, for machines are shared. With a sequence, its pairs are compared with the synthetic ones:
flow error, parallax and spread of depth should be alike. Writes scenes.json and a contact sheet of image 1, image 2, inverse depth, flow, exact flow and what is visible.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from depth_ros import files
from depth_ros.apps import options
from depth_ros.apps.train import flow_function
from depth_ros.learning.pairs import FlowFunction, fill, record_type
from depth_ros.learning.scenes import SceneData, ScenePair, scene_pairs
from depth_ros.learning.sequence_pairs import SequenceData, sequence_pairs

SHEET = 16          # pairs on the contact sheet
STRIDE = 7          # from one of them to the next


def timed(data: SceneData, shard: int, count: int, device: str, together: int) -> tuple[float, float]:
    """Seconds by the clock and by the processor for so many pairs, after the first ones, which paint the surfaces."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    source = scene_pairs(data, 'test', shard, device, together)
    next(source)
    clock, processor = time.perf_counter(), time.process_time()
    for _ in zip(range(count), source):
        pass
    return time.perf_counter() - clock, time.process_time() - processor


def speed(data: SceneData, processes: int, count: int, device: str, together: int) -> dict[str, float]:
    """Pairs a second of that many processes side by side, and milliseconds of one processor a pair."""
    with multiprocessing.get_context('spawn').Pool(processes) as pool:
        times = pool.starmap(timed, [(data, shard, count, device, together) for shard in range(processes)], chunksize=1)
    return {'processes': processes, 'pairs_a_second': sum(count / clock for clock, _ in times),
            'processor_ms_a_pair': 1e3 * sum(p for _, p in times) / (count * processes)}


def records(data: SceneData | SequenceData, pairs: list[ScenePair], flow: FlowFunction) -> np.ndarray:
    """The pairs as they are stored."""
    found = np.zeros(len(pairs), record_type(data.height, data.width))
    for row, pair in enumerate(pairs):
        fill(found[row:row + 1], pair, flow)
    return found


def likeness(pairs: list[ScenePair], found: np.ndarray) -> dict[str, list[float]]:
    """The 10th, 50th and 90th percentile over the pairs of what tells one set of data from another."""
    rows = []
    for pair, record in zip(pairs, found):
        known = record['valid'] & record['visible']
        error = np.linalg.norm(record['flow'].astype(np.float32) - record['exact_flow'], axis=-1)[known]
        inverse = record['inverse_depth'][record['valid']].astype(np.float32)
        rows.append({'baseline_m': np.linalg.norm(pair.T_2_1[:3, 3]), 'median_depth_m': np.median(pair.depth[pair.valid]),
                     'median_inverse_depth': np.median(inverse), 'spread_of_log_depth': np.log(inverse).std(),
                     'median_flow_error_px': np.median(error), 'mean_flow_error_px': error.mean(),
                     'mean_flow_px': np.linalg.norm(record['exact_flow'].astype(np.float32), axis=-1)[record['valid']].mean(), 'seen_by_both': record['visible'].mean(),
                     'contrast': record['image1'].std() / 255.0})
    return {key: np.percentile([row[key] for row in rows], [10, 50, 90]).round(4).tolist() for key in rows[0]}


def contact_sheet(found: np.ndarray) -> np.ndarray:
    """Two columns of pairs (H, W, 3) uint8 BGR."""
    rows = [np.hstack([r['image1'][..., ::-1], r['image2'][..., ::-1], _depth(r), _flow(r['flow']), _flow(r['exact_flow']), _grey(r['visible'])]) for r in found]
    half = -(-len(rows) // 2)
    return np.hstack([np.vstack(rows[:half]), np.vstack(rows[half:] + [np.zeros_like(rows[0])] * (2 * half - len(rows)))])


def _depth(record: np.ndarray) -> np.ndarray:
    inverse = np.where(record['valid'], record['inverse_depth'], np.nan).astype(np.float32)
    low, high = np.log(np.nanpercentile(inverse, [2, 98]))
    shade = np.nan_to_num(255.0 * (np.log(inverse) - low) / max(high - low, 1e-6))
    return cv2.applyColorMap(np.clip(shade, 0, 255).astype(np.uint8), cv2.COLORMAP_TURBO) * record['valid'][..., None]


def _flow(flow: np.ndarray) -> np.ndarray:
    length, angle = cv2.cartToPolar(*np.moveaxis(flow.astype(np.float32), -1, 0), angleInDegrees=True)
    hsv = np.stack([angle / 2.0, np.full_like(length, 255.0), np.clip(length * 2000.0 / flow.shape[1], 0, 255)], -1)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR)


def _grey(mask: np.ndarray) -> np.ndarray:
    return np.repeat(255 * mask.astype(np.uint8)[..., None], 3, axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--processes', type=int, default=2, help='the most that render side by side')
    parser.add_argument('--count', type=int, default=100, help='pairs a process')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--together', type=int, default=1, help='paths that are rendered at once')
    parser.add_argument('--sequence', default='', help='real data to compare with')
    parser.add_argument('--poses', default='', help='its reference poses')
    parser.add_argument('--out', type=Path, default=Path('evaluation/scenes'))
    options.add(parser, SceneData, 'scenes')
    args = parser.parse_args()
    data, flow = options.read(args, SceneData), flow_function('dis')
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    full = replace(data, width=data.flow_width, height=data.flow_height)
    report: dict[str, object] = {'size': [full.width, full.height], 'device': args.device}
    report['speed'] = [speed(full, n, args.count, args.device, args.together) for n in sorted({1, args.processes})]
    pairs = [pair for _, pair in zip(range(SHEET * STRIDE), scene_pairs(data, 'test', 0, args.device, args.together))]
    found = records(data, pairs, flow)
    report['synthetic'] = likeness(pairs, found)
    if args.sequence:
        real = SequenceData(args.sequence, args.poses, every=6, width=data.width, height=data.height, flow_width=data.flow_width, flow_height=data.flow_height)
        recorded = list(sequence_pairs(real))
        report['sequence'] = likeness(recorded, records(real, recorded, flow))
    for key, value in report.items():
        print(key, *(value if key == 'speed' else value.items() if isinstance(value, dict) else [value]), sep='\n  ')
    with files.whole(args.out) as partial_folder:
        partial_folder.mkdir()
        (partial_folder / 'scenes.json').write_text(json.dumps(report, indent=1) + '\n')
        cv2.imwrite(str(partial_folder / 'sheet.png'), contact_sheet(found[::STRIDE]))


if __name__ == '__main__':
    main()
