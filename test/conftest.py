"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sequence_support import BEGINNING, head_of

if TYPE_CHECKING:
    from ros_support import World

    from depth_ros.models.checkpoint import Loaded

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Take Ctrl-C, also where a shell began the tests in the background (`pytest &` in a script): it has SIGINT ignored there, by them and by all that they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def kitchen() -> Path:
    """The real sequence for tests: `kitchen` in DEPTH_ROS_DATA (default ../shared/data). Its absence fails in CI and skips elsewhere."""
    folder = Path(os.environ.get('DEPTH_ROS_DATA', ROOT.parent / 'shared' / 'data')) / 'kitchen'
    if not (folder / 'rgb.txt').exists():
        absent = f'the real sequence is not at {folder}: set DEPTH_ROS_DATA to the folder that holds kitchen/'
        if os.environ.get('CI', '').lower() in ('1', 'true'):
            pytest.fail(absent)
        pytest.skip(absent)
    return folder


@pytest.fixture(scope='session')
def beginning(kitchen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two seconds of the real sequence."""
    return head_of(kitchen, tmp_path_factory.mktemp('beginning') / 'kitchen', BEGINNING)


@pytest.fixture(scope='module')
def world() -> Iterator[World]:
    """A ROS context in a domain of its own, for all tests of a module."""
    import ros_support      # here, for most tests do without ROS

    with ros_support.world() as made:
        yield made


@pytest.fixture
def tf_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let odometry publish TF at once, without listening for a while for somebody else who does."""
    from depth_ros.ros import tf_parents

    monkeypatch.setattr(tf_parents, 'SETTLING', 0.0)


@pytest.fixture
def one_thread() -> None:
    """Let torch keep to one thread, as it does in the nodes: two starve beside other work."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope='session')
def start() -> Loaded:
    """The network that learning online starts with: the untrained pose-aware one."""
    import global_local_support as support
    from depth_ros.models import checkpoint

    return checkpoint.from_bytes(support.blob('pose_aware'))


@pytest.fixture(scope='session')
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both variants of Global-Local, untrained, of which the pose-aware one starts at triangulation."""
    import global_local_support as support

    return support.write(tmp_path_factory.mktemp('weights'))


@pytest.fixture
def as_shipped(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the untrained networks stand for those that come with the package."""
    import global_local_support as support
    from depth_ros.engines import depth_networks

    monkeypatch.setattr(depth_networks, 'shipped', lambda variant: untrained / support.FILES[variant])
