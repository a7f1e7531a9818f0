"""What the tests of launch and of the ros2 command share: a small installed package, a DDS domain, running a launch."""
from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import launch
import pytest
from domain_coordinator import domain_id
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

TIMEOUT = 60.0      # [s] a condition may take on a busy machine; met ones return at once

# The next domain for each test that asks: what is left of the last one's processes must not be heard in it.
_domains = itertools.count(os.getpid())

NODE = '''
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import SetBool


class Talker(Node):
    def __init__(self):
        super().__init__('talker')
        limits = ParameterDescriptor(description='messages a second', floating_point_range=[FloatingPointRange(from_value=1.0, to_value=50.0)])
        self.declare_parameter('rate', 20.0, limits)
        self.declare_parameter('label', 'none')
        self.declare_parameter('sizes', [1, 2])
        self.declare_parameter('flag', False)
        self.chatter = self.create_publisher(String, 'chatter', 10)
        self.image = self.create_publisher(Image, 'image', rclpy.qos.qos_profile_sensor_data)
        self.message = Image(height=4, width=8, encoding='mono8', step=8, data=bytes(range(32)) * 8)
        self.message.header.stamp.sec = 7
        self.create_service(SetBool, 'flip', self.flip)
        self.create_timer(1.0 / self.get_parameter('rate').value, self.talk)
        self.greeting = self.create_timer(0.0, self.greet, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def greet(self):
        """Once it is spun: an interrupt before might come at a moment that rclpy does not expect one."""
        self.greeting.cancel()
        values = [self.get_parameter(name).value for name in ('rate', 'label', 'flag', 'use_sim_time')]
        sizes = list(self.get_parameter('sizes').value)
        print('ready', self.get_fully_qualified_name(), self.chatter.topic_name, values, sizes, flush=True)

    def talk(self):
        self.chatter.publish(String(data='hello'))
        self.image.publish(self.message)

    def flip(self, request, response):
        response.success, response.message = request.data, 'flipped'
        return response


rclpy.init()
try:
    rclpy.spin(Talker())
except (KeyboardInterrupt, rclpy.executors.ExternalShutdownException):
    pass
'''

SHOW_ARGUMENTS = '''
import os
import sys

print(*sys.argv[1:], sep='\\n')
print('FLAVOUR', os.environ.get('FLAVOUR'))
sys.exit(int(os.environ.get('STATUS', 0)))
'''


def _install(prefix: Path, name: str, source: str) -> None:
    path = prefix / 'lib' / 'demo_pkg' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!{sys.executable}\n{source}')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope='session')
def demo_prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An install prefix with the package `demo_pkg`: a talker and a program that shows its arguments."""
    prefix = tmp_path_factory.mktemp('prefix')
    marker = prefix / 'share' / 'ament_index' / 'resource_index' / 'packages' / 'demo_pkg'
    marker.parent.mkdir(parents=True)
    marker.touch()
    (prefix / 'share' / 'demo_pkg' / 'launch').mkdir(parents=True)
    _install(prefix, 'talker', NODE)
    _install(prefix, 'show_arguments', SHOW_ARGUMENTS)
    return prefix


@pytest.fixture
def demo(demo_prefix: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let `demo_pkg` be found; its share folder."""
    monkeypatch.setenv('AMENT_PREFIX_PATH', os.pathsep.join(filter(None, [str(demo_prefix), os.environ.get('AMENT_PREFIX_PATH')])))
    return demo_prefix / 'share' / 'demo_pkg'


@contextlib.contextmanager
def _own_domain() -> Iterator[int]:
    with domain_id(lambda: next(_domains) % 100 + 1) as number:
        yield number


@pytest.fixture(scope='module')
def domain() -> Iterator[str]:
    """A DDS domain that nobody else on this machine uses, for the module's processes."""
    with _own_domain() as number:
        yield str(number)


@pytest.fixture
def own_domain() -> Iterator[int]:
    """A DDS domain that nobody else on this machine uses, for one test."""
    with _own_domain() as number:
        yield number


@pytest.fixture
def ros_domain(domain: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the nodes that the test starts into a domain of their own."""
    monkeypatch.setenv('ROS_DOMAIN_ID', domain)
    return domain


@pytest.fixture(scope='session')
def ros2() -> list[str]:
    """The ros2 command."""
    found = shutil.which('ros2')
    return [found] if found else [sys.executable, '-m', 'ros2cli']


@pytest.fixture
def run_launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run entities to their end, with launch arguments as keywords; the launch's exit status."""
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))

    def run(*entities: Any, **arguments: str) -> int:
        service = launch.LaunchService()
        given = [launch.actions.SetLaunchConfiguration(name, value) for name, value in arguments.items()]
        service.include_launch_description(launch.LaunchDescription([*given, *entities]))
        return service.run()

    return run


@pytest.fixture(scope='session')
def spin_until() -> Callable[..., bool]:
    """Spin a node, doing `act` before each turn, until `done` holds; whether it did in time.

    Turns are no measure: one that finds a message takes microseconds, and discovery of the next topic may take a second.
    """
    def spin(node: Node, done: Callable[[], bool], act: Callable[[], None] = lambda: None) -> bool:
        executor = SingleThreadedExecutor(context=node.context)
        executor.add_node(node)
        deadline = time.monotonic() + TIMEOUT
        try:
            while not done() and time.monotonic() < deadline:
                act()
                executor.spin_once(timeout_sec=0.05)
            return done()
        finally:
            executor.remove_node(node)
            executor.shutdown()

    return spin
