"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
