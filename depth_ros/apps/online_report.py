"""The figures of `evaluate online`: mean errors of each line, over what was never measured and over all, and the worst second of what was learned."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from depth_ros.engines.online_settings import Progress

WINDOW = 30             # frames of a pass over which errors are compared: one image says little
_TOLD = ('updates', 'rollbacks', 'batches', 'observed', 'withheld_before', 'withheld_after', 'away_before', 'away_after')

DENSE = 'dense'         # the line that may lack frames

Lines = dict[str, list[dict[int, float | None]]]
"""Abs-Rel of each line, in every pass, by frame; None where it gave no depth."""


def figures_of(progress: Progress) -> dict[str, object]:
    """What the learner tells of itself."""
    everything = asdict(progress)
    return {name: everything[name] for name in _TOLD}


def summary(lines: Lines, held_out: list[int]) -> dict[str, object]:
    """Means over the frames of a pass that all lines but `dense` have a score of: of the last pass over the held-out ones (over all, if none are held out), and over all in every pass."""
    scored = [_scored(lines, number) for number in range(len(lines['learned']))]
    if not all(scored):
        raise ValueError('no frame has depth from every network: did the hits tell no scale?')
    chosen = [[index for index in frames if index in held_out] or frames for frames in scored]
    report: dict[str, object] = {f'abs_rel_{name}': _mean(passes[-1], chosen[-1]) for name, passes in lines.items()}
    report |= {f'abs_rel_{name}_all': _mean(passes[-1], scored[-1]) for name, passes in lines.items()}
    report['abs_rel_learned_by_pass'] = [_mean(*one) for one in zip(lines['learned'], scored)]
    report['abs_rel_learned_by_pass_held_out'] = [_mean(*one) for one in zip(lines['learned'], chosen)]
    for name in ('frozen_scaled', 'frozen'):
        if name in lines:
            report |= {f'learned_to_{name}': report['abs_rel_learned'] / report[f'abs_rel_{name}'],
                       f'learned_to_{name}_all': report['abs_rel_learned_all'] / report[f'abs_rel_{name}_all'],
                       f'worst_to_{name}': max(worst(*one) for one in zip(lines['learned'], lines[name], scored))}
    return {**report, 'frames_scored': len(scored[-1]), 'held_out': [i for i in scored[-1] if i in held_out]}


def _scored(lines: Lines, number: int) -> list[int]:
    """Frames of a pass that all lines have a score of, but for what learned from dense depth, which is there to look at and may be left out."""
    return [index for index in lines['learned'][number] if all(passes[number][index] is not None for name, passes in lines.items() if name != DENSE)]


def worst(learned: dict[int, float | None], other: dict[int, float | None], scored: list[int]) -> float:
    """Largest ratio of the learned line's mean error to another's over any WINDOW frames of a pass; over all of them in a shorter sequence."""
    starts = [i for i in scored if i + WINDOW <= scored[-1] + 1] or scored[:1]
    windows = [[i for i in scored if start <= i < start + WINDOW] for start in starts]
    return max(_mean(learned, window) / _mean(other, window) for window in windows)


def _mean(scores: dict[int, float | None], frames: list[int]) -> float:
    """NaN where there is none."""
    there = [scores[i] for i in frames if scores[i] is not None]
    return float(np.mean(there)) if there else float('nan')
