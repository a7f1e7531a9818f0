"""Whether an image pair and its range hits may teach: the camera must have moved, and hits must speak of the same metre as flow and motion."""

from __future__ import annotations

from collections import deque

import numpy as np

from depth_ros.engines.global_local import parallax_of
from depth_ros.engines.online_settings import OnlineLearnerConfig
from depth_ros.engines.replay_buffer import Observation
from depth_ros.frames import FlowResult

_GATHERED = 20              # hits on confident depth from flow that tell whether both speak of the same metre
_FRAMES = 20, 5             # with hits that are looked back on, and that are needed, to see a lesser difference
_MANY_WILD = 0.2            # share of wild hits that is worth a word
_TRUST_AGAIN = 2 / 3         # of the difference that hits are distrusted at
_SILENCE = 10, 60           # bounds of the moving pairs without hits that can be compared, after which what the last ones missed by says nothing of what is seen now
_GAPS = 3                   # within these: times the longest silence between the last hits, for a rangefinder may be slow
_LAST = 5                   # hits whose silences are remembered
_LEAST_WEIGHT = 0.1         # of an observation whose hits all contradict depth from flow: the flow may be what is wrong


class ObservationGate:
    """Remembers what it needs of earlier pairs. One camera, one thread at a time."""

    def __init__(self) -> None:
        self._missed = False            # whether hits have missed for a while
        self._silent = 0                # moving pairs since the last hits that could be compared
        self._gaps: deque[int] = deque(maxlen=_LAST)    # and between these
        self._agreement: list[float] = []
        self._misfits: deque[float] = deque(maxlen=_FRAMES[0])      # median difference of the logs in each of the last frames
        self._shares: deque[float] = deque(maxlen=_FRAMES[0])       # of the hits that lie far off, in each of them

    @property
    def distrusts(self) -> bool:
        """Whether hits have missed for a while, so that what they taught before may be wrong as well. Once none come any more it is for depth from flow to tell that."""
        return self._missed and not self._is_long_silent

    @property
    def _is_long_silent(self) -> bool:
        least, most = _SILENCE
        return self._silent >= min(max(least, _GAPS * max(self._gaps, default=0)), most)

    def pass_over(self) -> None:
        """A pair that moves came without hits that could be compared."""
        self._silent += 1

    def _hear(self) -> None:
        """Hits can be compared again; those from before a long silence no longer count."""
        if self._is_long_silent:
            self._misfits.clear()
            self._shares.clear()
            self._missed = False
        self._gaps.append(self._silent)
        self._silent = 0

    @staticmethod
    def missing(result: FlowResult, T_2_1: np.ndarray | None, hanging: str, config: OnlineLearnerConfig) -> str:
        """Why the pair of motion T_2_1 (4, 4) [m] shows no parallax to learn from, `hanging` if its images do not live; '' if it does."""
        if T_2_1 is None or not np.isfinite(T_2_1).all():
            return 'the motion of the pair is not known'
        if hanging:
            return hanging
        step = float(np.linalg.norm(T_2_1[:3, 3]))
        if step < config.min_step:
            return f'the camera moved by {step:.4f} m, less than min_step {config.min_step}'
        moved = float(np.median(parallax_of(result, T_2_1))) / result.flow.shape[1]
        if not moved >= config.min_displacement:
            return f'the image moved by {moved:.4f} of its width beyond what its rotation makes, less than min_displacement {config.min_displacement}'
        return ''

    @property
    def concern(self) -> str:
        """What is odd about the hits though they are learned from; '' if nothing is."""
        share = float(np.mean(self._shares)) if len(self._shares) >= _FRAMES[1] else 0.0
        return f'{share:.0%} of the last range hits contradict what flow and motion tell, and count for little' if share > _MANY_WILD else ''

    def contradiction(self, new: Observation, config: OnlineLearnerConfig) -> str:
        """Why the hits are not believed: they and depth from flow speak of different metres. '' if they do not, or cannot be compared."""
        both = (new.hits > 0) & (new.guide > 0)
        differences = np.log(new.hits[both] / new.guide[both])
        if differences.size:
            self._hear()
            self._shares.append(float(np.mean(np.abs(differences) > config.max_contradiction)))
        else:
            self.pass_over()
        self._agreement = [*self._agreement, *differences.tolist()][-max(_GATHERED, differences.size):]
        if len(self._agreement) < min(_GATHERED, 5 * config.min_hits):
            return ''
        if float(np.median(np.abs(self._agreement))) > config.max_contradiction:
            return f'the hits contradict what flow and motion tell: half of them lie at {np.exp(np.median(self._agreement)):.2f} times that depth or beyond'
        if differences.size:        # of hits that are refused by themselves nothing follows for later ones
            self._misfits.append(float(np.median(np.abs(differences))))
        misfit = float(np.median(self._misfits)) if len(self._misfits) >= _FRAMES[1] else 0.0
        self._missed = misfit > (_TRUST_AGAIN if self._missed else 1.0) * config.max_misfit
        if not self.distrusts:
            return ''
        return f'for a while hits and what flow and motion tell differ by {np.expm1(misfit):.0%}, now to one side, now to the other: is the sensor where TF says?'


def weight_of(new: Observation, config: OnlineLearnerConfig) -> float:
    """Of an observation in the loss: the share of its hits that confident depth from flow agrees with, as far as they can be compared."""
    both = (new.hits > 0) & (new.guide > 0)
    if not both.any():
        return 1.0
    return max(_LEAST_WEIGHT, float(np.mean(np.abs(np.log(new.hits[both] / new.guide[both])) <= config.max_contradiction)))
