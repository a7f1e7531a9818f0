"""`deepv2d`: camera tracking and dense depth from images, optional sensor depth and the flow bundle."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from depth_ros import files
from depth_ros.engines.deepv2d import DeepV2DConfig, DeepV2DEngine
from depth_ros.frames import CameraFrame, DepthResult, FlowResult, Scale, TrackResult, TrackStatus
from depth_ros.learning.trajectory import Trajectory, write_trajectory
from depth_ros.ros import bundle, codecs, diagnostics, params
from depth_ros.ros.camera import CameraConfig, CameraInput
from depth_ros.ros.codecs import BadMessage
from depth_ros.ros.depth_outputs import DepthOutputConfig, DepthOutputs, MapConfig, MapOutput
from depth_ros.ros.managed_node import ManagedNode
from depth_ros.ros.odometry_outputs import OdometryConfig, OdometryOutputs
from depth_ros.ros.sync import FrameMatcher, Matched, StampBuffer
from depth_ros.settings import setting

_REFERENCES = 64        # frames remembered as possible references of a flow bundle


@dataclass(frozen=True)
class DeepV2DNodeConfig(CameraConfig):
    """Parameters of `deepv2d`."""

    depth_transport: str = setting('raw', 'how sensor depth comes: raw on `depth`, or compressedDepth on `depth/compressedDepth`', choices=('raw', 'compressedDepth'),
                                   read_only=True)
    depth_offset: float = setting(0.02, 'longest time between an image and the depth that belongs to it', 's', low=0.0, high=1.0, read_only=True)
    flow_patience: float = setting(1.0, 'silence of the flow bundle after which images are tracked without it', 's', low=0.05, high=60.0, read_only=True)
    trajectory_file: str = setting('trajectory.txt', 'where save_trajectory writes (TUM text)')
    map_file: str = setting('map.ply', 'where save_map writes (PLY)')
    engine: DeepV2DConfig = params.included(DeepV2DConfig)
    odometry: OdometryConfig = params.included(OdometryConfig)
    output: DepthOutputConfig = params.included(DepthOutputConfig)
    map: MapConfig = params.included(MapConfig)


class DeepV2DNode(ManagedNode):
    """Tracks the newest image and publishes odometry at once, then depth, points and map as far as somebody listens."""

    config_class = DeepV2DNodeConfig
    config: DeepV2DNodeConfig

    def __init__(self, **options: Any) -> None:
        self._odometry: OdometryOutputs | None = None
        super().__init__('deepv2d', **options)
        for name, answer in (('reset', self._on_reset), ('save_trajectory', self._on_save_trajectory), ('save_map', self._on_save_map)):
            self.create_service(Trigger, f'deepv2d/{name}', answer)

    def setup(self) -> None:
        """Make the engine and the publishers."""
        self._engine = DeepV2DEngine(self.config.engine)
        self._odometry = OdometryOutputs(self, self.config.odometry, 'deepv2d')
        self._depth_out = DepthOutputs(self, 'deepv2d')
        self._map = MapOutput(self, self.config.map, 'deepv2d/map')
        self._reset_wanted = self._restart_wanted = False
        self._T_odom_cam: np.ndarray | None = None

    def start(self) -> None:
        """Listen to the camera, the depth sensor and the flow."""
        self._matcher = FrameMatcher(self.config.engine.depth == 'sensor', True, int(self.config.depth_offset * 1e9), self.config.flow_patience)
        self._frames: StampBuffer[CameraFrame] = StampBuffer(_REFERENCES)
        self._newest = self.worker(self._work)
        self._camera = CameraInput(self, self._take_image, self._on_jump)
        compressed = self.config.depth_transport == 'compressedDepth'
        kind, topic = (CompressedImage, 'depth/compressedDepth') if compressed else (Image, 'depth')
        self._depth = self.listen(kind, topic, self._take_depth, stalls=self.config.engine.depth == 'sensor')
        self._bundle = bundle.BundleInput(self, self._take_bundle)

    def teardown(self) -> None:
        """Let go of TF."""
        if self._odometry is not None:
            self._odometry.close()
            self._odometry = None

    # In the executor's thread: matching messages

    def _take_image(self, image: Image | CompressedImage) -> None:
        self._hand_on(self._matcher.put_image(codecs.stamp_ns(image.header.stamp), image, time.monotonic()))

    def _take_depth(self, depth: Image | CompressedImage) -> None:
        self._hand_on(self._matcher.put_depth(codecs.stamp_ns(depth.header.stamp), depth, time.monotonic()))

    def _take_bundle(self, stamp: int, parts: Mapping[str, Any]) -> None:
        self._hand_on(self._matcher.put_flow(stamp, parts, time.monotonic()))

    def _hand_on(self, complete: list[Matched]) -> None:
        for matched in complete:
            self._newest.put(matched)
        self.diagnostics.value('images without depth', self._matcher.unmatched)
        self.diagnostics.value('images skipped by the flow', self._matcher.skipped)

    def _on_jump(self) -> None:
        self._matcher.clear()
        self._bundle.parts.clear()
        self._restart_wanted = True

    # In the worker's thread

    def _work(self, matched: Matched) -> None:
        self._begin_anew()
        frame = self._camera.frame(matched.image, matched.depth, self._depth)
        if frame is None:
            return
        track, depth = self._engine.step(frame, self._flow_of(matched, frame))
        self._frames.put(frame.stamp, frame)
        self._tell_state(track)
        T_odom_cam = self._odometry.publish(track, frame.frame_id)
        if depth is None:
            return
        self._depth_out.publish(depth, self.config.output)
        if track.status is TrackStatus.OK and track.is_keyframe and T_odom_cam is not None:
            self._map.add(depth, T_odom_cam, self.config.map)
        self._map.publish(frame.stamp, self.config.odometry.odom_frame, self.config.map)

    def _begin_anew(self) -> None:
        """What the executor's thread asked for: the engine belongs to this one."""
        if self._reset_wanted:
            self._engine.reset()
            self._odometry.relocate()
            self._map.clear()
        elif self._restart_wanted:
            # A bag that loops puts the camera elsewhere: what was seen before no longer fits.
            self._engine.reset(keep_pose=True)
            self._odometry.restart()
            self._map.clear()
            self._frames.clear()
        self._reset_wanted = self._restart_wanted = False

    def _flow_of(self, matched: Matched, frame: CameraFrame) -> FlowResult | None:
        """The flow of a frame to its reference, or None where it cannot be used."""
        if matched.flow is None:
            return None
        reference = self._frames.get(self._bundle.reference_stamp(matched.flow))
        if reference is None:
            return None     # it was dropped here: overload, or just started
        try:
            return self._bundle.result(matched.flow, frame, reference, 1.0)
        except BadMessage as error:
            self.diagnostics.complain('flow', str(error))
            return None

    def _tell_state(self, track: TrackResult) -> None:
        diagnose = self.diagnostics
        diagnose.value('tracking', track.status.value)
        diagnose.value('inliers [share]', f'{track.inlier_ratio:.2f}')
        diagnose.value('scale', track.scale.value)
        if track.status is TrackStatus.LOST:
            diagnose.hold('lost', diagnostics.ERROR, 'tracking is lost: looking for a known place; `deepv2d/reset` starts afresh')
        else:
            diagnose.clear('lost')
        if track.scale is Scale.FREE:
            diagnose.hold('scale', diagnostics.WARN, 'scale is free: no depth sensor and no range hits, so lengths are in a unit of their own, not metres')
        else:
            diagnose.clear('scale')

    # Services

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._odometry is None:
            return _answer(response, False, f'the node is {self.state}')
        self._reset_wanted = True
        return _answer(response, True, 'odometry starts afresh with the next image')

    def _on_save_trajectory(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        poses = self._odometry.trail.poses() if self._odometry is not None else []
        if not poses:
            return _answer(response, False, 'no pose has been tracked yet')
        path = Path(self.config.trajectory_file).expanduser().absolute()
        try:
            with files.whole(path) as partial:
                write_trajectory(partial, Trajectory(np.array([stamp for stamp, _ in poses], np.int64), np.stack([T for _, T in poses])))
        except (OSError, ValueError) as error:
            return _answer(response, False, f'cannot write {path}: {error}')
        return _answer(response, True, f'{path}')

    def _on_save_map(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._odometry is None:
            return _answer(response, False, f'the node is {self.state}')
        path = Path(self.config.map_file).expanduser().absolute()
        try:
            self._map.save(path)
        except OSError as error:
            return _answer(response, False, f'cannot write {path}: {error}')
        return _answer(response, True, f'{path}')


def _answer(response: Trigger.Response, success: bool, message: str) -> Trigger.Response:
    response.success, response.message = success, message
    return response
