"""`flow`: optical flow between the camera's current image and an earlier one, in both directions."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import CompressedImage, Image

from depth_ros.engines.flow import FlowConfig, FlowEngine
from depth_ros.engines.pairing import Pairing, PairingConfig, observed_motion
from depth_ros.ros import bundle, codecs, params
from depth_ros.ros.camera import CameraConfig, CameraInput
from depth_ros.ros.managed_node import ManagedNode
from depth_ros.ros.sync import Pace
from depth_ros.settings import setting


@dataclass(frozen=True)
class FlowNodeConfig(CameraConfig):
    """Parameters of `flow`."""

    max_rate: float = setting(0.0, 'highest rate, as they arrive, of the images that are looked at; 0: every image. The others are left out evenly, which leaves the CPU to whoever '
                              'works on the flow', 'Hz', 0.0, 1000.0)
    max_share: float = setting(0.0, 'largest share of all CPU cores that the work on them may take, in processor time: a slow machine looks at fewer than max_rate, for whoever works on '
                               'the flow is slow, too, though at two in the max_gap of pairing; 0: any', '', 0.0, 1.0)
    flow: FlowConfig = params.included(FlowConfig)
    pairing: PairingConfig = params.included(PairingConfig)


_IN_A_GAP = 2           # images that are looked at in the longest silence that pairing bears, at the least
_FOLLOWS = 0.1          # share by which the usual cost of a pair follows the newest one
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1     # that this process may use


class FlowNode(ManagedNode):
    """Pairs the newest image with the reference and publishes the flow bundle."""

    config_class = FlowNodeConfig
    config: FlowNodeConfig

    def __init__(self, **options: Any) -> None:
        super().__init__('flow', **options)

    def setup(self) -> None:
        """Make the engine and the publishers."""
        self._make_engine()
        self._bundle = {name: self.publisher(kind, f'flow/{name}') for name, kind in bundle.TOPICS.items()}

    def start(self) -> None:
        """Begin with the next image as the reference."""
        self._pairing.reset()
        self._newest, self._pace = self.worker(self._work), Pace()
        # A clock that jumps back needs nothing more: pairing and pace start anew by themselves.
        self._camera = CameraInput(self, self._take_image, on_jump=lambda _stamp: None)

    def reconfigured(self, before: FlowNodeConfig) -> None:
        """Begin anew with the new settings."""
        if (self.config.flow, self.config.pairing) != (before.flow, before.pairing):
            self._make_engine()

    def _make_engine(self) -> None:
        self._engine, self._pairing = FlowEngine(self.config.flow), Pairing(self.config.pairing)
        self._pairs, self._cost = 0, 0.0    # looked at with this engine, and the processor time [s] that one usually takes

    def _take_image(self, image: Image | CompressedImage) -> None:
        if self._pace.is_due(codecs.stamp_ns(image.header.stamp), time.monotonic_ns(), self._rate()):
            self._newest.put(image)
        self.diagnostics.value('images left out', self._pace.left_out)

    def _rate(self) -> float:
        """Of the images to look at [Hz], 0 for all."""
        config = self.config
        affordable = max(config.max_share * _CORES / self._cost, _IN_A_GAP / config.pairing.max_gap) if config.max_share and self._cost else 0.0
        rate = min(filter(None, (config.max_rate, affordable)), default=0.0)
        self.diagnostics.value('highest rate [Hz]', f'{rate:.1f}' if rate else 'any')
        return rate

    def _work(self, image: Image | CompressedImage) -> None:
        started = time.process_time()       # of all threads, as the backward flow has one of its own
        if not self._look(image):
            return
        spent = time.process_time() - started
        self._pairs += 1
        if self._pairs > 1:     # the first one takes longer than all others
            self._cost += (spent - self._cost) * max(_FOLLOWS, 1 / (self._pairs - 1))
        self.diagnostics.value('processor time a pair [ms]', f'{1e3 * self._cost:.1f}')

    def _look(self, image: Image | CompressedImage) -> bool:
        """Publish the flow of an image; False if it has none."""
        engine, pairing = self._engine, self._pairing       # a parameter may change meanwhile
        frame = self._camera.frame(image)
        if frame is None:
            return False
        pair = pairing.pair(frame.resized(engine.config.width, engine.config.height))
        if pair is None:
            self.diagnostics.value('pairing restarted', pairing.restarted.value)
            return False
        result = engine.step(pair)
        # Read before `update`: the pair is what is published, not what follows it.
        moved, overlap = observed_motion(result)
        self.diagnostics.value('displacement [share of width]', f'{moved:.3f}')
        self.diagnostics.value('consistent pixels [share]', f'{overlap:.2f}')
        pairing.update(result)
        bundle.publish(self, self._bundle, result)
        return True
