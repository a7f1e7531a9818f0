"""`evaluate compare`: train Global-Local and its rivals on the same pairs, score them on the test split, and leave the paper's tables and plots.

Every network gets the same pairs in the same order, the same number of steps, the same rate and loss: those of a recipe. Studies and networks that are finished in
--out are not repeated, and one that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from depth_ros import files
from depth_ros.apps import train
from depth_ros.apps.bench import Bench
from depth_ros.apps.studies import DENSITIES, OTHERS, RIVALS, STUDIES
from depth_ros.learning import ranks, recipe
from depth_ros.learning.pairs import PairData, open_store
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.trainer import Data

_DURATION = """
how long it takes: a step of 16 pairs of 128x96 takes one CPU core 0.3 s (Global-Local), 0.4 s (Small Enc-Dec), 0.7 s (Eigen), 0.9 s (unsupervised), 1.9 s (DispNet)
or 3.5 s (FCRN); at 32x24 0.03 to 0.7 s. `main` trains 8 networks, `density` 8 more, `intrinsics` 2, `ablations` 4, `pose` 3, `flow_tuning` 3, `flow_error` and `curves` none; each
once for every seed. By these figures 4000 steps of `main` at 128x96 with one seed are some ten hours of one core, of everything twenty. compare_grown, which grows to 128x96 in
20 000 steps of 32, takes 40 minutes of a core for Global-Local and 80 for Small Enc-Dec. An accelerator is used if there is one.
MALLOC_MMAP_THRESHOLD_=4294967295 MALLOC_TRIM_THRESHOLD_=8589934592 in the environment saves the large networks a quarter of their time on a CPU: their gradients' memory is kept.
Several processes may share one --out, each with studies of its own: a network is trained by one of them, and the others wait for it if they need it.
The pairs are rendered first if they are not in the user's cache: some ten a second.
"""

_TOO_SMALL = 'below 128x96 the encoders of DispNet and the like narrow to 1 x 1, which speaks against them, not for the others'
_SIZES = {'32x24': (128, 96, 4), '64x48': (128, 96, 2), '128x96': (128, 96, 1), '256x192': (256, 192, 1)}      # of the store, and what it is reduced by
_ENOUGH = 128       # [px] of width
_CHANGES = {'steps': 'of every training', 'batch': 'pairs a step', 'rate': "Adam's highest learning rate, for every network",
            'new_motion': 'share of the pairs that get another motion at each visit; 0: each pair as it is, at every visit'}
_VALIDATIONS, _STATES = 10, 4       # of each training


def add_options(task: argparse.ArgumentParser) -> None:
    """What `evaluate compare` takes."""
    task.description, task.epilog, task.formatter_class = __doc__, _DURATION, argparse.RawDescriptionHelpFormatter
    task.add_argument('--recipe', default='compare', help='what the trainings share: a YAML file, or one that comes with the package; compare_small is for one CPU core, '
                      'compare_grown for 128x96 on one (default: %(default)s)')
    task.add_argument('--out', type=Path, default=Path('evaluation/compare'), help='folder for tables, plots and trained networks (default: %(default)s)')
    task.add_argument('--studies', nargs='+', choices=tuple(STUDIES), default=list(STUDIES), help='which ones (default: all)')
    task.add_argument('--networks', nargs='+', choices=(*RIVALS, *OTHERS), default=[], help='which ones besides Global-Local (default: all)')
    task.add_argument('--densities', nargs='+', type=int, choices=tuple(DENSITIES), default=[], help='pixels an image that `density` tells Global-Local besides 1 and 0, which is all '
                      '(default: all of these)')
    task.add_argument('--size', choices=tuple(_SIZES), help="of the pairs, from the first step to the last; " + _TOO_SMALL + " (default: the recipe's)")
    for key, text in _CHANGES.items():
        task.add_argument('--' + key.replace('_', '-'), type=type(getattr(Recipe, key)), help=f"{text} (default: the recipe's)")
    task.add_argument('--pairs', type=int, help="of the training split (default: the recipe's)")
    task.add_argument('--seeds', type=int, default=1, help='trainings of each network, whose mean is reported (default: %(default)s)')
    task.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto', help='where to compute (default: %(default)s)')
    task.add_argument('--threads', type=int, default=1, help='of torch, on the CPU (default: %(default)s)')
    task.set_defaults(score=_compare)


def _compare(args: argparse.Namespace) -> None:
    if args.seeds < 1:
        raise ValueError(f'--seeds: expected at least 1, got {args.seeds}')
    torch.set_num_threads(args.threads)
    common = _common(args)
    spec = recipe.configured(PairData, common.data)
    with ranks.joined(args.device) as joined:
        stores = {split: open_store(spec, split, train.flow_function(spec.flow)) for split in ('train', 'validation', 'test')}
        bench = Bench(Data(stores['train'], stores['validation']), stores['test'], common, args.seeds, args.out, joined, args.networks, args.densities)
        for name in args.studies:
            table = STUDIES[name](bench)
            table.save(args.out)
            print(table.terminal() + '\n' + table.note + '\n', flush=True)
            _gather(args, _heading(common, spec, args.seeds))
    print(f'written to {args.out}')


def _common(args: argparse.Namespace) -> Recipe:
    """What the trainings share: the recipe, with what the command line changes."""
    given = recipe.read(train.find_recipe(args.recipe))
    if given.endless:
        raise ValueError(f'endless: expected False, as all networks of a comparison get the same pairs, got True from {args.recipe}')
    changes = {key: getattr(args, key) for key in _CHANGES if getattr(args, key) is not None}
    data = given.data | ({'train': args.pairs} if args.pairs is not None else {})
    if args.size is not None:
        width, height, changes['reduce'] = _SIZES[args.size]
        changes['grow_at'] = 1.0
        data |= {'width': width, 'height': height}
    steps = changes.get('steps', given.steps)
    warm_up = given.warm_up if given.schedule == 'constant' else min(given.warm_up, steps // 10)      # the beginning of what can be prolonged is the same however long
    rhythm = {'warm_up': warm_up, 'validate_every': max(steps // _VALIDATIONS, 1), 'checkpoint_every': max(steps // _STATES, 250)}
    return recipe.configured(Recipe, asdict(given) | changes | rhythm | {'data': data, 'device': args.device, 'threads': args.threads})


def _size(common: Recipe, spec: PairData) -> str:
    return f'{spec.width // common.last_reduce}x{spec.height // common.last_reduce}'


def _heading(common: Recipe, spec: PairData, seeds: int) -> str:
    """What the tables have in common."""
    moved = f', of which {100 * common.new_motion:.0f} % are given another motion at each visit' if common.new_motion else ''
    ours = f' Global-Local with {common.model_config}.' if common.model_config else ''
    small = f' At this size: {_TOO_SMALL}.' if spec.width // common.last_reduce < _ENOUGH else ''
    return (f'# Comparison\n\n{spec.train} training pairs{moved}, and {spec.test} unseen test pairs of {_size(common, spec)}; {common.steps} steps of {common.batch}, '
            f'rate {common.rate:g}, L1 of {common.l1_of.replace("_", " ")}; {seeds} seed{"s" if seeds > 1 else ""}.{ours}{small}\n')


def _gather(args: argparse.Namespace, heading: str) -> None:
    """README.md with the tables of all studies that are finished."""
    sections = [(args.out / f'{name}.md').read_text() for name in STUDIES if (args.out / f'{name}.md').exists()]
    with files.whole(args.out / 'README.md') as partial:
        partial.write_text('\n'.join([heading, *sections]))
