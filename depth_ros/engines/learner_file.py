"""The file that an online learner lives on in: one process holds it, it is whole at any moment, and what a killed one left beside it is swept up."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

from depth_ros import files
from depth_ros.engines.online_learner import OnlineLearner

log = logging.getLogger(__name__)

_MOST = 16      # learners of one kind on one machine


class LearnerFile:
    """Holds the file until it is closed. Two learners would overwrite each other's weights."""

    def __init__(self, path: str | Path) -> None:
        """Raises ValueError if another process holds it, OSError if its folder cannot be written."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.path.with_name(f'.{self.path.name}.lock').open('w')
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f'{self.path}: another process learns into this file') from None
        files.sweep(self.path)
        files.sweep(self.observations)

    @classmethod
    def free(cls, folder: Path, name: str) -> LearnerFile:
        """The first of the files NAME, NAME-2, NAME-3 ... in a folder that no other process holds. Raises OSError if the folder cannot be written."""
        for number in range(1, _MOST + 1):
            try:
                return cls(folder / f'{name}{f"-{number}" if number > 1 else ""}.safetensors')
            except ValueError as error:
                log.info('%s', error)
        raise OSError(f'{folder}: {_MOST} processes learn into files {name}* already')

    def restore(self, learner: OnlineLearner) -> bool:
        """Let a learner go on from the file; False if there is none. Raises ValueError, naming it, for one that does not fit."""
        if not self.path.exists():
            return False
        learner.restore(self.path)
        return True

    @property
    def observations(self) -> Path:
        """The file beside it for what the learner remembers."""
        return self.path.with_name(f'{self.path.name}.observations.npz')

    def set_aside(self) -> Path:
        """Rename a file that cannot be used, so that it is neither read again nor lost; its new name."""
        aside = self.path.with_name(f'{self.path.name}.refused')
        self.path.replace(aside)
        return aside

    def close(self) -> None:
        """Let go of it."""
        self._lock.close()
