"""What the learning node shows: its figures, and for whoever looks, depth before and after learning and the image with its hits."""

from __future__ import annotations

import time
from collections import deque

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from sensor_msgs.msg import Image

from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.range_projection import hit_pixels
from depth_ros.frames import DepthResult, FlowResult, Scale
from depth_ros.ros import codecs
from depth_ros.ros.depth_outputs import DepthOutputConfig, DepthOutputs, Throttle
from depth_ros.ros.managed_node import ManagedNode

_WINDOW = 60.0          # [s] over which updates are counted
_NEAR_FAR = 0.3, 6.0    # [m] between which the colour of a hit runs
_MARK = 3               # [px] half the width of a hit's mark, at 640 px
_SHOWN = 640, 480       # [px]
_MAX_DEPTH = 20.0       # [m] beyond which depth is not shown


class LearningMetrics:
    """Publishes what a learner is doing as numbers that can be plotted, in a DiagnosticArray, and puts the same into the node's diagnostics."""

    def __init__(self, node: ManagedNode, learner: OnlineLearner) -> None:
        self._node, self._learner = node, learner
        self._publisher = node.publisher(DiagnosticArray, 'online_learning/metrics')
        self._history: deque[tuple[float, int, int, float]] = deque()       # steady time [s], updates, batches, processor time [s]

    def values(self) -> dict[str, object]:
        """The figures by name."""
        learner, progress, buffered = self._learner, self._learner.progress, self._learner.buffered
        updates, batches, share = self._rates(progress.updates, progress.batches, learner.budget.total)
        return {'state': learner.state.value, 'reason': learner.reason, 'weights': progress.number, 'updates': progress.updates, 'updates a second [Hz]': updates,
                'rollbacks': progress.rollbacks, 'batches': progress.batches, 'batches a second [Hz]': batches, 'pairs': progress.observed, 'hits': progress.hits,
                'withheld hits': progress.withheld, 'buffer size': sum(buffered.values()), **{f'buffer {part}': count for part, count in buffered.items()},
                'share of a core': share, 'learning rate': progress.rate, 'trusted share': progress.trusted,
                'withheld error before': progress.withheld_before, 'withheld error after': progress.withheld_after,
                'error away from hits before': progress.away_before, 'error away from hits after': progress.away_after}

    def _rates(self, updates: int, batches: int, spent: float) -> list[float]:
        """What each of the counts grew by in a second, over the last minute."""
        now = time.monotonic()
        if self._history and updates < self._history[-1][1]:
            self._history.clear()       # it was reset
        self._history.append((now, updates, batches, spent))
        while now - self._history[0][0] > _WINDOW:
            self._history.popleft()
        then, *first = self._history[0]
        return [(count - before) / max(now - then, 1.0) for count, before in zip((updates, batches, spent), first)]

    def publish(self) -> None:
        """Tell them now."""
        shown = {name: _text(value) for name, value in self.values().items()}
        for name, value in shown.items():
            self._node.diagnostics.value('learning' if name == 'state' else name, value)
        status = DiagnosticStatus(level=DiagnosticStatus.OK, name=self._node.get_fully_qualified_name().lstrip('/'), hardware_id='depth_ros', message=shown['state'],
                                  values=[KeyValue(key=key, value=value) for key, value in shown.items()])
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._node.tell(self._publisher, message)


def _text(value: object) -> str:
    return 'unknown' if value is None else f'{value:.4g}' if isinstance(value, float) else str(value)


class LearningViews:
    """Depth of the same pairs before and after learning, and the image with its hits drawn over it. Made only while somebody listens."""

    def __init__(self, node: ManagedNode, learner: OnlineLearner) -> None:
        self._node, self._learner = node, learner
        self._before, self._after = (DepthOutputs(node, f'online_learning/{name}') for name in ('before', 'after'))
        self._hits = node.publisher(Image, 'online_learning/hits')
        self._throttle = Throttle()

    def publish(self, result: FlowResult, T_ref_cur: np.ndarray, hits: np.ndarray | None, guide: DepthResult | None, rate: float) -> None:
        """Show a pair of motion T_ref_cur (4, 4) [m], its hits (H, W) [m] and what its depth from flow, `guide`, leads to."""
        compared = self._before.is_heard or self._after.is_heard
        if not (compared or self._hits.get_subscription_count()) or not self._throttle.due(rate):
            return
        frame = result.pair.current
        if self._hits.get_subscription_count():
            self._node.tell(self._hits, codecs.rgb_image(hits_over(frame.image, hits), codecs.make_header(frame.stamp, frame.frame_id)))
        if not compared:
            return
        for output, depth in zip((self._before, self._after), self._learner.depths(result, T_ref_cur, guide)):
            valid = np.isfinite(depth) & (depth <= _MAX_DEPTH)
            output.publish(DepthResult(frame, np.where(valid, depth, np.float32(0.0)), valid, np.ones_like(depth), Scale.METRIC), DepthOutputConfig())


def hits_over(image: np.ndarray, hits: np.ndarray | None) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB enlarged, with each hit of (h, w) [m] as a square, red near and blue far."""
    picture = cv2.resize(image, _SHOWN, interpolation=cv2.INTER_LINEAR)
    if hits is None:
        return picture
    rows, columns = hit_pixels(hits)
    shade = np.clip((hits[rows, columns] - _NEAR_FAR[0]) / (_NEAR_FAR[1] - _NEAR_FAR[0]), 0, 1)
    colours = cv2.applyColorMap((255 * (1 - shade)).astype(np.uint8)[:, None], cv2.COLORMAP_JET)[:, 0, ::-1] if len(rows) else []
    for row, column, colour in zip(rows, columns, colours):
        x, y = int((column + 0.5) * _SHOWN[0] / hits.shape[1]), int((row + 0.5) * _SHOWN[1] / hits.shape[0])
        cv2.rectangle(picture, (x - _MARK, y - _MARK), (x + _MARK, y + _MARK), tuple(map(int, colour)), cv2.FILLED)
    return picture
