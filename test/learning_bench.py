"""For the tests of the learning node: the node, and a tester that plays the flow node, the tracker and the range sensor in front of a wall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import global_local_support as support
import numpy as np
import pytest
import ros_support
import torch
from diagnostic_msgs.msg import DiagnosticArray
from global_local_bench import Bench
from nav_msgs.msg import Odometry
from sensor_msgs.msg import Image
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import SetBool, Trigger

from depth_ros.engines import depth_networks
from depth_ros.frames import FlowResult, ImagePair
from depth_ros.models import checkpoint
from depth_ros.ros import bundle, codecs
from depth_ros.ros.managed_node import LATCHED_QOS
from depth_ros.ros.online_learning_node import OnlineLearningNode

PAIR = 300_000_000      # [ns] from a reference to its current image
APART = 1_500_000_000   # [ns] from pair to pair
BIAS = 0.2              # of the log of depth, by which the network errs at first: a lesson that there is to learn
BEGIN = 10 ** 18
AGAIN = 3.0             # [s] after which a pair that nobody heard is sent again: less than the node waits for hits
# Three batches from each pair and few to a check, at a size at which that takes a moment.
QUICK: dict[str, Any] = {'rehearse': 0, 'batches_per_pair': 3, 'rate': 1e-3, 'batch': 2, 'round': 3, 'withheld_run': 2, 'checks': 3, 'recent': 12,
                         'reservoir': 6, 'trusted_after': 1, 'hits_patience': 5.0, 'odometry_patience': 5.0, 'max_batch_seconds': 60.0, 'stale_after': 600.0}


def biased(folder: Path) -> Path:
    """A checkpoint of the pose-aware network that puts everything too near; the file."""
    model = support.network('pose_aware')
    last = next(module for name, module in model.named_modules() if name.endswith('refiner.last'))
    with torch.no_grad():
        last.bias[0] = BIAS
    path = folder / 'biased.safetensors'
    checkpoint.save(path, 'global_local', model, {'number': 0})
    return path


def states_of(blob: bytes) -> dict[str, np.ndarray]:
    """The weights of a checkpoint in bytes, by name."""
    return {name: value.numpy() for name, value in checkpoint.from_bytes(blob).model.state_dict().items()}


def number_of(blob: bytes) -> int:
    """Of weights as they were handed out."""
    return checkpoint.from_bytes(blob).record['number']


class Drive(Bench):
    """A tester that drives past the wall at constant speed, for one learning node here or for those of other processes."""

    def __init__(self, world: Any, weights: str = 'online_learning/weights') -> None:
        self.world, self.stamp, self.node = world, BEGIN, None
        self.bundle = {name: world.publisher(kind, f'flow/{name}') for name, kind in bundle.TOPICS.items()}
        self.hits, self.odometry = world.publisher(Image, 'sparse_depth/image'), world.publisher(Odometry, 'deepv2d/odometry')
        self.truth = support.wall()[1]
        self.learned: list[UInt8MultiArray] = world.record(UInt8MultiArray, weights, LATCHED_QOS)
        self.metrics: list[DiagnosticArray] = world.record(DiagnosticArray, 'online_learning/metrics')

    def result(self) -> Any:
        self.stamp += APART
        return self.at(self.stamp)

    def at(self, stamp: int) -> FlowResult:
        """The pair of a stamp [ns]; no two images are alike."""
        result = support.wall(stamp, stamp - PAIR)[0]
        noise = np.random.default_rng(stamp)
        frames = [replace(f, image=noise.integers(0, 256, f.image.shape, np.uint8)) for f in (result.pair.current, result.pair.reference)]
        return replace(result, pair=ImagePair(*frames))

    def still(self) -> FlowResult:
        """The next pair, in which nothing moves."""
        result = self.result()
        return replace(result, flow=0.0 * result.flow, backward=0.0 * result.backward)

    def pose(self, stamp: int) -> float:
        """[m] along the wall."""
        return support.BASELINE * (stamp - BEGIN) / PAIR

    def send_pair(self, result: Any = None, hits: bool = True, share: float = 1.0) -> int:
        """Publish a pair, its poses and its hits; its stamp."""
        result = result or self.result()
        current, reference = result.pair.current.stamp, result.pair.reference.stamp
        for stamp in (reference, current):
            self.send_pose(stamp, self.pose(stamp))
        if hits:
            self.send_hits(current, share)
        return self.send(result)

    @property
    def blobs(self) -> list[bytes]:
        """Weights that were handed out, oldest first."""
        return [bytes(message.data) for message in self.learned]

    def close(self) -> None:
        if self.node is not None:
            self.world.remove(self.node)
        self.world.forget(self.hits, self.odometry, *self.bundle.values())


class LearningBench(Drive):
    """With a node of its own, which learns from every pair before it takes the next."""

    def __init__(self, world: Any, **parameters: Any) -> None:
        super().__init__(world)
        self.node = world.node(OnlineLearningNode, **{**QUICK, **parameters})
        self.worked: list[int] = []     # stamps [ns] of the pairs that it is done with
        work = self.node._work

        def work_and_note(job: Any) -> None:
            try:
                work(job)
            finally:
                self.worked.append(job.pair.stamp)

        self.node._work = work_and_note
        world.until(lambda: self.node.state == 'active', 'the node')
        self.meet()

    def meet(self) -> None:
        """Send what teaches nothing until each of the node's inputs hears it, and its figures are heard."""
        topics = [p.topic_name for p in (self.hits, self.odometry, *self.bundle.values())]
        heard = lambda: self.metrics and all(self.count(topic.lstrip('/')) for topic in topics)
        self.world.repeat(lambda: self.send_pair(self.still()), heard, f'all of {topics} to be heard')

    def drive(self, pairs: int = 1, **options: Any) -> None:
        """Send so many pairs, each once the one before is done with; another in place of one that was lost on the way."""
        for _ in range(pairs):
            sent: list[int] = []
            self.world.repeat(lambda: sent.append(self.send_pair(**options)), lambda: set(sent) & set(self.worked), 'a pair to be worked on', AGAIN)

    def drive_until_learned(self, count: int = 1) -> None:
        """Until so many more weights were handed out and heard."""
        wanted, progress = self.node._learner.progress.number + count, self.node._learner.progress
        self.world.repeat(self.drive, lambda: self.node._learner.progress.number >= wanted, f'{wanted} weights, after {progress}', every=0.0)
        self.world.until(lambda: self.blobs and number_of(self.blobs[-1]) >= wanted, 'them to be heard')

    def told(self) -> str:
        """What it does, and why."""
        learner = self.node._learner
        return f'{learner.state.value}: {learner.reason}'

    def tells(self, text: str) -> None:
        """Wait for it to be told in the diagnostics."""
        self.world.until(lambda: text in self.message(), f'{text!r} (it says {self.message()!r})')

    def call(self, kind: type, name: str, **request: Any) -> Any:
        """What a service of the node answers."""
        client = self.world.tester.create_client(kind, f'online_learning/{name}')
        self.world.until(client.service_is_ready, f'the service {name}')
        future = client.call_async(kind.Request(**request))
        self.world.until(future.done, f'the answer of {name}')
        self.world.tester.destroy_client(client)
        return future.result()

    def pause(self, paused: bool = True) -> Any:
        return self.call(SetBool, 'pause', data=paused)

    def trigger(self, name: str) -> Any:
        return self.call(Trigger, name)


def hits_message(drive: Drive, stamp: int, hits: np.ndarray, frame: str = 'camera') -> Image:
    """Hits (H, W) [m] of an image as a message."""
    return codecs.depth_image(hits, hits > 0.0, codecs.make_header(stamp, frame))


def same(a: bytes, b: bytes) -> bool:
    """Whether two checkpoints hold the same weights, to the bit."""
    a, b = states_of(a), states_of(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# Fixtures, for test files to import


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    """The weights that learning begins with."""
    return biased(tmp_path_factory.mktemp('weights'))


@pytest.fixture(autouse=True)
def as_shipped_here(first, untrained, monkeypatch):
    """They stand for those that come with the package."""
    monkeypatch.setattr(depth_networks, 'shipped', lambda variant: first if variant == 'pose_aware' else untrained / support.FILES[variant])


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """What is learned is kept for this test alone."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def bench(world):
    """Makes nodes with parameters."""
    with ros_support.benches(LearningBench, world) as make:
        yield make
