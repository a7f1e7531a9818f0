"""What the ros2 command promises, against a small real node."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest
import yaml

DEADLINE = 60.0      # [s] for one command on a busy machine
BRIEF = ('--spin-time', '2.5')      # [s] is usually long enough to find the talker, which announces itself often


class Command:
    """Runs ros2 in the domain of the test's node, again and again for `patience` [s] until all is as it must be: on a busy machine nodes are found late."""

    def __init__(self, ros2, env, patience=0.0):
        self._ros2, self._env, self._patience = ros2, env, patience

    def __call__(self, *words, status=0, seen=lambda output: True):
        """Output of a command that must end with this exit status, and in which this must be seen; where the status is not 0, what it says about it."""
        deadline = time.monotonic() + self._patience
        while True:
            done = subprocess.run([*self._ros2, *words], env=self._env, capture_output=True, text=True, timeout=DEADLINE)
            output = done.stdout if status == 0 else done.stdout + done.stderr
            right = done.returncode == status and seen(output)
            if right or time.monotonic() >= deadline:
                break
        assert right, f'{words}: {done.returncode}\n{done.stdout}\n{done.stderr}'
        return output

    def start(self, *words):
        return subprocess.Popen([*self._ros2, *words], env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope='module')
def environment(demo_prefix, domain, tmp_path_factory):
    paths = os.pathsep.join(filter(None, [str(demo_prefix), os.environ.get('AMENT_PREFIX_PATH')]))
    return {**os.environ, 'AMENT_PREFIX_PATH': paths, 'ROS_DOMAIN_ID': domain, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
            'ROS_LOG_DIR': str(tmp_path_factory.mktemp('log'))}


@pytest.fixture(scope='module')
def command(ros2, environment):
    return Command(ros2, environment)


@pytest.fixture(scope='module')
def ask(ros2, environment, talker):
    """A command about the talker."""
    return Command(ros2, environment, DEADLINE)


OFTEN = '''<profiles xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"><participant profile_name="often" is_default_profile="true">
<rtps><builtin><discovery_config><leaseAnnouncement><nanosec>200000000</nanosec></leaseAnnouncement></discovery_config></builtin></rtps>
</participant></profiles>'''


@pytest.fixture(scope='module')
def talker(ros2, environment, tmp_path_factory):
    """A node started by `ros2 run`, as long as the module's tests last; it must end well on SIGINT.

    It announces itself five times a second rather than every 3 s, so that each command finds it at once.
    """
    profile = tmp_path_factory.mktemp('profile') / 'often.xml'
    profile.write_text(OFTEN)
    node = Command(ros2, {**environment, 'FASTRTPS_DEFAULT_PROFILES_FILE': str(profile)}).start(
        'run', 'demo_pkg', 'talker', '--ros-args', '-r', '__ns:=/demo', '-p', 'label:=from command')
    assert node.stdout.readline() == "ready /demo/talker /demo/chatter [20.0, 'from command', False, False] [1, 2]\n"
    yield '/demo/talker'
    node.send_signal(signal.SIGINT)
    assert node.wait(DEADLINE) == 0, node.stderr.read()


# topics

def test_topics_are_listed_with_their_types(ask, talker):
    expected = {'/demo/chatter [std_msgs/msg/String]', '/demo/image [sensor_msgs/msg/Image]'}
    ask('topic', 'list', '-t', *BRIEF, seen=lambda shown: expected <= set(shown.splitlines()))


def test_a_message_is_shown_as_yaml(ask, talker):
    assert ask('topic', 'echo', '--once', '/demo/chatter') == 'data: hello\n---\n'
    shown = ask('topic', 'echo', '--once', '/demo/image', '--full-length')
    assert shown.endswith('---\n')
    message = yaml.safe_load(shown.removesuffix('---\n'))
    assert list(message) == ['header', 'height', 'width', 'encoding', 'is_bigendian', 'step', 'data']
    assert message['header'] == {'stamp': {'sec': 7, 'nanosec': 0}, 'frame_id': ''}
    assert message['data'] == list(range(32)) * 8


def test_long_arrays_are_cut_or_left_out(ask, talker):
    cut = yaml.safe_load(ask('topic', 'echo', '--once', '/demo/image', 'sensor_msgs/msg/Image').removesuffix('---\n'))
    assert cut['data'] == [*list(range(32)) * 4, '...']
    left_out = yaml.safe_load(ask('topic', 'echo', '--once', '/demo/image', '--no-arr').removesuffix('---\n'))
    assert left_out['data'] == '<sequence type: uint8, length: 256>'


def test_one_field_is_shown(ask, talker):
    assert yaml.safe_load(ask('topic', 'echo', '--once', '/demo/image', '--field', 'header.stamp').removesuffix('---\n')) == {'sec': 7, 'nanosec': 0}
    assert ask('topic', 'echo', '--once', '/demo/image', '--field', 'height') == '4\n---\n'
    assert 'nonsense' in ask('topic', 'echo', '--once', '/demo/image', '--field', 'nonsense', status=1)


def test_a_topic_is_described(ask, talker):
    ask('topic', 'info', '/demo/chatter', *BRIEF, seen=lambda shown: shown == 'Type: std_msgs/msg/String\nPublisher count: 1\nSubscription count: 0\n')
    parts = 'Node name: talker', 'Node namespace: /demo', 'Reliability: BEST_EFFORT'
    ask('topic', 'info', '-v', '/demo/image', *BRIEF, seen=lambda shown: all(part in shown for part in parts))


def test_a_rate_is_measured_until_interrupted(command, talker):
    measuring = command.start('topic', 'hz', '/demo/image', '--window', '15')
    lines = []
    while sum(line.startswith('average rate') for line in lines) < 2:
        lines.append(measuring.stdout.readline())
        assert lines[-1], measuring.stderr.read()
    lines.append(measuring.stdout.readline())
    measuring.send_signal(signal.SIGINT)
    measuring.communicate(timeout=DEADLINE)
    rate, spread = lines[-2], lines[-1]
    interval = 1.0 / float(re.fullmatch(r'average rate: (\d+\.\d{3})\n', rate)[1])
    shortest, longest, window = re.fullmatch(r'\tmin: (\d+\.\d{3})s max: (\d+\.\d{3})s std dev: \d+\.\d{5}s window: (\d+)\n', spread).groups()
    assert float(shortest) - 0.001 <= interval <= float(longest) + 0.001 and int(window) <= 15


@pytest.mark.parametrize('words', [
    ('topic', 'echo', '--once', '/no/such', *BRIEF), ('topic', 'info', '/no/such', *BRIEF),
    ('topic', 'echo', '--once', '/demo/chatter', 'no_such/msg/Type')])
def test_an_unknown_topic_or_type_is_an_error(ask, talker, words):
    ask(*words, status=1)


# nodes, services, parameters

def test_nodes_are_listed(ask, talker):
    ask('node', 'list', *BRIEF, seen=lambda shown: talker in shown.splitlines())


def test_services_are_listed_and_called(ask, talker):
    ask('service', 'list', '-t', *BRIEF, seen=lambda shown: '/demo/flip [std_srvs/srv/SetBool]' in shown.splitlines())
    answer = ask('service', 'call', '/demo/flip', 'std_srvs/srv/SetBool', '{data: true}')
    assert "response:\nstd_srvs.srv.SetBool_Response(success=True, message='flipped')" in answer
    assert 'success=False' in ask('service', 'call', '/demo/flip', 'std_srvs/srv/SetBool')


def test_a_request_that_does_not_fit_is_an_error(ask, talker):
    assert 'nonsense' in ask('service', 'call', '/demo/flip', 'std_srvs/srv/SetBool', '{nonsense: true}', status=1)


def test_parameters_are_listed_read_and_set(ask, talker):
    listed = ask('param', 'list', talker).split()
    assert {'rate', 'label', 'sizes', 'flag', 'use_sim_time'} <= set(listed)
    assert ask('param', 'get', talker, 'label') == 'String value is: from command\n'
    assert ask('param', 'get', talker, 'rate') == 'Double value is: 20.0\n'
    assert ask('param', 'get', '--hide-type', talker, 'flag') == 'False\n'
    assert 'Set parameter successful' in ask('param', 'set', talker, 'label', 'new label')
    assert ask('param', 'get', talker, 'label') == 'String value is: new label\n'


def test_a_description_tells_type_and_range(ask, talker):
    described = ask('param', 'describe', talker, 'rate')
    for part in ('Parameter name: rate', 'Type: double', 'Description: messages a second', 'Min value: 1.0', 'Max value: 50.0'):
        assert part in described


def test_a_dump_is_a_parameter_file(ask, talker):
    dumped = yaml.safe_load(ask('param', 'dump', talker))[talker]['ros__parameters']
    assert dumped['rate'] == 20.0 and dumped['sizes'] == [1, 2]


# launch

LAUNCH_FILE = '''
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument('label', default_value='plain', description='what to say'),
        DeclareLaunchArgument('mode', default_value='a', choices=['a', 'b'], description='how'),
        DeclareLaunchArgument('must', description='no default'),
        Node(package='demo_pkg', executable='show_arguments', output='screen', arguments=[LaunchConfiguration('label')]),
    ])
'''


@pytest.fixture(scope='module')
def launch_file(demo_prefix):
    path = demo_prefix / 'share' / 'demo_pkg' / 'launch' / 'demo.launch.py'
    path.write_text(LAUNCH_FILE)
    return path


def test_the_arguments_of_a_launch_file_are_shown(command, launch_file):
    for words in (('demo_pkg', 'demo.launch.py'), (str(launch_file),)):
        shown = command('launch', *words, '--show-args')
        assert "'label':\n        what to say\n        (default: 'plain')\n" in shown
        assert "how" in shown and "['a', 'b']" in shown
        assert re.search(r"'must':\n        no default\n(?!        \(default)", shown)


def test_a_launch_file_runs_to_its_end(command, launch_file):
    shown = command('launch', 'demo_pkg', 'demo.launch.py', 'must:=x', 'label:=loud')
    assert re.search(r'^\[show_arguments-1\] loud$', shown, re.M)
    assert '[INFO] [launch]: All log files can be found below' in shown


@pytest.mark.parametrize('words, text', [
    (('demo_pkg', 'demo.launch.py'), 'must'),
    (('demo_pkg', 'demo.launch.py', 'must:=x', 'mode:=c'), "['a', 'b']"),
    (('demo_pkg', 'demo.launch.py', 'must=x'), 'must=x'),
    (('demo_pkg', 'demo.launch.py', 'must:='), 'must:='),
    (('demo_pkg', 'no_such.launch.py'), 'no_such.launch.py'),
    (('no_such_pkg', 'demo.launch.py'), 'no_such_pkg'),
])
def test_a_launch_that_cannot_run_says_why(command, launch_file, words, text):
    assert text in command('launch', *words, status=1)


# run and pkg

def test_run_ends_with_the_status_of_the_program(ros2, environment):
    run = Command(ros2, {**environment, 'STATUS': '3'})
    assert run('run', 'demo_pkg', 'show_arguments', '-x', '--ros-args', '-p', 'a:=1', status=3).splitlines()[:4] == ['-x', '--ros-args', '-p', 'a:=1']


@pytest.mark.parametrize('words', [('demo_pkg', 'no_such_program'), ('no_such_pkg', 'talker')])
def test_run_says_what_it_cannot_find(command, words):
    assert re.search('no_such_pkg|No executable found', command('run', *words, status=1))


def test_packages_are_found(command, demo_prefix):
    assert command('pkg', 'prefix', 'demo_pkg').strip() == str(demo_prefix)
    assert 'demo_pkg' in command('pkg', 'list').splitlines()
    assert sorted(command('pkg', 'executables', 'demo_pkg').splitlines()) == ['demo_pkg show_arguments', 'demo_pkg talker']
    command('pkg', 'prefix', 'no_such_pkg', status=1)


@pytest.mark.parametrize('words', [(), ('launch',), ('run',), ('topic',), ('topic', 'echo'), ('topic', 'hz'), ('topic', 'info'), ('node', 'list'),
                                   ('service', 'call'), ('param', 'get'), ('param', 'set'), ('param', 'list')])
def test_every_command_has_help(command, words):
    assert 'usage: ' in command(*words, '--help')


def test_hz_stops_after_an_interrupt_without_messages(command):
    waiting = command.start('topic', 'hz', '/never/published')
    assert 'does not appear to be published yet' in waiting.stdout.readline()
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=DEADLINE)
