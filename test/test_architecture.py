"""The one-way imports between the folders of the package, and the size of files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'depth_ros'
LAYERS = ('files', 'settings', 'frames', 'geometry', 'models', 'learning', 'engines', 'apps', 'ros')
ROS_MODULES = {'rclpy', 'launch', 'launch_ros', 'launch_pytest', 'tf2_ros', 'tf2_msgs', 'message_filters', 'cv_bridge', 'sensor_msgs_py', 'ament_index_python',
               'sensor_msgs', 'nav_msgs', 'geometry_msgs', 'std_msgs', 'std_srvs', 'diagnostic_msgs', 'stereo_msgs', 'builtin_interfaces',
               'rosgraph_msgs', 'visualization_msgs', 'rcl_interfaces', 'lifecycle_msgs'}
MAX_LINES = 430     # "not much over 400"
SOURCES = sorted(set(PACKAGE.rglob('*.py')) - {PACKAGE / '__init__.py'})
ALL_PYTHON = sorted(p for folder in ('depth_ros', 'launch', 'test', 'benchmarks', 'ros2_polyfill/src', 'ros2_polyfill/test') for p in (ROOT / folder).rglob('*.py')
                    if not any(part.startswith('.') for part in p.relative_to(ROOT).parts))


def imported_modules(source: Path) -> set[str]:
    """Absolute names of every module that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{source}: relative imports hide the layer they reach'
            names.update({f'{node.module}.{alias.name}' for alias in node.names} | {node.module})
    return names


def layer_of(module: str) -> int | None:
    parts = module.split('.')
    return LAYERS.index(parts[1]) if parts[0] == 'depth_ros' and len(parts) > 1 else None


@pytest.mark.parametrize('source', SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_layer_and_those_above(source):
    own = layer_of('.'.join(source.relative_to(ROOT).with_suffix('').parts))
    for module in imported_modules(source):
        layer = layer_of(module)
        assert layer is None or layer <= own, f'{source.name} ({LAYERS[own]}) imports {module}'


@pytest.mark.parametrize('source', SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_ros_folder_knows_ros(source):
    if PACKAGE / 'ros' in source.parents:
        return
    roots = {m.split('.')[0] for m in imported_modules(source)}
    assert not roots & ROS_MODULES


def test_only_codecs_touch_cv_bridge():
    users = [p.name for p in SOURCES if any(m.split('.')[0] == 'cv_bridge' for m in imported_modules(p))]
    assert set(users) <= {'codecs.py'}


def test_every_layer_is_known():
    found = {p.relative_to(PACKAGE).parts[0].removesuffix('.py') for p in SOURCES}
    assert found <= set(LAYERS)


@pytest.mark.parametrize('source', ALL_PYTHON, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_much_over_400_lines(source):
    assert len(source.read_text().splitlines()) <= MAX_LINES
