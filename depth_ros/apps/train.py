"""`train RECIPE`: train a network by a recipe; started again, it goes on where it was stopped."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
import yaml

import depth_ros
from depth_ros.apps import options
from depth_ros.engines import flow as flows
from depth_ros.engines.flow import FlowConfig
from depth_ros.learning import objectives, ranks, recipe, train_state
from depth_ros.learning.clip_batches import ClipBatches
from depth_ros.learning.clips import ClipData, open_clips
from depth_ros.learning.pairs import FlowFunction, PairData, open_store
from depth_ros.learning.recipe import Recipe
from depth_ros.learning.sequence_pairs import open_sequence_store, sequence_splits
from depth_ros.learning.synthetic_pairs import EndlessData, SyntheticPairs
from depth_ros.learning.trainer import BEST, STATE, Data, Trainer
from depth_ros.models import checkpoint
from depth_ros.settings import did_you_mean

FLOWS = {'dis': FlowConfig(), 'dis_depth': FlowConfig(preset='depth'), 'dis_medium': FlowConfig(preset='medium')}        # what made the flow of a pair store, by the name that its data give

_EPILOG = """
OUT gets last.safetensors (everything needed to go on), best.safetensors (the network that did best on the validation split),
history.json and curves for `tensorboard --logdir OUT`. Ctrl-C saves before it ends. The pairs are rendered into the user's cache first; or, where the
recipe's data name a sequence, made from that: --set data.sequence=FOLDER --set data.poses=FILE.
How long it takes: one CPU core renders 10 to 20 pairs, or not quite 2 clips (for deepv2d), a second, so that 8192 of them take some ten minutes, once; what is rendered is kept when it is stopped. Then the
first steps tell how long the others will take: hours on a CPU for the recipes that are meant for one, days for the others.
Several accelerators, or processes: torchrun --nproc-per-node 2 -m depth_ros.apps.train RECIPE.
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of `ros2 run depth_ros train`."""
    return options.run(_main, argv)


def _main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.list:
        print(_listed(shipped_recipes()))
        return
    if args.recipe is None:
        raise ValueError(f'expected a recipe: a YAML file, or one of {", ".join(sorted(shipped_recipes()))}')
    path = find_recipe(args.recipe)
    chosen = recipe.read(path, _changes(args.set) | ({} if args.strict is None else {'data.strict': args.strict}))
    out = args.out or Path('training') / path.stem
    torch.set_num_threads(chosen.threads)
    with ranks.joined(chosen.device) as joined:
        if not args.fresh and (out / STATE).exists():
            _refuse_another(chosen, out / STATE)
        objectives.build(chosen)        # what does not fit together is told before anything is rendered
        with opened_data(chosen) as data:
            progress = Trainer(chosen, data, out, joined, resume=not args.fresh).run(args.until)
        if joined.first:
            _report(progress, out)
            if args.export is not None:
                best = checkpoint.load(out / BEST)
                checkpoint.save(args.export, best.name, best.model, best.record, 'fp16')
                print(f'written to {args.export}')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='train', description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe', nargs='?', help='a YAML file, or the name of one that comes with the package (--list)')
    parser.add_argument('--out', type=Path, help='folder for the results (default: training/NAME_OF_THE_RECIPE)')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='change a key of the recipe, such as rate=3.0e-4 or model_config.pose_aware=true')
    parser.add_argument('--until', type=int, metavar='STEP', help='stop after this step, to go on later')
    parser.add_argument('--strict', action=argparse.BooleanOptionalAction,
                        help='stop at an image of a recorded sequence, or a photograph for surfaces, that cannot be used, or go on without it (default: stop)')
    parser.add_argument('--list', action='store_true', help='list the recipes that come with the package, and what each is for')
    parser.add_argument('--export', type=Path, metavar='FILE', help='at the end, write the best network for use: half precision, with its record')
    again = parser.add_mutually_exclusive_group()
    again.add_argument('--resume', action='store_true', help='go on with the state in OUT (the default where there is one)')
    again.add_argument('--fresh', action='store_true', help='begin anew, over what OUT holds')
    return parser


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: beside the sources, or where it was installed."""
    places = [Path(depth_ros.__file__).parents[1] / 'config']
    places += [Path(prefix) / 'share' / 'depth_ros' / 'config' for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if prefix]
    return {path.stem: path for place in reversed(places) for path in (place / 'train').glob('*.yaml')}


def _listed(recipes: dict[str, Path]) -> str:
    """Names and what each is about, a terminal wide."""
    indent, width = ' ' * (max(map(len, recipes)) + 2), shutil.get_terminal_size().columns
    return '\n'.join(textwrap.fill(_summary(path), width, initial_indent=name.ljust(len(indent)), subsequent_indent=indent) for name, path in sorted(recipes.items()))


def _summary(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    comment = '\n'.join(line.lstrip('# ') for line in itertools.takewhile(lambda line: line.startswith('#'), path.read_text().splitlines()))
    return ' '.join(re.split(r'(?<=\.)\s|:\n', comment, maxsplit=1)[0].split())


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by name. Raises ValueError, listing the known ones."""
    known = shipped_recipes()
    path = Path(name)
    if path.is_file():
        return path
    if name not in known:
        raise ValueError(f'{name}: neither a file nor one of the recipes {", ".join(sorted(known))}{did_you_mean(name, known)}')
    return known[name]


@contextlib.contextmanager
def opened_data(chosen: Recipe) -> Iterator[Data]:
    """The splits that a recipe trains and validates on, rendered now if they are not there; the processes of one training share the work."""
    if objectives.kind(chosen).batches is ClipBatches:
        if chosen.endless:
            raise ValueError('endless: expected False with an objective that learns from clips')
        clips = recipe.configured(ClipData, chosen.data)
        yield Data(*(open_clips(clips, split, flows.both_flows(FlowConfig(preset=flows.FAR_APART))) for split in ('train', 'validation')))
        return
    if 'sequence' in chosen.data:
        if chosen.endless:
            raise ValueError('endless: expected False with a sequence, which ends')
        splits = sequence_splits(chosen.data)
        yield Data(**{name: open_sequence_store(spec, flow_function(spec.flow)) for name, spec in splits.items()})
        return
    given = recipe.configured(EndlessData if chosen.endless else PairData, chosen.data)
    pairs = PairData(**{f.name: getattr(given, f.name) for f in fields(PairData)})
    flow = flow_function(pairs.flow)
    if not chosen.endless:
        yield Data(*(open_store(pairs, split, flow) for split in ('train', 'validation')))
        return
    with SyntheticPairs(given, partial(flow_function, pairs.flow), chosen.steps * chosen.batch) as endless:
        yield Data(endless, open_store(pairs, 'validation', flow))


def flow_function(name: str) -> FlowFunction:
    """The estimator that a pair store names. Raises ValueError for an unknown one, listing the known ones."""
    if name not in FLOWS:
        raise ValueError(f'data.flow: expected one of {", ".join(FLOWS)}, got {name!r}')
    return flows.flow_function(FLOWS[name])


def _changes(texts: list[str]) -> dict[str, object]:
    changes = {}
    for text in texts:
        key, found, value = text.partition('=')
        if not found:
            raise ValueError(f'--set: expected KEY=VALUE, got {text!r}')
        changes[key] = yaml.safe_load(value)
    return changes


def _refuse_another(chosen: Recipe, state: Path) -> None:
    """Say at once, before pairs are rendered, that the folder is another training's."""
    differences = chosen.differences(train_state.recipe_of(state))
    if differences:
        raise ValueError(f'{state} is the state of another recipe: this one has {"; ".join(differences)}. Choose another --out, or --fresh to begin anew')


def _report(progress: train_state.Progress, out: Path) -> None:
    best = progress.best
    print(f'{progress.step} steps; the state is in {out / STATE}')
    if best is not None:
        print(f'best at step {best["step"]}, {out / BEST}: ' + ', '.join(f'{name} {value:.4f}' for name, value in best.items() if isinstance(value, float)))


if __name__ == '__main__':
    sys.exit(main())
