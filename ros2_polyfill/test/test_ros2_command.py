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
BRIEF = ('--spin-time', '2.5')      # [s] is long enough to find the talker, which announces itself often


class Command:
    """Runs ros2 in the domain of the test's node."""

    def __init__(self, ros2, env):
        self._ros2, self._env = ros2, env

    def __call__(self, *words, status=0):
        """Output of a command that must end with this exit status; where that is not 0, what it says about it."""
        done = subprocess.run([*self._ros2, *words], env=self._env, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == status, f'{words}: {done.returncode}\n{done.stdout}\n{done.stderr}'
        return done.stdout if status == 0 else done.stdout + done.stderr

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

def test_topics_are_listed_with_their_types(command, talker):
    listed = command('topic', 'list', '-t', *BRIEF).splitlines()
    assert '/demo/chatter [std_msgs/msg/String]' in listed and '/demo/image [sensor_msgs/msg/Image]' in listed


def test_a_message_is_shown_as_yaml(command, talker):
    assert command('topic', 'echo', '--once', '/demo/chatter') == 'data: hello\n---\n'
    shown = command('topic', 'echo', '--once', '/demo/image', '--full-length')
    assert shown.endswith('---\n')
    message = yaml.safe_load(shown.removesuffix('---\n'))
    assert list(message) == ['header', 'height', 'width', 'encoding', 'is_bigendian', 'step', 'data']
    assert message['header'] == {'stamp': {'sec': 7, 'nanosec': 0}, 'frame_id': ''}
    assert message['data'] == list(range(32)) * 8


def test_long_arrays_are_cut_or_left_out(command, talker):
    cut = yaml.safe_load(command('topic', 'echo', '--once', '/demo/image', 'sensor_msgs/msg/Image').removesuffix('---\n'))
    assert cut['data'] == [*list(range(32)) * 4, '...']
    left_out = yaml.safe_load(command('topic', 'echo', '--once', '/demo/image', '--no-arr').removesuffix('---\n'))
    assert left_out['data'] == '<sequence type: uint8, length: 256>'


def test_one_field_is_shown(command, talker):
    assert yaml.safe_load(command('topic', 'echo', '--once', '/demo/image', '--field', 'header.stamp').removesuffix('---\n')) == {'sec': 7, 'nanosec': 0}
    assert command('topic', 'echo', '--once', '/demo/image', '--field', 'height') == '4\n---\n'
    assert 'nonsense' in command('topic', 'echo', '--once', '/demo/image', '--field', 'nonsense', status=1)


def test_a_topic_is_described(command, talker):
    assert command('topic', 'info', '/demo/chatter', *BRIEF) == 'Type: std_msgs/msg/String\nPublisher count: 1\nSubscription count: 0\n'
    verbose = command('topic', 'info', '-v', '/demo/image', *BRIEF)
    assert 'Node name: talker' in verbose and 'Node namespace: /demo' in verbose and 'Reliability: BEST_EFFORT' in verbose


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
    assert 10.0 < float(re.fullmatch(r'average rate: (\d+\.\d{3})\n', rate)[1]) < 30.0      # 20 Hz on a busy machine
    assert re.fullmatch(r'\tmin: \d+\.\d{3}s max: \d+\.\d{3}s std dev: \d+\.\d{5}s window: \d+\n', spread)
    assert int(spread.split()[-1]) <= 15


@pytest.mark.parametrize('words', [
    ('topic', 'echo', '--once', '/no/such', *BRIEF), ('topic', 'info', '/no/such', *BRIEF),
    ('topic', 'echo', '--once', '/demo/chatter', 'no_such/msg/Type')])
def test_an_unknown_topic_or_type_is_an_error(command, talker, words):
    command(*words, status=1)


# nodes, services, parameters

def test_nodes_are_listed(command, talker):
    assert talker in command('node', 'list', *BRIEF).splitlines()


def test_services_are_listed_and_called(command, talker):
    assert '/demo/flip [std_srvs/srv/SetBool]' in command('service', 'list', '-t', *BRIEF).splitlines()
    answer = command('service', 'call', '/demo/flip', 'std_srvs/srv/SetBool', '{data: true}')
    assert "response:\nstd_srvs.srv.SetBool_Response(success=True, message='flipped')" in answer
    assert 'success=False' in command('service', 'call', '/demo/flip', 'std_srvs/srv/SetBool')


def test_a_request_that_does_not_fit_is_an_error(command, talker):
    assert 'nonsense' in command('service', 'call', '/demo/flip', 'std_srvs/srv/SetBool', '{nonsense: true}', status=1)


def test_parameters_are_listed_read_and_set(command, talker):
    listed = command('param', 'list', talker).split()
    assert {'rate', 'label', 'sizes', 'flag', 'use_sim_time'} <= set(listed)
    assert command('param', 'get', talker, 'label') == 'String value is: from command\n'
    assert command('param', 'get', talker, 'rate') == 'Double value is: 20.0\n'
    assert command('param', 'get', '--hide-type', talker, 'flag') == 'False\n'
    assert 'Set parameter successful' in command('param', 'set', talker, 'label', 'new label')
    assert command('param', 'get', talker, 'label') == 'String value is: new label\n'


def test_a_description_tells_type_and_range(command, talker):
    described = command('param', 'describe', talker, 'rate')
    for part in ('Parameter name: rate', 'Type: double', 'Description: messages a second', 'Min value: 1.0', 'Max value: 50.0'):
        assert part in described


def test_a_dump_is_a_parameter_file(command, talker):
    dumped = yaml.safe_load(command('param', 'dump', talker))[talker]['ros__parameters']
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


def test_hz_stops_soon_after_an_interrupt_without_messages(command):
    waiting = command.start('topic', 'hz', '/never/published')
    assert 'does not appear to be published yet' in waiting.stdout.readline()
    start = time.monotonic()
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=DEADLINE)
    assert time.monotonic() - start < 10.0
