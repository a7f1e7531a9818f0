"""`deepv2d`: camera tracking and dense depth from images, optional sensor depth and the flow bundle."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from depth_ros import files
from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine, is_learned
from depth_ros.engines.learned_depth import load
from depth_ros.engines.threads import give_way
from depth_ros.frames import CameraFrame, DepthResult, FlowResult, Scale, TrackResult, TrackStatus
from depth_ros.learning.trajectory import Trajectory, write_trajectory
from depth_ros.models.deepv2d import DeepV2D
from depth_ros.ros import bundle, codecs, diagnostics, params
from depth_ros.ros.camera import CameraConfig, CameraInput
from depth_ros.ros.codecs import BadMessage
from depth_ros.ros.depth_outputs import DepthOutputConfig, DepthOutputs, MapConfig, MapOutput
from depth_ros.ros.managed_node import ManagedNode
from depth_ros.ros.odometry_outputs import OdometryConfig, OdometryOutputs
from depth_ros.ros.sync import FrameMatcher, Matched, StampBuffer
from depth_ros.settings import setting

_REFERENCES = 64        # frames remembered as possible references of a flow bundle
_HITS = 8               # messages of range hits that may wait for the next image
_NO_TOPIC = 'none'      # what `depth` is remapped to where a sensor is not to be used
_NICENESS = 5           # of the thread of a keyframe's depth: tracking goes first
_LATE = 2.0             # [s] after its image was tracked, from which on a keyframe's depth is too late for a robot that drives
_DISCOVERY = 1.0        # [s] after the first image in which a depth sensor must be found


@dataclass(frozen=True)
class DeepV2DNodeConfig(CameraConfig):
    """Parameters of `deepv2d`."""

    depth_transport: str = setting('raw', 'how sensor depth comes: raw on `depth`, or compressedDepth on `depth/compressedDepth`', choices=('raw', 'compressedDepth'),
                                   read_only=True)
    depth_offset: float = setting(0.02, 'longest time between an image and the depth that belongs to it', 's', low=0.0, high=1.0, read_only=True)
    flow_patience: float = setting(1.0, 'silence of the flow bundle after which images are tracked without it', 's', low=0.05, high=60.0, read_only=True)
    free_scale: bool = setting(True, 'give poses and depth also while nothing tells their metre; false: until range hits do, poses are not trusted (large covariance, no TF) and '
                               'there is no depth')
    trajectory_file: str = setting('trajectory.txt', 'where save_trajectory writes (TUM text)')
    map_file: str = setting('map.ply', 'where save_map writes (PLY)')
    engine: DeepV2DConfig = params.included(DeepV2DConfig)
    odometry: OdometryConfig = params.included(OdometryConfig)
    output: DepthOutputConfig = params.included(DepthOutputConfig)
    map: MapConfig = params.included(MapConfig)


class KeyframeJob(NamedTuple):
    """Depth of a keyframe, yet to be worked out, and where it belongs."""

    later: Callable[[], DepthResult | None]
    engine: DeepV2DEngine
    T_odom_cam: np.ndarray | None   # (4, 4), None where it must not go into the map
    generation: int                 # of the map
    tracked: float                  # [s] by the monotonic clock, when its image had been tracked


class DeepV2DNode(ManagedNode):
    """Tracks the newest image and publishes odometry at once, then depth, points and map as far as somebody listens.

    Depth of a plane sweep or of the learned module, which takes as long as many images, is worked out in a thread of its own; tracking goes on meanwhile.
    """

    config_class = DeepV2DNodeConfig
    config: DeepV2DNodeConfig

    def __init__(self, **options: Any) -> None:
        self._odometry: OdometryOutputs | None = None
        super().__init__('deepv2d', **options)
        for name, answer in (('reset', self._on_reset), ('save_trajectory', self._on_save_trajectory), ('save_map', self._on_save_map)):
            self.service(Trigger, f'deepv2d/{name}', answer)

    def setup(self) -> None:
        """Make the engine and the publishers."""
        self._loaded: tuple[str, DeepV2D] | None = None     # weights as they are named, and their network
        self._choose(None if self._is_auto() else self.config.engine.depth)
        self._odometry = OdometryOutputs(self, self.config.odometry, 'deepv2d')
        self._depth_out = DepthOutputs(self, 'deepv2d')
        self._map = MapOutput(self, self.config.map, 'deepv2d/map')
        self._reset_wanted = False
        self._lap = self._lap_at_work = 0       # how often the clock jumped back
        self._engine_at_work: DeepV2DEngine | None = None       # the worker's last
        self._unit_at_work: tuple[Scale, int] | None = None     # of lengths: what they mean, and how often that was put right

    def start(self) -> None:
        """Listen to the camera, the depth sensor, the range hits and the flow."""
        self._matcher = FrameMatcher(self._source in (None, 'sensor'), True, int(self.config.depth_offset * 1e9), self.config.flow_patience)
        self._frames: StampBuffer[CameraFrame] = StampBuffer(_REFERENCES)
        self._hits: deque[Image] = deque(maxlen=_HITS)
        self._first_image: float | None = None      # steady time [s]
        self._flowed: float | None = None           # steady time [s] of the last image with flow, at first of the first image
        self._expected: float | None = None         # steady time [s] since when a depth sensor that was found has yet to send
        self._bundles_used = 0
        self._late: DeepV2DEngine | None = None     # whose last keyframe's depth was late
        self.diagnostics.clear('keyframe depth')
        self._map.start()
        self._newest = self.worker(self._work_on)
        self._keyframes = self.worker(self._work_keyframe, 'keyframe depth')
        self._camera = CameraInput(self, self._take_image, self._on_jump)
        compressed = self.config.depth_transport == 'compressedDepth'
        # As image_transport does: behind the name that `depth` is remapped to.
        kind, topic = (CompressedImage, f'{self.resolve_topic_name("depth")}/compressedDepth') if compressed else (Image, 'depth')
        self._depth = self.listen(kind, topic, self._take_depth, stalls=self._source == 'sensor')
        self._hits_input = self.listen(Image, 'sparse_depth/image', self._hits.append, stalls=False)
        self._bundle = bundle.BundleInput(self, self._take_bundle)

    def reconfigured(self, before: DeepV2DNodeConfig) -> None:
        """Track on from the last pose with the new settings."""
        if self.config.engine != before.engine:
            known = self._source if before.engine.depth == 'auto' else None
            self._choose(known if self._is_auto() else self.config.engine.depth)
            if self.state == 'active':      # else `start` sees to it
                if self._source is None:
                    self._first_image = None
                if not self._is_auto():
                    self._expected = None
                self._matcher.wants_depth = self._depth.stalls = self._source in (None, 'sensor')

    def teardown(self) -> None:
        """Let go of TF."""
        if self._odometry is not None:
            self._odometry.close()
            self._odometry = None

    # In the executor's thread: matching messages

    def _choose(self, source: str | None) -> None:
        """Make the engine for a source of depth; None: not known yet."""
        config = self.config.engine
        if self._is_auto():
            config = replace(config, depth=source or 'sensor', window=config.window and source != 'flow')
        self._engine = DeepV2DEngine(config, deferred=True, network=self._network(config))
        self._source = source

    def _network(self, config: DeepV2DConfig) -> DeepV2D | None:
        """That of the weights, if it is needed; only other weights are read again, for images do not wait."""
        if not is_learned(config):
            return None
        if self._loaded is None or self._loaded[0] != config.weights:
            self._loaded = config.weights, load(config.weights)
        return self._loaded[1]

    def _is_auto(self) -> bool:
        return self.config.engine.depth == 'auto'

    def _look_for_depth(self) -> None:
        """Settle where depth comes from: wait for the sensor until discovery has had its time."""
        topic, now = self._depth.topic, time.monotonic()
        if topic.rpartition('/')[2] == _NO_TOPIC:
            self._settle('flow', 'no topic of a sensor is given')
        elif self.count_publishers(topic) > 0:
            self._settle('sensor', f'{topic} is offered')
            self._expected = now
        elif now - self._first_image >= _DISCOVERY:
            self._settle('flow', f'nothing publishes {topic}')

    def _settle(self, source: str, why: str) -> None:
        self._choose(source)
        self._expected = None
        self._depth.stalls = self._matcher.wants_depth = source == 'sensor'
        waits = '; window: true waits for the sensor' if self.config.engine.window and source != 'sensor' else ''
        self.get_logger().info(f'depth comes from {"the sensor" if source == "sensor" else source}: {why}{waits}')

    def _take_image(self, image: Image | CompressedImage) -> None:
        self._first_image = self._first_image or time.monotonic()
        self._flowed = self._flowed or self._first_image
        if self._source is None:
            self._look_for_depth()
        elif self._expected is not None and time.monotonic() - self._expected > self.config.stale_after:
            self._settle('flow', f'{self._depth.topic} is offered, but nothing came on it for {self.config.stale_after:.1f} s')
        self._hand_on(self._matcher.put_image(codecs.stamp_ns(image.header.stamp), image, time.monotonic()))

    def _take_depth(self, depth: Image | CompressedImage) -> None:
        self._expected = None
        if self._is_auto() and self._source != 'sensor':
            self._settle('sensor', f'{self._depth.topic} has come')      # no better proof of one, however late
        if self._source == 'sensor':
            self._hand_on(self._matcher.put_depth(codecs.stamp_ns(depth.header.stamp), depth, time.monotonic()))

    def _take_bundle(self, stamp: int, parts: Mapping[str, Any]) -> None:
        self._hand_on(self._matcher.put_flow(stamp, parts, time.monotonic(), self._bundle.reference_stamp(parts)))

    def _hand_on(self, complete: list[Matched]) -> None:
        if self._source is None:
            return
        for together in self._grouped(complete):
            self._newest.put([(self._lap, matched) for matched in together])
            self._tell_flow(together[-1])
        self.diagnostics.value('images without depth', self._matcher.unmatched)
        self.diagnostics.value('images skipped by the flow', self._matcher.skipped)
        self.diagnostics.value('incomplete bundles', self._bundle.parts.incomplete)

    def _grouped(self, complete: list[Matched]) -> list[list[Matched]]:
        """Images one by one, but one that pairing began with together with the next, whose flow starts from it: it must not be overtaken."""
        groups: list[list[Matched]] = []
        for matched in complete:
            before = groups[-1][-1] if groups else None
            if before is not None and before.flow is None and matched.flow is not None and self._bundle.reference_stamp(matched.flow) == before.stamp:
                groups[-1].append(matched)
            else:
                groups.append([matched])
        return groups

    def _tell_flow(self, matched: Matched) -> None:
        now = time.monotonic()
        if matched.flow is not None:
            self._flowed = now
            self.diagnostics.clear('flow')
        elif now - (self._flowed or now) > self.config.flow_patience:     # not where pairing has just begun, as when the clock jumped back
            topic = self._bundle.inputs['flow'].topic
            self.diagnostics.hold('flow', diagnostics.WARN, f'no flow on {topic} for {self.config.flow_patience:.1f} s: it is computed here, at a higher cost')

    def _on_jump(self, stamp: int) -> None:
        self._matcher.rewind(stamp)
        self._bundle.parts.clear()
        self._lap += 1

    # In the worker's thread

    def _work_on(self, jobs: list[tuple[int, Matched]]) -> None:
        for job in jobs:
            self._work(*job)

    def _work(self, lap: int, matched: Matched) -> None:
        engine = self._engine       # a parameter may change meanwhile
        self._begin_anew(engine, lap)
        frame = self._camera.frame(matched.image, matched.depth, self._depth)
        if frame is None:
            return
        frame = frame.resized(engine.config.width, engine.config.height)
        self._put_hits(engine)
        track, depth = engine.step(frame, self._flow_of(matched, frame))
        self._frames.put(frame.stamp, frame)
        reason, later = engine.reason, engine.later
        if track.scale is Scale.FREE and track.status is TrackStatus.OK and not self.config.free_scale:
            track, depth, later = replace(track, status=TrackStatus.INITIALISING), None, None
            reason = f'{reason}; poses and depth wait for them, as free_scale: false asks for'
        self._tell_state(track, reason)
        self._heed_unit(track, engine)
        T_odom_cam = self._odometry.publish(track, frame.frame_id)
        T_map_cam = T_odom_cam if track.status is TrackStatus.OK else None
        if later is not None:
            self._keyframes.put(KeyframeJob(later, engine, T_map_cam, self._map.generation, time.monotonic()))
        if depth is not None:
            self._publish_depth(depth, T_map_cam, self._map.generation)

    def _publish_depth(self, depth: DepthResult, T_odom_cam: np.ndarray | None, generation: int) -> None:
        self._depth_out.publish(depth, self.config.output)
        if T_odom_cam is not None:
            self._map.put(depth, T_odom_cam, self.config.odometry.odom_frame, self.config.map, generation)

    def _work_keyframe(self, job: KeyframeJob) -> None:
        """In a thread of its own: depth of a keyframe, unless engine, path or map began anew since it was tracked."""
        if not self._is_current(job):
            return
        give_way(_NICENESS)
        depth = job.later()
        self.diagnostics.value('keyframe depth', job.engine.depth_reason or 'ok')
        if depth is not None and self._is_current(job):
            self._publish_depth(depth, job.T_odom_cam, job.generation)
            self._tell_delay(job, time.monotonic() - job.tracked)

    def _tell_delay(self, job: KeyframeJob, delay: float) -> None:
        """Warn as long as keyframes' depth comes late; one alone may have warmed something up."""
        again, self._late = self._late is job.engine, job.engine if delay > _LATE else None
        if self._late is not None and again:
            self.diagnostics.hold('keyframe depth', diagnostics.WARN,
                                  f'depth from {job.engine.config.depth} comes {delay:.1f} s after its image was tracked: this machine has too little time for it')
        if self._late is None or not self._is_current(job):     # it may have begun anew meanwhile
            self.diagnostics.clear('keyframe depth')

    def _is_current(self, job: KeyframeJob) -> bool:
        return job.engine is self._engine_at_work and job.generation == self._map.generation

    def _begin_anew(self, engine: DeepV2DEngine, lap: int) -> None:
        """Reset where asked to, and restart with the first image after the clock jumped back: not before, for older ones may still wait."""
        if engine is not self._engine_at_work:
            # Here, not where it is made: until now its predecessor may still have been at a frame, whose pose is in its own frame.
            self._odometry.rebase()
            self._frames.clear()
            self._engine_at_work = engine
            self.diagnostics.clear('keyframe depth')
        reset, self._reset_wanted = self._reset_wanted, False
        if reset:
            engine.reset()
            self._odometry.relocate()
        elif lap != self._lap_at_work:
            # A bag that loops puts the camera elsewhere: what was seen before no longer fits.
            engine.reset(keep_pose=True)
            self._odometry.restart()
        else:
            return
        self._map.clear()
        self._frames.clear()
        self._lap_at_work = lap

    def _heed_unit(self, track: TrackResult, engine: DeepV2DEngine) -> None:
        """Begin map and path anew when lengths change their unit: free ones, metric ones and wrong metric ones do not mix."""
        if track.status is not TrackStatus.OK:
            return
        unit = track.scale, engine.scale_restarts
        if self._unit_at_work not in (None, unit):
            self.get_logger().info(f'lengths are {"in metres" if track.scale is Scale.METRIC else "in a free unit"} from here on: path and map begin anew')
            self._odometry.change_unit()
            self._map.clear()
        self._unit_at_work = unit

    def _flow_of(self, matched: Matched, frame: CameraFrame) -> FlowResult | None:
        """The flow of a frame to its reference, or None where it cannot be used."""
        if matched.flow is None:
            return None
        reference = self._frames.get(self._bundle.reference_stamp(matched.flow))
        if reference is None:
            return None     # it was dropped here: overload, or just started
        try:
            result = self._bundle.result(matched.flow, frame, reference)
        except BadMessage as error:
            self.diagnostics.complain('flow', str(error))
            return None
        if result.pair.current.size != frame.size:
            self.diagnostics.complain('flow', f'{self._bundle.inputs["flow"].topic}: got flow of {result.pair.current.size} pixels, but tracking works at {frame.size}; '
                                              'give both nodes the same width and height')
            return None
        self._bundles_used += 1
        self.diagnostics.value('flow bundles used', self._bundles_used)
        return result

    def _put_hits(self, engine: DeepV2DEngine) -> None:
        """Give the engine what range hits came meanwhile: it knows the image of each, which they may be late for. With a sensor nobody needs them."""
        for hits in [self._hits.popleft() for _ in range(len(self._hits))]:
            if self._source == 'sensor':
                continue
            try:
                engine.put_hits(codecs.stamp_ns(hits.header.stamp), codecs.depth_array(hits, self._hits_input.topic)[0])
            except BadMessage as error:
                self.diagnostics.reject(self._hits_input, str(error))

    def _tell_state(self, track: TrackResult, reason: str) -> None:
        diagnose = self.diagnostics
        diagnose.value('tracking', track.status.value)
        diagnose.value('inliers [share]', f'{track.inlier_ratio:.2f}')
        diagnose.value('scale', track.scale.value)
        diagnose.value('motion from', self.config.engine.motion)
        diagnose.value('depth from', self._source)
        if track.status is TrackStatus.LOST:
            diagnose.hold('tracking', diagnostics.ERROR, 'tracking is lost: looking for a known place; `deepv2d/reset` starts afresh')
        elif reason:
            diagnose.hold('tracking', diagnostics.WARN, reason)
        else:
            diagnose.clear('tracking')

    # Services

    def _on_reset(self, _request: Trigger.Request) -> tuple[bool, str]:
        if self.state != 'active':
            return False, f'the node is {self.state}'
        if self._is_auto():
            self._source = self._first_image = None     # a sensor may have come or gone
            self._matcher.wants_depth = True
        self._reset_wanted = True
        return True, 'odometry starts afresh with the next image'

    def _on_save_trajectory(self, _request: Trigger.Request) -> tuple[bool, str]:
        poses = self._odometry.trail.poses() if self._odometry is not None else []
        if not poses:
            return False, 'no pose has been tracked yet'
        path = Path(self.config.trajectory_file).expanduser().absolute()
        try:
            with files.whole(path) as partial:
                write_trajectory(partial, Trajectory(np.array([stamp for stamp, _ in poses], np.int64), np.stack([T for _, T in poses])))
        except (OSError, ValueError) as error:
            return False, f'cannot write {path}: {error}'
        return True, f'{path}'

    def _on_save_map(self, _request: Trigger.Request) -> tuple[bool, str]:
        if self._odometry is None:
            return False, f'the node is {self.state}'
        path = Path(self.config.map_file).expanduser().absolute()
        try:
            points = self._map.save(path)
        except OSError as error:
            return False, f'cannot write {path}: {error}'
        return (True, f'{path}') if points else (False, 'the map has no points yet')
