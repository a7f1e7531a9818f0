"""A replay of the learning graph, and what it published: the network's depth as it learns, and that of the network as it came, both with all that scales them.

In one pass more, before the others, the learner is paused and the network as it came runs beside the graph: so it takes no time from the learning that is measured.

A program of its own, for `evaluate online --live`: what it is to do stands in a JSON file, and what came of it in an .npz file.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import UInt8MultiArray
from std_srvs.srv import SetBool, Trigger

from depth_ros import files
from depth_ros.engines.online_settings import State
from depth_ros.ros import codecs, launching
from depth_ros.ros.executables import make_executor
from depth_ros.ros.managed_node import LATCHED_QOS, SENSOR_QOS
from depth_ros.ros.sync import Order, StampOrder

log = logging.getLogger(__name__)

LINES = {'learned': 'global_local', 'frozen_scaled': 'frozen'}      # what is recorded, and the node that publishes it
_LINGER = 1.5           # [s] that the last images of a pass are given
_ASK_AGAIN = 3.0        # [s] after which a service that has not answered, or not done it, is called again
_LAUNCH = 'online_learning.launch.py'
_FROZEN = 'from depth_ros.ros import executables; executables.global_local()'
_AHEAD = 200_000_000    # [ns] by which an image may be ahead of the camera's last message that was not lost
_PATIENCE = 20.0        # [s] to end in; the launch system needs 10 to end a node that does not listen
_DOMAINS = 101          # above, ports are the system's own


@dataclass(frozen=True)
class Recording:
    """What is to be replayed, and how."""

    bag: str
    passes: int
    rate: float                             # 1.0: real time
    variant: str
    weights: str                            # '': the shipped ones
    parameters: dict[str, dict[str, object]]        # by node, above those of the launch file
    arguments: tuple[str, ...]              # more of the launch file, as NAME:=VALUE
    out: str                                # folder
    domain: int | None = None               # of ROS; None: one that nobody uses


class Recorder(Node):
    """Takes down what the graph publishes."""

    def __init__(self, **options: Any) -> None:
        super().__init__('online_recording', **options)
        self.depths: dict[str, list[tuple[int, int, np.ndarray]]] = {name: [] for name in LINES}      # pass, stamp [ns], depth (H, W) [m], 0 where not valid
        self.told: dict[str, str] = {}
        self.states: Counter[str] = Counter()
        self.weights: bytes | None = None
        self.refused = self.passes = 0
        self.camera = StampOrder()
        self.create_subscription(CameraInfo, 'camera/rgb/camera_info', lambda m: self._count(self.camera.sort(codecs.stamp_ns(m.header.stamp))), SENSOR_QOS)
        for name, node in LINES.items():
            self.create_subscription(Image, f'{node}/depth/image', self._taker(name), 50)
        self.create_subscription(DiagnosticArray, 'online_learning/metrics', self._take_metrics, 50)
        self.create_subscription(UInt8MultiArray, 'online_learning/weights', self._take_weights, LATCHED_QOS)
        self.create_subscription(DiagnosticArray, '/diagnostics', self._take_diagnostics, 50)
        self.pausing, self.forgetting = self.create_client(SetBool, 'online_learning/pause'), self.create_client(Trigger, 'online_learning/reset')

    def let_learn(self) -> None:
        """Have the learner forget what it has seen so far, and go on."""
        self.forgetting.call_async(Trigger.Request()).add_done_callback(lambda _: self.pausing.call_async(SetBool.Request(data=False)))

    def _count(self, order: Order) -> None:
        self.passes += order is Order.JUMP

    def _pass_of(self, stamp: int) -> int:
        """The camera's pass that an image belongs to; what is ahead of the camera is left from the pass before."""
        ahead = self.camera.last is not None and stamp > self.camera.last + _AHEAD
        return max(0, self.passes - ahead)

    def _taker(self, name: str):
        def take(message: Image) -> None:
            stamp = codecs.stamp_ns(message.header.stamp)
            depth, valid = codecs.depth_array(message, name)
            self.depths[name].append((self._pass_of(stamp), stamp, np.where(valid, depth, 0).astype(np.float16)))
        return take

    def _take_metrics(self, message: DiagnosticArray) -> None:
        self.told = {v.key: v.value for v in message.status[0].values}
        self.states[self.told['state']] += self.passes > 0

    def _take_weights(self, message: UInt8MultiArray) -> None:
        self.weights = bytes(message.data)

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == 'global_local':
                self.refused = next((int(v.value) for v in status.values if v.key.endswith('online_learning/weights rejected')), self.refused)


def main(settings: str) -> int:
    """Replay and record what a file of settings asks for; the exit status."""
    logging.basicConfig(level=logging.INFO, format='%(levelname)s %(name)s: %(message)s')
    recording = Recording(**json.loads(Path(settings).read_text()))
    for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):       # as the launch files do
        os.environ.setdefault(name, launching.share('config', 'fastdds.xml'))
    _keep_apart(recording.domain)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)       # of a terminal that hangs up: whoever started this passes it on as an interrupt
    rclpy.init()
    recorder, executor = Recorder(), make_executor()
    executor.add_node(recorder)
    parameters = Path(recording.out) / 'parameters.yaml'
    parameters.write_text(yaml.safe_dump({f'/**/{node}': {'ros__parameters': values} for node, values in parameters_of(recording).items()}))
    arguments = [f'bag:={recording.bag}', 'loop:=true', f'rate:={recording.rate}', 'rviz:=false', 'resume:=false', f'variant:={recording.variant}',
                 f'params_file:={parameters}', *([f'weights:={recording.weights}'] if recording.weights else []), *recording.arguments]
    apart = [f'global_local/{topic}:=frozen/{topic}' for topic in ('depth/image', 'depth/camera_info', 'points', 'parameters')] + ['online_learning/weights:=frozen/weights']
    processes: list[subprocess.Popen] = []
    try:
        processes.append(subprocess.Popen(['ros2', 'launch', 'depth_ros', _LAUNCH, *arguments], process_group=0))
        if _pause(recorder, executor, processes[0]):        # before the player begins, for that waits for the network beside it
            processes.append(subprocess.Popen([sys.executable, '-c', _FROZEN, '--ros-args', '-r', '__node:=frozen', '--params-file', str(parameters),
                                               *(w for a in apart for w in ('-r', a))], process_group=0))
            used = _listen(recorder, executor, recording.passes, *processes)
    except FileNotFoundError as error:
        log.error('the graph cannot be started: %s', error)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)        # it ends already; whoever started this passes on what a terminal sent to both
        for process in reversed(processes):
            _end(process)
    if recorder.passes <= recording.passes:
        log.error('the replay ended early: %s', ', '.join(f'{name} with status {p.returncode}' for name, p in zip(('the graph', 'the network beside it'), processes)))
        return 1
    write(recorder, Path(recording.out) / 'recording.npz', used)
    return 0


def _keep_apart(domain: int | None) -> None:
    """Let this process and those it starts meet in a domain of ROS; None: in one of their own on this machine, where a robot neither hears nor disturbs the replay."""
    if domain is None:
        domain = free_domain()
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(domain)


def free_domain() -> int:
    """A domain of ROS whose ports of discovery nobody on this machine has taken."""
    for domain in random.sample(range(1, _DOMAINS + 1), _DOMAINS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as multicast, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            try:
                multicast.bind(('', 7400 + 250 * domain))       # DDSI-RTPS 2.3, section 9.6.1.1
                first.bind(('', 7410 + 250 * domain))
                return domain
            except OSError:
                continue
    raise OSError('all domains of ROS are in use: name one to share')


def _end(process: subprocess.Popen) -> None:
    """End a process, asking first, and whatever it leaves of its group."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                log.warning('%s does not heed %s', process.args[0], number.name)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def parameters_of(recording: Recording) -> dict[str, dict[str, object]]:
    """Those of all nodes, by node: the network that does not learn gets those of the other one."""
    file, given = yaml.safe_load(Path(launching.share('config', 'online_learning.yaml')).read_text()), recording.parameters
    own = {name: file[f'/**/{name}']['ros__parameters'] for name in ('global_local', 'player')}
    frozen = {**own['global_local'], **given.get('global_local', {}), 'variant': recording.variant, 'weights': recording.weights, 'use_sim_time': True}
    # One listener more than the launch file knows of: none shall miss the first image.
    return {**given, 'frozen': frozen, 'player': {**given.get('player', {}), 'wait_for_listeners': own['player']['wait_for_listeners'] + 1}}


def _pause(recorder: Recorder, executor, graph: subprocess.Popen) -> bool:
    """Have the learner wait until the network beside it has had its pass; False if the graph ended before it did."""
    answer: Future | None = None
    asked = 0.0
    while graph.poll() is None:
        executor.spin_once(timeout_sec=0.05)
        if answer is not None and answer.done() and answer.result().success:
            return True
        # Asked again where it is not configured yet, and where the answer was lost.
        if time.monotonic() - asked > _ASK_AGAIN and recorder.pausing.service_is_ready() and recorder.forgetting.service_is_ready():
            answer, asked = recorder.pausing.call_async(SetBool.Request(data=True)), time.monotonic()
    return False


def _listen(recorder: Recorder, executor, passes: int, graph: subprocess.Popen, frozen: subprocess.Popen) -> dict[str, object]:
    """Until so many passes are over after that of the network beside it, or a process has ended; what the learner's process took in them."""
    until = frozen_until = float('inf')
    memory, seconds, begun, lap, asked = [], 0.0, 0.0, 0, 0.0
    while time.monotonic() < until and graph.poll() is None and (recorder.passes or frozen.poll() is None):
        executor.spin_once(timeout_sec=0.05)
        now = time.monotonic()
        if now > frozen_until:      # its last images have come
            frozen.send_signal(signal.SIGINT)
            frozen_until = float('inf')
        if lap and recorder.told.get('state') == State.PAUSED.value and now - asked > _ASK_AGAIN:
            recorder.let_learn()
            asked = now
        if recorder.passes == lap:
            continue
        lap = recorder.passes
        seconds, resident = _taken(graph.pid)
        if lap == 1:
            frozen_until, begun = now + _LINGER, seconds
            log.info('the pass of the network that does not learn is over')
            continue
        memory.append(resident)
        log.info('pass %d of %d is over: %s', lap - 1, passes, recorder.told.get('state', 'nothing is learned'))
        if lap > passes:
            until = now + _LINGER
    return {'learner_seconds': seconds - begun, 'memory_mb': memory}


def processor_time(process: str) -> float:
    """[s] that a process, of this id, has had on any core so far. Raises OSError if it has ended."""
    fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')      # in user and in system mode


def _taken(launch: int) -> tuple[float, int]:
    """Processor time [s] and resident memory [MB] of the learner's process, which a launch has started; zeros where the system does not tell."""
    try:
        for child in Path(f'/proc/{launch}/task/{launch}/children').read_text().split():
            if '__node:=online_learning' in Path(f'/proc/{child}/cmdline').read_text():
                pages = int(Path(f'/proc/{child}/statm').read_text().split()[1])
                return processor_time(child), pages * os.sysconf('SC_PAGE_SIZE') >> 20
    except OSError:
        pass
    return 0.0, 0


def write(recorder: Recorder, target: Path, used: dict[str, object]) -> None:
    """All that was taken down, by the passes of learning, and what it took to make it. Of the network beside it, its one pass stands for all."""
    arrays: dict[str, np.ndarray] = {}
    for name, found in recorder.depths.items():
        found = [(number - 1, *rest) for number, *rest in found if number > 0] if name == 'learned' else [one for one in found if one[0] == 0]
        passes, stamps, depths = zip(*found) if found else ((), (), ())
        arrays |= {f'{name}_pass': np.array(passes, int), f'{name}_stamp': np.array(stamps, np.int64), f'{name}_depth': np.array(depths, np.float16)}
    told = {'told': recorder.told, 'states': dict(recorder.states), 'refused_weights': recorder.refused, 'load': os.getloadavg()[0], **used}
    with files.whole(target) as partial, partial.open('wb') as out:
        np.savez(out, told=np.array(json.dumps(told)), weights=np.frombuffer(recorder.weights or b'', np.uint8), **arrays)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
