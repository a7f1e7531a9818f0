"""Where learned weights come from, so that none take the place of others that they do not descend from or that are newer."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from depth_ros.models.depth_model import DepthModel

_KEY = 'lineage'        # in the record of a checkpoint; the number of the weights stands beside it


@dataclass(frozen=True)
class Lineage:
    """One course of learning, over restarts, until it begins anew.

    Numbers of weights can be compared within one run alone: where a disk was full, a restart goes on from a file that is older than what was handed out.
    """

    start: str      # fingerprint of the weights that it began with
    learner: str    # tells it from other courses that began with the same
    run: str = ''   # tells it, from one restart to the next, from what went before and after

    def noted(self, record: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The record with this in it, of weights that have the number."""
        return {**record, 'number': number, _KEY: asdict(self)}


def begun(start: str) -> Lineage:
    """A new course of learning."""
    return Lineage(start, _mark(), _mark())


def resumed(course: Lineage) -> Lineage:
    """The course in a run of its own, as after a restart."""
    return replace(course, run=_mark())


def noted_in(record: Mapping[str, Any]) -> Lineage | None:
    """What a record tells; None if nothing. Raises ValueError for a note that cannot be read."""
    note = record.get(_KEY)
    if note is None:
        return None
    if not isinstance(note, dict) or not all(isinstance(note.get(name), str) for name in ('start', 'learner')) or not isinstance(record.get('number'), int):
        raise ValueError(f'expected a lineage of a start, a learner and a number, got {note!r} and {record.get("number")!r}')
    return Lineage(note['start'], note['learner'], str(note.get('run', '')))


def fingerprint(network: DepthModel) -> str:
    """Of the weights, whatever precision they were stored in."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def origins(network: DepthModel, record: Mapping[str, Any]) -> frozenset[str]:
    """Fingerprints of the weights that others may have begun with to fit those of a file: its own, and what it was itself learned from."""
    noted = noted_in(record)
    return frozenset({fingerprint(network)} | ({noted.start} if noted else set()))


def refusal(offered: Mapping[str, Any], running: Mapping[str, Any], known: frozenset[str]) -> str:
    """Why weights with the record `offered` may not take the place of those with the record `running`; '' if they may. `known`: origins of the weights that were loaded.

    Weights that tell nothing of where they come from may, for somebody gives them on purpose.
    """
    new, old = noted_in(offered), noted_in(running)
    if new is None:
        return ''
    if new.start not in known:
        return f'they were learned from other weights ({new.start}) than those loaded here ({", ".join(sorted(known))}): give both nodes the same `weights`'
    if old is not None and (old.learner, old.run) == (new.learner, new.run) and offered['number'] < running['number']:
        return f'their number {offered["number"]} is older than the {running["number"]} at work'
    return ''


def _mark() -> str:
    return uuid.uuid4().hex[:12]
