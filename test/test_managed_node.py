"""The lifecycle of every node: starts itself, fails with a reason, leaves nothing behind, ends on a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass

import pytest
import ros_support
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from depth_ros.ros import managed_node
from depth_ros.ros.managed_node import ManagedNode, NodeConfig
from depth_ros.settings import setting


@dataclass(frozen=True)
class Config(NodeConfig):
    file: str = setting('good', 'the file to load')
    gain: float = setting(1.0, 'a gain', low=0.0, high=2.0)


class Echo(ManagedNode):
    """Says in upper case what it hears."""

    config_class = Config

    def __init__(self, **options):
        self.closed = 0
        self.begun, self.gate = threading.Event(), threading.Event()
        self.fails = False
        super().__init__('echo', **options)
        self.service(Trigger, 'echo/save', self._on_save)

    def setup(self):
        self._out = self.publisher(String, 'said')
        if self.config.file == 'corrupt':
            raise ValueError('/data/corrupt.safetensors: header is not JSON')

    def start(self):
        self._worker = self.worker(self._work)
        self.listen(String, 'heard', self._worker.put)

    def teardown(self):
        self.closed += 1

    def reconfigured(self, before):
        assert before.gain != self.config.gain
        if self.config.gain == 1.5:
            raise ValueError('gain 1.5 does not suit the engine')
        if self.config.gain == 1.7:
            raise AttributeError('no such thing as 1.7')

    def _on_save(self, _request):
        if self.fails:
            raise OSError('the disk is full')
        return True, 'saved'

    def _work(self, message):
        if message.data == 'boom':
            raise RuntimeError('it went boom')
        if message.data == 'slow':
            self.begun.set()
            assert self.gate.wait(ros_support.TIMEOUT)
        self.tell(self._out, String(data=message.data.upper()))


@pytest.fixture
def start(world):
    nodes = []

    def make(**parameters):
        nodes.append(world.node(Echo, **parameters))
        return nodes[-1]

    yield make
    for node in nodes:
        world.remove(node)


def statuses(node):
    return node.diagnostics.status().message


def test_it_starts_itself_and_works(world, start):
    heard, out = world.record(String, 'said'), world.publisher(String, 'heard')
    node = start()
    world.until(lambda: node.state == 'active', 'the active state')
    world.connected(out)
    out.publish(String(data='boom'))
    out.publish(String(data='hello'))
    world.until(lambda: heard, 'the echo')
    assert heard[-1].data == 'HELLO'
    values = lambda: {v.key: v.value for v in node.diagnostics.status().values}
    world.until(lambda: values().get('/said published') == '1', 'the count')
    assert values()['state'] == 'active'


def test_an_exception_at_work_is_told_and_survived(world, start):
    out = world.publisher(String, 'heard')
    node = start()
    world.until(lambda: node.state == 'active', 'the active state')
    world.connected(out)
    out.publish(String(data='boom'))
    world.until(lambda: 'it went boom' in statuses(node), 'the error in diagnostics')
    assert node.state == 'active' and node.exit_status is None


def test_a_service_that_raises_answers_with_the_reason_and_the_node_lives(world, start):
    node = start()
    client = world.tester.create_client(Trigger, 'echo/save')
    world.until(client.service_is_ready, 'the service')

    def call():
        future = client.call_async(Trigger.Request())
        world.until(future.done, 'the answer')
        return future.result()

    node.fails = True
    answer = call()
    assert not answer.success and answer.message == 'OSError: the disk is full'
    assert 'echo/save: OSError: the disk is full' in statuses(node) and {v.key: v.value for v in node.diagnostics.status().values}['failed service calls'] == '1'
    node.fails = False
    answer = call()
    assert answer.success and answer.message == 'saved' and node.exit_status is None
    world.tester.destroy_client(client)


def test_without_autostart_a_manager_leads(world, start):
    node = start(autostart=False)
    heard, out = world.record(String, 'said'), world.publisher(String, 'heard')
    assert world.change_state(node, Transition.TRANSITION_CONFIGURE).success and node.state == 'inactive'
    assert not world.change_state(node, Transition.TRANSITION_CONFIGURE).success       # impossible: answered, and survived
    assert world.change_state(node, Transition.TRANSITION_ACTIVATE).success and node.state == 'active'
    world.connected(out)
    assert world.change_state(node, Transition.TRANSITION_DEACTIVATE).success and node.state == 'inactive'
    world.until(lambda: not out.get_subscription_count(), 'the subscription to go')
    assert world.change_state(node, Transition.TRANSITION_CLEANUP).success and node.state == 'unconfigured'
    assert heard == []


def test_cleanup_and_configure_leave_nothing_behind(start, world):
    node = start(autostart=False)

    def cycle():
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
            assert world.change_state(node, transition).success

    cycle()
    publishers, subscriptions, threads = len(list(node.publishers)), len(list(node.subscriptions)), set(threading.enumerate())
    managed = len(node._managed_entities)
    for _ in range(5):
        cycle()
    assert (len(list(node.publishers)), len(list(node.subscriptions))) == (publishers, subscriptions) and set(threading.enumerate()) <= threads
    assert len(node._managed_entities) == managed
    assert node.diagnostics.status().message == 'unconfigured'


def test_a_configure_that_fails_says_why_and_can_be_tried_again(world, start):
    node = start(autostart=False, file='corrupt')
    before = len(list(node.publishers))
    assert not world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    assert node.state == 'unconfigured' and node.exit_status is None and node.closed == 1
    assert statuses(node) == 'cannot configure: /data/corrupt.safetensors: header is not JSON'
    assert len(list(node.publishers)) == before
    node.set_parameters([Parameter('file', value='good')])
    assert world.change_state(node, Transition.TRANSITION_CONFIGURE).success
    assert statuses(node) == 'inactive'


def test_a_node_that_starts_itself_ends_when_it_cannot(world, start):
    node = start(file='corrupt')
    world.until(lambda: node.exit_status is not None, 'the exit status')
    assert node.exit_status == 1


def test_parameters_change_at_run_time_unless_refused_with_the_reason(world, start):
    node = start()
    world.until(lambda: node.state == 'active', 'the active state')
    assert node.set_parameters([Parameter('gain', value=0.5)])[0].successful and node.config.gain == 0.5
    refused = node.set_parameters([Parameter('gain', value=1.5)])[0]
    assert not refused.successful and refused.reason == 'gain 1.5 does not suit the engine' and node.config.gain == 0.5
    assert not node.set_parameters([Parameter('gain', value=5.0)])[0].successful
    assert node.get_parameter('gain').value == 0.5


def test_a_worker_that_does_not_end_is_told_and_never_heard_again(world, start, monkeypatch):
    monkeypatch.setattr(managed_node, '_PATIENCE', 0.05)
    heard, out = world.record(String, 'said'), world.publisher(String, 'heard')
    node = start()
    world.until(lambda: node.state == 'active', 'the active state')
    world.connected(out)
    out.publish(String(data='slow'))
    world.until(node.begun.is_set, 'the work to begin')
    stuck = node._worker
    node.trigger_deactivate()
    assert node.diagnostics.status().level == DiagnosticStatus.ERROR and 'echo: still at work' in statuses(node)
    assert node.trigger_activate() is managed_node.FAILURE and node.state == 'inactive'
    assert 'try again when it has ended' in statuses(node)
    node.gate.set()
    world.until(lambda: not stuck.abandoned, 'the work to end')
    assert node.trigger_activate() is managed_node.SUCCESS and node.diagnostics.status().level == DiagnosticStatus.OK
    world.connected(out)
    out.publish(String(data='hello'))
    world.until(lambda: heard, 'the echo')
    assert [m.data for m in heard] == ['HELLO']


def test_all_that_is_waited_for_at_the_end_was_told_before_and_shares_one_deadline(world, start, monkeypatch):
    monkeypatch.setattr(managed_node, '_PATIENCE', 0.05)
    out = world.publisher(String, 'heard')
    node = start()
    world.until(lambda: node.state == 'active', 'the active state')
    world.connected(out)
    out.publish(String(data='slow'))
    world.until(node.begun.is_set, 'the work to begin')
    told, left, worker, wait = [], [], node._worker, node._worker.stop
    node.halt = lambda: told.append('halt')
    worker.stop = lambda timeout: told.append('wait') or wait(timeout)
    node.stop = lambda: left.append(node.patience)
    node.trigger_deactivate()
    assert told == ['halt', 'wait'] and left == [0.0]       # the worker has used all of it up
    node.gate.set()
    world.until(lambda: not worker.abandoned, 'the work to end')


PROCESS = textwrap.dedent('''
    import os, sys, time
    from depth_ros.ros import executables
    from depth_ros.ros.managed_node import ManagedNode

    class Slow(ManagedNode):
        def __init__(self):
            super().__init__('slow')
        def setup(self):
            print('setting up', flush=True)
            if sys.argv[1] == 'setup':
                for _ in range(6000):
                    time.sleep(0.1)
        def start(self):
            self.worker(lambda item: time.sleep(600.0)).put(1)
            print('active', flush=True)

    status = executables.spin(Slow)
    sys.stdout.flush()
    os._exit(status)
''')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(('phase', 'line'), [('setup', 'setting up'), ('work', 'active')])
def test_a_signal_ends_the_process_quietly_whatever_it_is_doing(world, number, phase, line):
    process = subprocess.Popen([sys.executable, '-c', PROCESS, phase], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        while process.stdout.readline().strip() != line:
            assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        _, errors = process.communicate(timeout=ros_support.TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert 'Traceback' not in errors


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_importing_ends_the_process_quietly(number):
    code = textwrap.dedent('''
        import sys, time, types
        from depth_ros.ros import executables
        class Slow:
            def find_spec(self, name, path=None, target=None):
                if name == 'depth_ros.ros.player_node':
                    print('importing', flush=True)
                    time.sleep(600.0)
        sys.meta_path.insert(0, Slow())
        executables.player()
    ''')
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == 'importing'
        process.send_signal(number)
        _, errors = process.communicate(timeout=ros_support.TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0 and 'Traceback' not in errors


def test_a_bad_parameter_ends_the_process_with_one_line(world):
    code = 'import sys\nfrom depth_ros.ros import executables\nfrom depth_ros.ros.managed_node import ManagedNode\n' \
           'class Plain(ManagedNode):\n    def __init__(self):\n        super().__init__("plain")\nsys.exit(executables.spin(Plain))'
    done = subprocess.run([sys.executable, '-c', code, '--ros-args', '-p', 'stale_after:=-3.0'], capture_output=True, text=True, timeout=ros_support.LIMIT)
    assert done.returncode == 1
    assert 'stale_after' in done.stderr and '-3.0' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize(('text', 'words'), [(None, 'Error opening YAML file'), ('a: [b\n', 'line 1')])
def test_a_parameter_file_that_cannot_be_read_ends_the_process_by_name_and_reason(world, tmp_path, text, words):
    path = tmp_path / 'parameters.yaml'
    if text is not None:
        path.write_text(text)
    code = 'from depth_ros.ros import executables; executables.sparse_depth()'
    done = subprocess.run([sys.executable, '-c', code, '--ros-args', '--params-file', str(path)], capture_output=True, text=True, timeout=ros_support.LIMIT)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert str(path) in done.stderr.splitlines()[-1] and words in done.stderr.splitlines()[-1]


def test_a_misspelt_parameter_is_named_with_those_near_it(world):
    code = 'import sys\nfrom depth_ros.ros import executables\nfrom depth_ros.ros.managed_node import ManagedNode\n' \
           'class Plain(ManagedNode):\n    def __init__(self):\n        super().__init__("plain")\n' \
           '    def start(self):\n        print(sorted(self.get_parameters_by_prefix("")))\n        self.finish(0)\nsys.exit(executables.spin(Plain))'
    words = ['--ros-args', '-p', 'stale_aftr:=3.0', '-p', 'zebra:=1', '-p', 'use_sim_time:=false', '-p', 'stale_after:=3']
    done = subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, timeout=ros_support.LIMIT)
    assert done.returncode == 0, done.stderr
    assert 'unknown parameter stale_aftr is ignored; did you mean stale_after?' in done.stderr
    assert 'unknown parameter zebra is ignored\n' in done.stderr and 'use_sim_time' not in done.stderr
    assert eval(done.stdout) == ['autostart', 'stale_after', 'start_type_description_service', 'use_sim_time']


def test_a_change_that_goes_wrong_is_refused_and_undone(start):
    node = start(autostart=False)
    node.trigger_configure()
    before = node.config
    result = node.set_parameters([Parameter('gain', value=1.7), Parameter('stale_after', value=9.0)])[0]
    assert not result.successful and result.reason == 'AttributeError: no such thing as 1.7'
    assert node.config == before and node.diagnostics.stale_after == before.stale_after
    assert node.get_parameter('gain').value == 1.0
