"""The frame tree behind Buffer: a history of transforms for each child frame, and lookups along the chain between two frames."""
from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

from tf2_ros.exceptions import ConnectivityException, ExtrapolationException, InvalidArgumentException, LookupException
from tf2_ros.rigid import IDENTITY, Rigid, compose, interpolate, inverse

_seconds = '{:.6f}'.format


@dataclass
class History:
    """The transforms of one moving child frame, sorted by stamp (ns), kept for `keep_ns` before the newest."""

    keep_ns: int
    stamps: list[int] = field(default_factory=list)
    links: list[tuple[str, Rigid]] = field(default_factory=list)    # (parent, T_parent_child)

    def insert(self, stamp: int, parent: str, T_parent_child: Rigid) -> bool:
        """False, and nothing stored, when the stamp is older than the history reaches."""
        if self.stamps and stamp < self.stamps[-1] - self.keep_ns:
            return False
        at = bisect_right(self.stamps, stamp)
        self.stamps.insert(at, stamp)
        self.links.insert(at, (parent, T_parent_child))
        stale = bisect_left(self.stamps, self.stamps[-1] - self.keep_ns)
        del self.stamps[:stale], self.links[:stale]
        return True

    def at(self, stamp: int) -> tuple[str, Rigid]:
        """Parent and T_parent_child at the stamp, interpolated between neighbours; never extrapolated."""
        if not self.stamps:
            raise ExtrapolationException('no data is in the buffer for this frame')
        self._forbid_extrapolation(stamp)
        after = bisect_left(self.stamps, stamp)
        if self.stamps[after] == stamp:
            return self.links[after]
        (parent, earlier), (next_parent, later) = self.links[after - 1], self.links[after]
        if parent != next_parent:    # the frame was moved to another parent in between: there is nothing to blend
            return parent, earlier
        begin, end = self.stamps[after - 1], self.stamps[after]
        return parent, interpolate(earlier, later, (stamp - begin) / (end - begin))

    def _forbid_extrapolation(self, stamp: int) -> None:
        oldest, newest = self.stamps[0], self.stamps[-1]
        wanted = f'Requested time {_seconds(stamp * 1e-9)}'
        if oldest == newest != stamp:
            raise ExtrapolationException(f'Lookup would require extrapolation. {wanted} but only time {_seconds(newest * 1e-9)} is in the buffer')
        if stamp > newest:
            raise ExtrapolationException(f'Lookup would require extrapolation into the future. {wanted} but the latest data is at time {_seconds(newest * 1e-9)}')
        if stamp < oldest:
            raise ExtrapolationException(f'Lookup would require extrapolation into the past. {wanted} but the earliest data is at time {_seconds(oldest * 1e-9)}')

    def latest(self) -> tuple[str, int] | None:
        """Parent and stamp (ns) of the newest transform."""
        return (self.links[-1][0], self.stamps[-1]) if self.stamps else None

    def clear(self) -> None:
        """Forget everything."""
        self.stamps.clear()
        self.links.clear()


@dataclass
class Fixed:
    """The transform of one static child frame: valid at any time, and not forgotten by a clear."""

    parent: str = ''
    T_parent_child: Rigid = IDENTITY

    def insert(self, _stamp: int, parent: str, T_parent_child: Rigid) -> bool:
        """Replaces what was there."""
        self.parent, self.T_parent_child = parent, T_parent_child
        return True

    def at(self, _stamp: int) -> tuple[str, Rigid]:
        """Parent and T_parent_child."""
        return self.parent, self.T_parent_child

    def latest(self) -> tuple[str, int]:
        """Parent, and 0: a static link does not limit the latest common time."""
        return self.parent, 0

    def clear(self) -> None:
        """Nothing: static transforms outlive a jump of the clock."""


class FrameTree:
    """All known frames. Stamps are int nanoseconds, 0 asks for the latest common time. Not thread-safe by itself."""

    def __init__(self, keep_ns: int) -> None:
        self._keep_ns = keep_ns
        self._frames: dict[str, History | Fixed | None] = {}    # None: known as a parent only

    def insert(self, stamp: int, parent: str, child: str, T_parent_child: Rigid, static: bool) -> bool:
        """Store one transform; False when it is older than the history."""
        held = self._frames.get(child)
        if not isinstance(held, Fixed if static else History):
            held = self._frames[child] = Fixed() if static else History(self._keep_ns)
        self._frames.setdefault(parent, None)
        return held.insert(stamp, parent, T_parent_child)

    def clear(self) -> None:
        """Forget moving transforms; frame names and static transforms stay."""
        for held in self._frames.values():
            if held is not None:
                held.clear()

    def lookup(self, target: str, source: str, stamp: int) -> tuple[Rigid, int]:
        """T_target_source and the stamp it holds for."""
        self._check(target)
        self._check(source)
        if target == source:
            return IDENTITY, stamp
        if stamp == 0:
            stamp = self._latest_common(target, source)
        up, up_error = self._chain(source, target, stamp)
        down, down_error = self._chain(target, source, stamp)
        meeting = next((frame for frame in up if frame in down), None)
        if meeting is None:
            error = down_error or up_error
            if error is not None:
                raise ExtrapolationException(f'{error}, when looking up transform from frame [{source}] to frame [{target}]')
            raise self._not_connected(target, source)
        return compose(inverse(down[meeting]), up[meeting]), stamp

    def _check(self, frame: str) -> None:
        if not frame or frame.startswith('/'):
            raise InvalidArgumentException(f'Invalid argument "{frame}": in tf2 frame_ids cannot be empty or start with a "/"')
        if frame not in self._frames:
            raise LookupException(f'"{frame}" passed to lookupTransform argument does not exist.')

    def _chain(self, frame: str, stop: str, stamp: int) -> tuple[dict[str, Rigid], ExtrapolationException | None]:
        """T_ancestor_frame for every ancestor reachable at the stamp (up to `stop`), and what ended the walk early."""
        chain, T_here_frame = {frame: IDENTITY}, IDENTITY
        here = frame
        while here != stop and self._frames[here] is not None:
            try:
                parent, T_parent_here = self._frames[here].at(stamp)
            except ExtrapolationException as error:
                return chain, error
            here = self._step(chain, parent)
            T_here_frame = compose(T_parent_here, T_here_frame)
            chain[here] = T_here_frame
        return chain, None

    def _latest_common(self, target: str, source: str) -> int:
        """The newest stamp (ns) at which every moving link between the frames has data; 0 when all are static."""
        up, down = self._latest_chain(source), self._latest_chain(target)
        meeting = next((frame for frame in up if frame in down), None)
        if meeting is None:
            raise self._not_connected(target, source)
        return min((stamp for stamp in (up[meeting], down[meeting]) if stamp), default=0)

    def _latest_chain(self, frame: str) -> dict[str, int]:
        """For every ancestor of the frame the newest stamp common to the moving links up to it; 0 while all are static."""
        chain, common = {frame: 0}, 0
        while (held := self._frames[frame]) is not None and (link := held.latest()) is not None:
            frame, stamp = self._step(chain, link[0]), link[1]
            common = min(filter(None, (common, stamp)), default=0)
            chain[frame] = common
        return chain

    @staticmethod
    def _step(chain: dict, parent: str) -> str:
        if parent in chain:
            raise LookupException(f'The tf tree is invalid because it contains a loop through [{parent}].')
        return parent

    @staticmethod
    def _not_connected(target: str, source: str) -> ConnectivityException:
        return ConnectivityException(f"Could not find a connection between '{target}' and '{source}' because they are not part of the same tree. "
                                     'Tf has two or more unconnected trees.')
