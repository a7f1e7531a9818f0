"""What launch files tell and save, without starting anything: advice at the end, results of tracking, arguments that contradict each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction

from depth_ros.ros import launching

FILES = sorted(path.name for path in Path(launching.share('launch')).glob('*.launch.py'))


def described(file: str) -> LaunchDescription:
    spec = importlib.util.spec_from_file_location('launch_file', launching.share('launch', file))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


def graph(file: str, argv: tuple[str, ...] = (), **arguments: str) -> tuple[LaunchContext, list]:
    """The actions of a launch file with these arguments, and the context that has them; argv: the words of the command line."""
    context, actions = LaunchContext(argv=list(argv)), []
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


@pytest.mark.parametrize('file', FILES)
def test_rviz_that_is_wanted_but_not_installed_is_told_before_anything_starts(monkeypatch, file):
    monkeypatch.setattr(launching.shutil, 'which', lambda name: None)
    with pytest.raises(RuntimeError, match='rviz:=true, but rviz2 is not installed'):
        graph(file, bag='sample', rviz='true')


@pytest.mark.parametrize(('loop', 'told'), [('true', True), ('false', False)])
def test_a_loop_says_that_it_saves_nothing_by_itself(tmp_path, loop, told):
    context, actions = graph('deepv2d_slam.launch.py', bag='sample', out=str(tmp_path), loop=loop)
    lines = [''.join(part.perform(context) for part in action.msg) for action in actions if isinstance(action, LogInfo)]
    assert any('deepv2d/save_trajectory and deepv2d/save_map' in line for line in lines) == told


@pytest.mark.parametrize('passes', ['0', '-2', '1.5', 'twice', '', '1000001'])
def test_passes_that_are_no_number_of_times_are_refused(passes):
    with pytest.raises(RuntimeError, match='passes: expected a whole number from 1 to 1000000, got'):
        graph(FILES[0], bag='sample', passes=passes)


@pytest.mark.parametrize('arguments', [{'bag': 'sample', 'loop': 'true'}, {}], ids=['loop', 'live'])
def test_passes_that_nobody_would_count_are_refused_unless_they_are_another_launch_files(monkeypatch, arguments):
    graph(FILES[0], passes='3', **arguments)        # included: the command line is of another file
    monkeypatch.setattr(launching.sys, 'argv', ['ros2', 'launch', 'depth_ros', FILES[0]])
    with pytest.raises(RuntimeError, match='passes: .* so passes:=3 says nothing'):
        graph(FILES[0], ('passes:=3',), passes='3', **arguments)


@pytest.fixture
def nodes(monkeypatch):
    """Parameters of each node that a launch file starts."""
    made = {}
    monkeypatch.setattr(launching, 'node', lambda context, executable, topics=None, **parameters: made.update({executable: parameters}) or [])
    return made


@pytest.mark.parametrize(('file', 'out'), [(FILES[0], ''), (FILES[-1], 'results')])
def test_the_player_is_told_how_often_to_play(nodes, tmp_path, file, out):
    graph(file, bag='sample', passes='3', out=str(tmp_path / out) if out else '')
    assert (nodes['player']['passes'], nodes['player']['loop']) == (3, False)


@pytest.mark.parametrize('file', FILES)
def test_alone_tracking_keeps_what_its_parameter_file_says_of_frames(nodes, file):
    graph(file)
    assert not {'base_frame', 'odom_frame', 'publish_tf'} & set(nodes.get('deepv2d', ())) and nodes['sparse_depth'] == {}


@pytest.mark.parametrize(('file', 'arguments', 'fixed'), [
    ('robot.launch.py', {'odometry_topic': '/wheels'}, 'odom'), ('robot.launch.py', {'odometry_topic': '/wheels', 'fixed_frame': 'ekf'}, 'ekf'),
    ('online_learning.launch.py', {'odometry_topic': '/wheels', 'tracking': 'true'}, 'odom'),
    ('global_local.launch.py', {'odometry_topic': '/wheels', 'tracking': 'true'}, 'odom'), ('deepv2d_slam.launch.py', {'fixed_frame': 'odom'}, 'odom')])
def test_beside_another_odometry_tracking_has_a_frame_of_its_own_and_beams_are_placed_by_the_other(nodes, file, arguments, fixed):
    graph(file, **arguments)
    assert nodes['deepv2d'] == {'odom_frame': 'visual_odom', 'publish_tf': False} and nodes['sparse_depth'] == {'fixed_frame': fixed}


@pytest.mark.parametrize('file', ['deepv2d_slam.launch.py', 'robot.launch.py'])
def test_frames_that_are_asked_for_are_given(nodes, file):
    graph(file, base_frame='base_link', odom_frame='camera_odom', fixed_frame='odom', publish_tf='true')
    assert nodes['deepv2d'] == {'base_frame': 'base_link', 'odom_frame': 'camera_odom', 'publish_tf': True} and nodes['sparse_depth'] == {'fixed_frame': 'odom'}


@pytest.mark.parametrize(('given', 'wanted'), [('false', set()), ('true', {('/tf', 'tf'), ('/tf_static', 'tf_static')})])
def test_tf_is_everybodys_unless_a_namespace_is_to_have_its_own(monkeypatch, given, wanted):
    made = {}
    monkeypatch.setattr(launching, 'Node', lambda executable, remappings, **_: made.update({executable: set(remappings)}))
    graph('robot.launch.py', namespace='left', namespaced_tf=given)
    assert len(made) >= 5 and all({pair for pair in pairs if pair[0].startswith('/tf')} == wanted for pairs in made.values())
