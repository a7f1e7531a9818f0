"""`online_learning`: a depth network that keeps learning from sparse range hits while the robot drives, and hands out what it learned."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.clock import Clock, ClockType
from rclpy.timer import Timer
from sensor_msgs.msg import Image
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import SetBool, Trigger

from depth_ros import files
from depth_ros.engines import depth_networks
from depth_ros.engines.depth_networks import NAME, VARIANTS, variant_of
from depth_ros.engines.flow_guide import FlowGuide
from depth_ros.engines.hit_memory import HitMemory
from depth_ros.engines.learner_file import LearnerFile
from depth_ros.engines.online_learner import OnlineLearner
from depth_ros.engines.online_settings import OnlineLearnerConfig, State
from depth_ros.engines.range_projection import resize_hits
from depth_ros.engines.rehearsal import PAIRS, rehearsal_pairs
from depth_ros.engines.threads import give_way_as_session
from depth_ros.frames import FlowResult
from depth_ros.learning.pairs import PairBatch
from depth_ros.models import checkpoint
from depth_ros.ros import bundle, codecs, diagnostics, params
from depth_ros.ros.codecs import BadMessage
from depth_ros.ros.learning_outputs import LearningMetrics, LearningViews
from depth_ros.ros.managed_node import LATCHED_QOS, ManagedNode, NodeConfig
from depth_ros.ros.pair_matching import Pair, PairMatcher, Patience
from depth_ros.ros.pose_history import PoseHistory
from depth_ros.ros.sync import Order
from depth_ros.settings import setting

_LEVELS = {State.HITS: diagnostics.WARN, State.ROLLED_BACK: diagnostics.WARN, State.DEAD: diagnostics.ERROR}       # the other states are no trouble


@dataclass(frozen=True)
class OnlineLearningNodeConfig(NodeConfig):
    """Parameters of `online_learning`."""

    variant: str = setting('pose_aware', 'the network that learns: the published one, or the pose-aware one', choices=VARIANTS, while_active=False)
    weights: str = setting('', 'checkpoint of the variant that learning begins with (safetensors); empty: the one that comes with the package', while_active=False)
    width: int = setting(64, 'image width that is learned at; weights serve other sizes too', 'px', 32, 1920, while_active=False)
    height: int = setting(48, 'image height that is learned at', 'px', 24, 1200, while_active=False)
    rehearse: int = setting(PAIRS, "synthetic pairs that it goes back to, so that it does not forget what it came with; rendered into the user's cache once, in some ten seconds; "
                                   '0: none, or at least 2', '', 0, 100000, while_active=False)
    state_file: str = setting('', "where what was learned survives a restart; empty: a file in the user's cache for this node, variant and these weights", while_active=False)
    resume: bool = setting(True, 'go on from that file; false: begin with the weights of the parameter, and write it anew', while_active=False)
    keep_observations: int = setting(100, 'of what is remembered, images of where the robot was among it, so many at most are kept beside that file when the node stops and when it '
                                          'saves, so that a restart need not gather them afresh, some 30 kB each; 0: none', '', 0, 10000)
    keep_every: float = setting(0.0, 'and also this often while it learns; 0: only then, for flash memory wears', 's', 0.0, 86400.0)
    weights_file: str = setting('learned.safetensors', 'where the service `online_learning/save` writes: a checkpoint as `weights` takes it')
    pair_rate: float = setting(5.0, 'highest rate, as they arrive (by their stamps with batches_per_pair), at which image pairs are taken in; fewer where that would take more than half of the share', 'Hz', 0.1, 100.0)
    batches_per_pair: int = setting(0, 'learn so many batches from each pair before the next is looked at, so that the same pairs give the same weights on any machine; '
                                    '0: as many as the CPU budget allows, in a thread of its own', '', 0, 1000, while_active=False)
    hits_offset: float = setting(0.1, 'longest time between an image and hits of an earlier one, which the odometry then moves into it', 's', 0.0, 1.0)
    hits_patience: float = setting(0.5, 'longest wait of a pair for range hits', 's', 0.0, 5.0)
    odometry_patience: float = setting(0.5, 'longest wait of a pair for the odometry of its image', 's', 0.0, 5.0)
    view_rate: float = setting(2.0, 'highest rate of the depth before and after learning, and of the image with its hits, which are made while somebody listens', 'Hz', 0.1, 100.0)
    learner: OnlineLearnerConfig = params.included(OnlineLearnerConfig)


class Job(NamedTuple):
    """One pair with what was known of it when it came."""

    epoch: tuple[int, int]                  # jumps of the clock, breaks of the odometry
    pair: Pair
    T_ref_cur: np.ndarray | None            # (4, 4) [m]
    T_odom_cam: np.ndarray | None           # (4, 4) [m]
    T_odom_hits: np.ndarray | None          # (4, 4) [m], the camera at the stamp of the hits


class OnlineLearningNode(ManagedNode):
    """Gives pairs with hits and motion to a learner, and what it hands out to whoever listens and to a file. No other node need run on this machine."""

    config_class = OnlineLearningNodeConfig
    config: OnlineLearningNodeConfig

    def __init__(self, **options: Any) -> None:
        self._poses: PoseHistory | None = None
        self._learner: OnlineLearner | None = None
        self._file: LearnerFile | None = None
        self._timer: Timer | None = None
        self._saved: tuple[Path, int] | None = None     # where the service saved last, and the number of the weights
        self._handing_out = threading.Lock()        # a learner that is let go of hands out nothing afterwards
        super().__init__('online_learning', **options)
        self.service(SetBool, 'online_learning/pause', self._on_pause)
        self.service(Trigger, 'online_learning/reset', self._on_reset)
        self.service(Trigger, 'online_learning/save', self._on_save)

    def setup(self) -> None:
        """Load the network, go on from what was learned before, and make the publishers."""
        weights = Path(self.config.weights).expanduser() if self.config.weights else depth_networks.shipped(self.config.variant)
        start = checkpoint.load(weights, NAME)
        if variant_of(start.model) != self.config.variant:
            raise ValueError(f'{weights}: expected weights of the {self.config.variant} variant, got {variant_of(start.model)}')
        self._file = self._held_file(weights)
        self._learner = OnlineLearner(start, self.config.learner, rehearsal=self._rehearsal())
        self._learner.offer_to(partial(self._offer, self._learner))
        self._restore()
        self._owes_first = False        # the weights that learning began with, to those who have later ones, once the node is active
        self._guide = FlowGuide()
        self._poses = PoseHistory(self)
        self._weights = self.publisher(UInt8MultiArray, 'online_learning/weights', LATCHED_QOS)
        self._metrics = LearningMetrics(self, self._learner)
        self._views = LearningViews(self, self._learner)

    def _held_file(self, weights: Path) -> LearnerFile | None:
        """The file that survives a restart. Where the cache cannot be written, learning goes on without, and says so."""
        if self.config.state_file:
            return LearnerFile(Path(self.config.state_file).expanduser().absolute())
        # By what it began with: other weights must not go on from these, nor two robots on one machine from each other's.
        key = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        name = f'{self.get_fully_qualified_name().strip("/").replace("/", "-")}-{self.config.variant}-{key}'
        try:
            return LearnerFile.free(files.user_cache() / 'online_learning', name)
        except OSError as error:
            self.diagnostics.hold('state file', diagnostics.ERROR, f'what is learned cannot be kept over a restart: {error}')
            return None

    def _rehearsal(self) -> PairBatch | None:
        """Pairs to rehearse. Where the cache cannot be written, or its disk is full, learning goes on without, and says so."""
        self.diagnostics.clear('rehearsal')
        if not self.config.rehearse:
            return None
        try:
            self.get_logger().info(f"makes {self.config.rehearse} synthetic pairs ready to rehearse; the first time they are rendered into the user's cache, in some ten seconds")
            since = time.monotonic()
            pairs = rehearsal_pairs(self.config.width, self.config.rehearse)
            self.get_logger().info(f'they are ready after {time.monotonic() - since:.1f} s')
            return pairs
        except OSError as error:
            self.diagnostics.hold('rehearsal', diagnostics.WARN, f'learns without synthetic pairs, and may forget what it came with, for they cannot be kept: {error}')
            return None

    def _restore(self) -> None:
        """Go on from the file. One of the cache that cannot be used is set aside: a robot must not stay without learning for it."""
        if self._file is None or not self.config.resume:
            return
        try:
            if self._file.restore(self._learner):
                self.get_logger().info(f'goes on with weights {self._learner.progress.number} of {self._file.path}; resume:=false begins anew')
                self._remember()
        except ValueError as error:
            if self.config.state_file:
                raise
            self.get_logger().error(f'begins anew, for what was learned cannot be used and is now {self._file.set_aside()}: {error}')

    def _remember(self) -> None:
        """Go on with the observations that were kept beside the weights, or with none."""
        try:
            count = self._learner.restore_observations(self._file.observations) if self.config.keep_observations else 0
            self.get_logger().info(f'remembers {count} observations of before')
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self.get_logger().warning(f'begins with nothing remembered: {error}')

    def start(self) -> None:
        """Listen to the flow bundle, the range hits and the odometry, and learn."""
        if not self._learner.stop(0.0):
            raise ValueError('the learner is still at a batch since the node was deactivated; try again when it has ended')
        self.diagnostics.clear('learner')
        self._matcher = PairMatcher()
        self._lap = self._left_out = 0
        self._concerns: set[str] = set()        # kinds that the log has
        self.diagnostics.value('pairs left out for want of time', 0)
        self._epoch_at_work = 0, self._poses.breaks
        self._newest = self.worker(self._work)
        self._keeper, self._kept_at = self.worker(lambda _: self._keep_observations(), 'observations'), time.monotonic()
        self._bundle = bundle.BundleInput(self, self._take_bundle, images=True)
        self._hits_input = self.listen(Image, 'sparse_depth/image', self._take_hits)
        self._odometry_input = self.listen(Odometry, 'deepv2d/odometry', self._take_odometry)
        self._timer = self.create_timer(1.0, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        if self._learner.progress.number or self._owes_first:
            self._publish(self._learner.weights())
            self._owes_first = False
        if not self.config.batches_per_pair:
            give_way_as_session(self.config.learner.niceness)
            self._learner.start()
        self._tell()

    def halt(self) -> None:
        """End learning after the batch that it is at."""
        if self._learner is not None:
            self._learner.stop(0.0)

    def stop(self) -> None:
        """Keep what was learned, once nobody learns any more."""
        if self._poses is not None:
            self._poses.clear()
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        if self._learner is None:
            return
        if not self._learner.stop(self.patience):
            self.diagnostics.hold('learner', diagnostics.ERROR, 'still at a batch long after it was told to end; what was handed out last is kept')
        elif self._learner.progress.observed and not self.is_abandoned:     # a worker that learns would not let go of it
            self._keep()
            self._keep_observations()

    def teardown(self) -> None:
        """Let go of TF, the network and the file."""
        if self._poses is not None:
            self._poses.close()
        with self._handing_out:
            if self._file is not None:
                self._file.close()
            self._poses = self._learner = self._file = None

    def reconfigured(self, before: OnlineLearningNodeConfig) -> None:
        """Learn on with the new settings; what is only heeded at the beginning is refused."""
        fixed = [name for name, fact in params.facts_of(OnlineLearningNodeConfig).items()
                 if not fact.setting.while_active and params.value_of(self.config, fact) != params.value_of(before, fact)]
        if fixed:
            raise ValueError(f'{", ".join(fixed)}: cannot change while the node is configured; clean it up first (`ros2 lifecycle set NODE cleanup`)')
        self._learner.change(self.config.learner)

    # In the executor's thread: matching messages

    def _take_bundle(self, stamp: int, parts: Mapping[str, Any]) -> None:
        order = self._bundle.sort(stamp)
        if order is Order.LATE:
            return
        if order is Order.JUMP:
            self._lap += 1
            self._matcher.clear()
            self._poses.rewind(stamp)
        self._matcher.put_pair(stamp, parts, time.monotonic())
        self._release()

    def _take_hits(self, hits: Image) -> None:
        self._matcher.put_hits(hits, time.monotonic())
        self._release()

    def _take_odometry(self, message: Odometry) -> None:
        self._matcher.heard_odometry(time.monotonic())
        if self._poses.take(message, self._odometry_input):
            self._release()

    def _release(self) -> None:
        config = self.config
        patience = Patience(config.hits_patience, config.odometry_patience, config.hits_offset, config.pair_rate, by_stamps=config.batches_per_pair > 0)
        for pair in self._matcher.take(time.monotonic(), self._poses.newest, patience):
            camera, hits_stamp = pair.parts['image'].header.frame_id, pair.stamp if pair.hits is None else codecs.stamp_ns(pair.hits.header.stamp)
            T_ref_cur = self._poses.motion(self._bundle.reference_stamp(pair.parts), pair.stamp, camera)
            places = [self._poses.pose(stamp, camera) for stamp in (pair.stamp, hits_stamp)]
            self._newest.put(Job((self._lap, self._poses.breaks), pair, T_ref_cur, *places))

    # In the worker's thread

    def _work(self, job: Job) -> None:
        if job.epoch != self._epoch_at_work:
            self._guide.reset()
            self._learner.forget_places()
            self._epoch_at_work = job.epoch
        if self._learner.has_enough and not self.config.batches_per_pair:
            self._left_out += 1
            self.diagnostics.value('pairs left out for want of time', self._left_out)
            return
        try:
            result = self._bundle.whole_result(job.pair.parts)
            hits = self._hits_of(job, result)
        except BadMessage as error:
            self._bundle.refuse(error, self._hits_input)
            return
        self.diagnostics.clear('camera_info')
        with self._learner.taking_in():
            guide = self._guide.step(result, job.T_ref_cur, job.T_odom_cam)
        small = result.resized(self.config.width, self.config.height)
        self._learner.observe(small, job.T_ref_cur, hits, job.T_odom_cam, guide)
        if self._learner.hangs:
            self._guide.reset()
        if self.config.batches_per_pair:
            self._learner.learn(self.config.batches_per_pair)
        if job.T_ref_cur is not None:
            self._views.publish(result, job.T_ref_cur, hits, guide, self.config.view_rate)

    def _hits_of(self, job: Job, result: FlowResult) -> np.ndarray | None:
        """The range hits (H, W) [m] of a pair's current image at the flow's size, 0 where none; those of an earlier image are moved, or left out where the motion is not known.

        Raises BadMessage.
        """
        message, frame = job.pair.hits, result.pair.current
        if message is None:
            return None
        if message.header.frame_id != frame.frame_id:
            raise BadMessage(self._hits_input.topic, f'hits in the frame {message.header.frame_id!r}', f'those in the camera of the flow, {frame.frame_id!r}')
        hits, stamp = resize_hits(codecs.depth_array(message, self._hits_input.topic)[0], frame.size), codecs.stamp_ns(message.header.stamp)
        if stamp == frame.stamp:
            return hits
        if job.T_odom_cam is None or job.T_odom_hits is None:
            return None
        memory = HitMemory(self.config.hits_offset)
        memory.add(stamp, hits, frame.K, job.T_odom_hits)
        return memory.seen(frame.stamp, frame.K, frame.size, job.T_odom_cam)

    # In the learner's thread

    def _offer(self, learner: OnlineLearner, blob: bytes) -> None:
        """Keep new weights, then hand them out: what others have is never newer than what a restart finds."""
        with self._handing_out:
            if self._learner is learner:       # else it was let go of in the midst of a batch, and there may be another by now
                self._keep()
                self._publish(blob)

    def _publish(self, blob: bytes) -> None:
        self.tell(self._weights, UInt8MultiArray(data=array('B', blob)))

    def _keep(self) -> None:
        if self._file is None:
            return      # which was told
        try:
            self._learner.save(self._file.path)
        except OSError as error:
            self.diagnostics.hold('state file', diagnostics.ERROR, f'what is learned cannot be kept over a restart: cannot write {self._file.path}: {error}')
        else:
            self.diagnostics.clear('state file')

    def _keep_observations(self) -> None:
        """Write what is remembered beside the weights."""
        most, file, learner = self.config.keep_observations, self._file, self._learner
        if file is None or learner is None or not most:
            return
        try:
            learner.save_observations(file.observations, most)
        except OSError as error:
            self.diagnostics.hold('observations', diagnostics.WARN, f'what is remembered cannot be kept over a restart: cannot write {file.observations}: {error}')
        else:
            self.diagnostics.clear('observations')

    # In the executor's thread again: what it tells, and services

    def _tick(self) -> None:
        self._release()     # what has waited long enough though nothing else came
        every, now = self.config.keep_every, time.monotonic()
        if every and now - self._kept_at >= every:
            self._kept_at = now
            self._keeper.put(None)
        self._tell()

    def _tell(self) -> None:
        learner, age = self._learner, self._bundle.inputs['flow'].age()
        if age > self.config.stale_after:
            learner.miss(f'no image pair has come for {age:.0f} s')
        self._metrics.publish()
        self._tell_saved()
        state, reason = learner.state, learner.reason
        if state is State.LEARNING and (concern := learner.concern):
            self._log_concern(concern)
            self.diagnostics.hold('learning', diagnostics.WARN, concern, logged=True)
        elif state is State.LEARNING:
            self.diagnostics.clear('learning')
        else:
            self.diagnostics.hold('learning', _LEVELS.get(state, diagnostics.OK), f'{state.value}: {reason}' if reason and state is not State.PAUSED else state.value, logged=True)

    def _log_concern(self, concern: str) -> None:
        """Once for each kind, whatever the figures in it: diagnostics tell the rest."""
        kind = re.sub(r'[\d.%]+', '', concern)
        if kind not in self._concerns:
            self._concerns.add(kind)
            self.get_logger().warning(concern)

    def _tell_saved(self) -> None:
        """Say so while weights that were saved for use are not served here, for they do harm or are not trusted."""
        if self._saved is not None and self._learner.progress.serves_frozen:
            path, number = self._saved
            self.diagnostics.hold('saved', diagnostics.WARN, f'{path} holds weights {number}, which this node no longer hands out itself: {self._learner.setback}')
        else:
            self.diagnostics.clear('saved')

    def _on_pause(self, request: SetBool.Request) -> tuple[bool, str]:
        if self._learner is None:
            return False, f'the node is {self.state}'
        self._learner.pause(request.data)
        if self.state == 'active':
            self._tell()
        return True, self._learner.state.value

    def _on_reset(self, _request: Trigger.Request) -> tuple[bool, str]:
        if self._learner is None:
            return False, f'the node is {self.state}'
        self._learner.reset()
        self._keep()
        self._owes_first = self.state != 'active'
        if not self._owes_first:
            self._publish(self._learner.weights())
        try:
            if self._file is not None:
                self._file.observations.unlink(missing_ok=True)
        except OSError as error:
            return False, f'learning begins anew, but a restart will remember what came before, for its file cannot be removed: {error}'
        return True, 'learning begins anew with the weights that it once began with'

    def _on_save(self, _request: Trigger.Request) -> tuple[bool, str]:
        if self._learner is None:
            return False, f'the node is {self.state}'
        path = Path(self.config.weights_file).expanduser().absolute()
        try:
            self._saved = path, self._learner.export(path)
        except ValueError as error:
            return False, str(error)
        except OSError as error:
            return False, f'cannot write {path}: {error}'
        if self.state == 'active':
            self._keeper.put(None)      # which takes its time, and messages come meanwhile
        else:
            self._keep_observations()
        return True, f'{path}'
