"""What launch files tell and save, without starting anything: advice at the end, results of tracking, arguments that contradict each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from depth_ros.ros import launching

FILES = sorted(path.name for path in Path(launching.share('launch')).glob('*.launch.py'))


def described(file: str) -> LaunchDescription:
    spec = importlib.util.spec_from_file_location('launch_file', launching.share('launch', file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


def graph(file: str, **arguments: str) -> tuple[LaunchContext, list]:
    """The actions of a launch file with these arguments, and the context that has them."""
    context, actions = LaunchContext(), []
    for entity in described(file).entities:
        if isinstance(entity, DeclareLaunchArgument):
            context.launch_configurations[entity.name] = arguments.get(entity.name, ''.join(part.perform(context) for part in entity.default_value))
        elif isinstance(entity, OpaqueFunction):
            actions += entity.execute(context) or []
    return context, actions


@pytest.fixture
def hints(monkeypatch):
    """What launch files have to say at the end of a recording, as the user would read it."""
    told, fill = [], launching.filled
    monkeypatch.setattr(launching, 'filled', lambda context, advice: told.append(fill(context, advice)) or told[-1])
    return told


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize(('active', 'words'), [(None, ' ros2 run depth_ros evaluate '), ('wheels:/somewhere', ' ./rosenv ros2 run depth_ros evaluate ')])
def test_advice_names_a_command_that_runs_where_the_user_stands(monkeypatch, hints, file, active, words):
    monkeypatch.delenv('ROSENV_ACTIVE', raising=False)
    if active:
        monkeypatch.setenv('ROSENV_ACTIVE', active)
    graph(file, bag='sample')
    assert len(hints) == 1 and words in hints[0] and '--sequence sample' in hints[0] and not set('{}') & set(hints[0])


@pytest.mark.parametrize('variant', ['published', 'pose_aware'])
def test_advice_scores_the_variant_that_was_shown(hints, variant):
    graph('global_local.launch.py', bag='sample', variant=variant)
    assert f'--variant {variant} ' in hints[0]


@pytest.mark.parametrize('arguments', [{'variant': 'pose_aware'}, {'tracking': 'true'}])
def test_what_tracking_makes_is_saved_beside_the_network_as_well(monkeypatch, tmp_path, arguments):
    nodes = {}
    monkeypatch.setattr(launching, 'node', lambda context, executable, *topics, **parameters: nodes.update({executable: parameters}) or [])
    graph('global_local.launch.py', bag='sample', out=str(tmp_path), **arguments)
    assert nodes['deepv2d'] == {'trajectory_file': f'{tmp_path}/trajectory.txt', 'map_file': f'{tmp_path}/map.ply'}


@pytest.mark.parametrize('arguments', [{}, {'tracking': 'false', 'variant': 'pose_aware'}, {'odometry_topic': '/wheels', 'variant': 'pose_aware'}])
def test_nothing_to_save_is_told_before_anything_starts(tmp_path, arguments):
    with pytest.raises(RuntimeError, match='out: without tracking .* tracking:=true'):
        graph('global_local.launch.py', bag='sample', out=str(tmp_path), **arguments)
