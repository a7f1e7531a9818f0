"""`global_local`: dense depth from the flow bundle by the Global-Local network, whose weights may change while it runs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Image
from std_msgs.msg import Float32MultiArray, MultiArrayDimension, MultiArrayLayout, UInt8MultiArray

from depth_ros.engines.global_local import GlobalLocalEngine, GlobalLocalEngineConfig
from depth_ros.engines.threads import give_way
from depth_ros.ros import bundle, codecs, diagnostics, params
from depth_ros.ros.codecs import BadMessage
from depth_ros.ros.depth_outputs import DepthOutputConfig, DepthOutputs
from depth_ros.ros.managed_node import LATCHED_QOS, ManagedNode, NodeConfig
from depth_ros.ros.pose_history import PoseHistory
from depth_ros.ros.sync import Order, StampBuffer
from depth_ros.settings import setting

_OFFERS_NICENESS = 10       # of the thread that tries weights
_FRESH = 16         # hits that wait for a pair
_SILENCE = 1.0      # [s] after which an odometry is not waited for


@dataclass(frozen=True)
class GlobalLocalNodeConfig(NodeConfig):
    """Parameters of `global_local`."""

    odometry_patience: float = setting(0.15, 'longest wait of a pair for the odometry of its image', 's', low=0.0, high=2.0)
    engine: GlobalLocalEngineConfig = params.included(GlobalLocalEngineConfig)
    output: DepthOutputConfig = params.included(DepthOutputConfig)


class Job(NamedTuple):
    """One bundle with what else is known of its moment."""

    epoch: tuple[int, int]                  # jumps of the clock, breaks of the odometry
    parts: Mapping[str, Any]
    hits: Image | None                      # the nearest in time
    T_ref_cur: np.ndarray | None            # (4, 4) [m]
    T_odom_cam: np.ndarray | None           # (4, 4) [m]


class GlobalLocalNode(ManagedNode):
    """Gives the newest pairs' depth; a pair waits a little for the odometry of its image where that is of use."""

    config_class = GlobalLocalNodeConfig
    config: GlobalLocalNodeConfig

    def __init__(self, **options: Any) -> None:
        self._poses: PoseHistory | None = None
        self._renewal = threading.Lock()    # over an offer and the note of it, and over handing that on to the engine that comes next
        super().__init__('global_local', **options)

    def setup(self) -> None:
        """Load the network and make the publishers."""
        self._warned, self._lacking = -diagnostics.WARNING_PERIOD, 0    # steady time [s] of the last line about a pair that lacked something, and such pairs since
        self._accepted: bytes | None = None     # the last weights that were taken over
        self._engine = GlobalLocalEngine(self.config.engine)
        self._depth_out = DepthOutputs(self, 'global_local')
        self._parameters_out = self.publisher(Float32MultiArray, 'global_local/parameters')
        self._poses = PoseHistory(self)
        self._lap, self._epoch_at_work = 0, (0, self._poses.breaks)
        self._tell_weights()

    def start(self) -> None:
        """Listen to the flow bundle, the range hits, the odometry and whoever trains."""
        self._hits: StampBuffer[Image] = StampBuffer()
        self._fresh: deque[tuple[int, Image]] = deque(maxlen=_FRESH)    # hits that no pair has taken in yet, each with the lap that they came in
        self._waiting: StampBuffer[tuple[Mapping[str, Any], float]] = StampBuffer()
        self._odometry_heard: float | None = None
        self._newest = self.worker(self._work, waiting=3)       # odometry that is late once frees two pairs at a time, while another may be waiting
        offers = self.worker(self._try_weights, 'weights')
        self._bundle = bundle.BundleInput(self, self._take_bundle, images=True)
        self._hits_input = self.listen(Image, 'sparse_depth/image', self._take_hits, stalls=False)
        self._weights_input = self.listen(UInt8MultiArray, 'online_learning/weights', offers.put, LATCHED_QOS, stalls=False)
        self._odometry_input = None
        if self._uses_odometry:
            self._odometry_input = self.listen(Odometry, 'deepv2d/odometry', self._take_odometry, stalls=False)

    def stop(self) -> None:
        """Forget what waits."""
        if self._poses is not None:
            self._poses.clear()

    def teardown(self) -> None:
        """Let go of TF."""
        if self._poses is not None:
            self._poses.close()
            self._poses = None

    def reconfigured(self, before: GlobalLocalNodeConfig) -> None:
        """Go on with the new settings. Another network gets the weights that were taken over if they still fit, and other weights in the parameters make them forgotten.

        Raises ValueError or OSError for weights that cannot be used.
        """
        if self.config.engine == before.engine:
            return
        if not self._engine.change(self.config.engine):
            engine = GlobalLocalEngine(self.config.engine)      # takes a while, in which weights may be offered to the old one
            with self._renewal:
                if self.config.engine.weights != before.engine.weights:
                    self._accepted = None
                self._offer_again(engine)
                self._engine = engine
        self._tell_weights()
        if self.state == 'active' and self._uses_odometry and self._odometry_input is None:
            self._odometry_input = self.listen(Odometry, 'deepv2d/odometry', self._take_odometry, stalls=False)

    def _offer_again(self, engine: GlobalLocalEngine) -> None:
        """Give the weights that were taken over to another engine."""
        if self._accepted is None:
            return
        offer = engine.offer(self._accepted)
        if not offer.accepted:
            self.get_logger().warning(f'the weights that were taken over do not fit the new settings, so those loaded are at work: {offer.reason}')

    @property
    def _uses_odometry(self) -> bool:
        """Whether poses are of use: to the network, as the scale, or to gather and smooth what hits tell of it."""
        return self.config.engine.variant == 'pose_aware' or self.config.engine.scale != 'none'

    # In the executor's thread: matching messages

    def _take_bundle(self, stamp: int, parts: Mapping[str, Any]) -> None:
        order = self._bundle.sort(stamp)
        if order is Order.LATE:
            return
        if order is Order.JUMP:
            self._lap += 1
            self._waiting.clear()
            self._poses.rewind(stamp)
        self._waiting.put(stamp, (parts, time.monotonic()))
        self.diagnostics.value('incomplete bundles', self._bundle.parts.incomplete)
        self._release()

    def _take_hits(self, hits: Image) -> None:
        self._hits.put(codecs.stamp_ns(hits.header.stamp), hits)
        self._fresh.append((self._lap, hits))

    def _take_odometry(self, message: Odometry) -> None:
        self._odometry_heard = time.monotonic()
        if self._poses.take(message, self._odometry_input):
            self._release()

    def _release(self) -> None:
        """Hand on the bundles that have nothing more to wait for, oldest first."""
        now = time.monotonic()
        reached = [s for s in self._waiting.stamps() if self._is_complete(s, now)]
        for stamp in reached:
            parts, _ = self._waiting.get(stamp)
            reference = self._bundle.reference_stamp(parts)
            T_ref_cur = self._poses.motion(reference, stamp, parts['image'].header.frame_id) if self._uses_odometry else None
            T_odom_cam = None if T_ref_cur is None else self._poses.pose(stamp, parts['image'].header.frame_id)
            hits = self._hits.nearest(stamp, int(self.config.engine.hits_offset * 1e9))
            self._newest.put(Job((self._lap, self._poses.breaks), parts, hits, T_ref_cur, T_odom_cam))
        if reached:
            self._waiting.drop_until(reached[-1])

    def _is_complete(self, stamp: int, now: float) -> bool:
        if not self._uses_odometry or self._odometry_heard is None or now - self._odometry_heard > _SILENCE:
            return True
        newest = self._poses.newest
        return (newest is not None and newest >= stamp) or now - self._waiting.get(stamp)[1] > self.config.odometry_patience

    # In the workers' threads

    def _work(self, job: Job) -> None:
        engine = self._engine       # a parameter may change meanwhile
        if job.epoch != self._epoch_at_work:
            (engine.reset if job.epoch[0] != self._epoch_at_work[0] else engine.forget_places)()
            self._epoch_at_work = job.epoch
        try:
            result = self._bundle.whole_result(job.parts)
        except BadMessage as error:
            self._bundle.refuse(error)
            return
        self.diagnostics.clear('camera_info')
        length = None if job.T_ref_cur is None else float(np.linalg.norm(job.T_ref_cur[:3, 3]))
        hits = self._hits_of(job, engine, length)
        found = engine.step(result, job.T_ref_cur, hits, length, job.T_odom_cam)
        self._tell_state(engine)
        if found.parameters is not None and self._parameters_out.get_subscription_count():
            self.tell(self._parameters_out, _array(found.parameters))
        if found.depth is not None:
            self._depth_out.publish(found.depth, self.config.output)

    def _hits_of(self, job: Job, engine: GlobalLocalEngine, step_length: float | None) -> np.ndarray | None:
        """Give the engine the hits that came since the last pair, to compare each with the image of its time; where no pose is known, the nearest ones stand for it.

        The newest are enough where the metre is not asked from them, for a camera that hangs to be noticed by.
        """
        fresh = [self._fresh.popleft() for _ in range(len(self._fresh))]
        if job.T_odom_cam is None:
            return None if job.hits is None else self._decoded(job.hits)
        for lap, message in fresh if engine.asks_hits(step_length) else fresh[-1:]:
            if lap == job.epoch[0] and (hits := self._decoded(message)) is not None:
                engine.put_hits(codecs.stamp_ns(message.header.stamp), hits)
        return None

    def _decoded(self, message: Image) -> np.ndarray | None:
        """Hits (H, W) [m] of a message. One that cannot be used is told and counted: the others, and the pair, are good without it."""
        try:
            return codecs.depth_array(message, self._hits_input.topic)[0]
        except BadMessage as error:
            self.diagnostics.reject(self._hits_input, str(error))
            return None

    def _try_weights(self, message: UInt8MultiArray) -> None:
        give_way(_OFFERS_NICENESS)     # frames come first
        blob = bytes(message.data)
        with self._renewal:
            offer = self._engine.offer(blob)
            if offer.accepted:
                self._accepted = blob
        if not offer.accepted:
            self.diagnostics.reject(self._weights_input, f'{self._weights_input.topic}: the offered weights are refused, the last good ones stay: {offer.reason}')
            return
        self.get_logger().info(f'{self._weights_input.topic}: new weights at work: {offer.reason}')
        self._tell_weights()

    def _tell_weights(self) -> None:
        networks = self._engine.networks
        for variant in networks.variants:
            self.diagnostics.value(f'weights of {variant}', networks.record(variant).get('number', 'as loaded'))
            self.diagnostics.value(f'{variant} runs on', networks.backend(variant))

    def _tell_state(self, engine: GlobalLocalEngine) -> None:
        self.diagnostics.value('network', engine.used or 'none')
        self.diagnostics.value('scale from', engine.scale_from or 'nothing')
        if engine.reason:
            self._warn(engine.reason)
            self.diagnostics.hold('depth', diagnostics.WARN, engine.reason, logged=True)
        else:
            self.diagnostics.clear('depth')

    def _warn(self, reason: str) -> None:
        """Log what a pair lacked, with the number of pairs that lacked something since the last such line. A pair too still now and then clears the condition: that must not fill it."""
        now = time.monotonic()
        self._lacking += 1
        if now - self._warned >= diagnostics.WARNING_PERIOD:
            self.get_logger().warning(reason if self._lacking == 1 else f'{reason} (with this one, {self._lacking} pairs lacked something since the last such line)')
            self._warned, self._lacking = now, 0


def _array(values: np.ndarray) -> Float32MultiArray:
    """Values (N,) as a message."""
    layout = MultiArrayLayout(dim=[MultiArrayDimension(label='parameters', size=len(values), stride=len(values))])
    return Float32MultiArray(layout=layout, data=values.astype(float).tolist())
