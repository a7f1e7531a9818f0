"""`evaluate compare`: train Global-Local and its rivals on the same pairs, score them on the test split, and leave the paper's tables and plots.

Every network gets the same pairs in the same order, the same number of steps and the same rate. Studies and networks that are finished in --out are not
repeated, and one that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from depth_ros import files
from depth_ros.apps import train
from depth_ros.apps.bench import Bench
from depth_ros.apps.studies import STUDIES
from depth_ros.learning import ranks
from depth_ros.learning.pairs import PairData, open_store
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.trainer import Data

_DURATION = """
how long it takes: a step of 16 pairs of 128x96 takes one CPU core 0.3 s (Global-Local), 0.4 s (Small Enc-Dec), 0.7 s (Eigen), 0.9 s (unsupervised), 1.9 s (DispNet)
or 3.5 s (FCRN); at 32x24 0.04 to 0.9 s. `main` trains 8 networks, `density` 14 more, `intrinsics` 2, `ablations` 4, `pose` 3, `flow_tuning` 3, `flow_error` none; each
once for every seed. By these figures 4000 steps of `main` at 128x96 with one seed are some ten hours of one core, of everything thirty. An accelerator is used if there is one.
The pairs are rendered first if they are not in the user's cache: some ten a second.
"""

_TOO_SMALL = 'below 128x96 the encoders of DispNet and the like narrow to 1 x 1, which speaks against them, not for the others'
_SIZES = {'32x24': (128, 96, 4), '64x48': (128, 96, 2), '128x96': (128, 96, 1), '256x192': (256, 192, 1)}      # of the store, and what it is reduced by


def register(tasks: argparse._SubParsersAction) -> None:
    """Add the subcommand to those of `evaluate`."""
    task = tasks.add_parser('compare', help='Global-Local against its rivals, and the studies of its paper', description=__doc__, epilog=_DURATION,
                            formatter_class=argparse.RawDescriptionHelpFormatter)
    task.add_argument('--out', type=Path, default=Path('evaluation/compare'), help='folder for tables, plots and trained networks (default: %(default)s)')
    task.add_argument('--studies', nargs='+', choices=tuple(STUDIES), default=list(STUDIES), help='which ones (default: all)')
    task.add_argument('--steps', type=int, default=4000, help='of every training (default: %(default)s)')
    task.add_argument('--size', choices=tuple(_SIZES), default='128x96', help='of the pairs; ' + _TOO_SMALL + ' (default: %(default)s)')
    task.add_argument('--seeds', type=int, default=1, help='trainings of each network, whose mean is reported (default: %(default)s)')
    task.add_argument('--pairs', type=int, default=PairData.train, help='of the training split (default: %(default)s)')
    task.add_argument('--rate', type=float, default=1e-3, help="Adam's highest learning rate, for every network (default: %(default)s)")
    task.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto', help='where to compute (default: %(default)s)')
    task.add_argument('--threads', type=int, default=1, help='of torch, on the CPU (default: %(default)s)')
    task.set_defaults(score=_compare)


def _compare(args: argparse.Namespace) -> None:
    if args.seeds < 1:
        raise ValueError(f'--seeds: expected at least 1, got {args.seeds}')
    torch.set_num_threads(args.threads)
    width, height, factor = _SIZES[args.size]
    data = {'width': width, 'height': height, 'train': args.pairs}
    common = Recipe(data=data, reduce=factor, steps=args.steps, rate=args.rate, schedule='cosine', warm_up=min(200, args.steps // 10), clip=1.0, best_by='abs_inv',
                    validate_every=max(args.steps // 10, 1), checkpoint_every=max(args.steps // 4, 250), device=args.device, threads=args.threads)
    with ranks.joined(args.device) as joined:
        spec = PairData(**data)
        stores = {split: open_store(spec, split, train.flow_function(spec.flow)) for split in ('train', 'validation', 'test')}
        bench = Bench(Data(stores['train'], stores['validation']), stores['test'], common, args.seeds, args.out, joined)
        for name in args.studies:
            table = STUDIES[name](bench)
            table.note += f' At {args.size}: {_TOO_SMALL}.' if factor > 1 else ''
            table.save(args.out)
            print(table.terminal() + '\n' + table.note + '\n', flush=True)
            _gather(args, len(stores['test']))
    print(f'written to {args.out}')


def _gather(args: argparse.Namespace, test_pairs: int) -> None:
    """README.md with the tables of all studies that are finished."""
    sections = [(args.out / f'{name}.md').read_text() for name in STUDIES if (args.out / f'{name}.md').exists()]
    head = (f'# Comparison\n\n{args.pairs} training pairs and {test_pairs} unseen test pairs of {args.size}, {args.steps} steps of 16, rate {args.rate:g}, '
            f'{args.seeds} seed{"s" if args.seeds > 1 else ""}.\n')
    with files.whole(args.out / 'README.md') as partial:
        partial.write_text('\n'.join([head, *sections]))
