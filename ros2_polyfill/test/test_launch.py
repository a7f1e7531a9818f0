"""What launch descriptions promise: arguments, conditions, scopes, includes, events."""
from __future__ import annotations

import os
import sys

import pytest
from launch import LaunchContext, LaunchDescription, LaunchDescriptionSource
from launch.actions import (
    DeclareLaunchArgument, EmitEvent, ExecuteProcess, GroupAction, IncludeLaunchDescription, LogInfo, OpaqueFunction,
    RegisterEventHandler, SetEnvironmentVariable, SetLaunchConfiguration, Shutdown, TimerAction, UnsetEnvironmentVariable)
from launch.conditions import IfCondition, UnlessCondition
from launch.event_handlers import OnProcessExit, OnProcessIO, OnProcessStart, OnShutdown
from launch.events import Shutdown as ShutdownEvent
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import (
    AndSubstitution, EnvironmentVariable, EqualsSubstitution, IfElseSubstitution, LaunchConfiguration, NotEqualsSubstitution,
    NotSubstitution, OrSubstitution, PathJoinSubstitution, PythonExpression, TextSubstitution, ThisLaunchFileDir)


class Seen(list):
    """Collects the values that substitutions have while a launch runs."""

    def note(self, *substitutions, **kwargs):
        return OpaqueFunction(function=lambda context: self.append(
            ''.join(context.perform_substitution(item) for item in substitutions)), **kwargs)

    def value(self, name, **kwargs):
        return self.note(LaunchConfiguration(name, default='unset'), **kwargs)


@pytest.fixture
def seen():
    return Seen()


def python(source):
    return [sys.executable, '-c', source]


# arguments

def test_an_argument_has_its_default_until_it_is_given(run_launch, seen):
    entities = [DeclareLaunchArgument('speed', default_value='slow'), seen.value('speed')]
    assert run_launch(*entities) == 0
    assert run_launch(*entities, speed='fast') == 0
    assert seen == ['slow', 'fast']


def test_a_default_may_depend_on_another_argument(run_launch, seen):
    run_launch(DeclareLaunchArgument('a', default_value='1'), DeclareLaunchArgument('b', default_value=[LaunchConfiguration('a'), '2']), seen.value('b'))
    assert seen == ['12']


def test_a_required_argument_that_is_missing_fails_the_launch(run_launch, capfd):
    assert run_launch(DeclareLaunchArgument('bag', description='what to play')) == 1
    shown = ''.join(capfd.readouterr())
    assert 'bag' in shown and 'what to play' in shown


def test_only_a_choice_is_accepted(run_launch, seen, capfd):
    entities = [DeclareLaunchArgument('mode', default_value='a', choices=['a', 'b']), seen.value('mode')]
    assert run_launch(*entities, mode='b') == 0
    assert run_launch(*entities, mode='c') == 1
    assert seen == ['b']
    assert "['a', 'b']" in ''.join(capfd.readouterr())


@pytest.mark.parametrize('choices', [[], ['x', 'y']])
def test_choices_that_exclude_the_default_are_refused(choices):
    with pytest.raises(ValueError):
        DeclareLaunchArgument('mode', default_value='a', choices=choices)


def test_declared_arguments_are_found_in_groups_and_behind_conditions():
    description = LaunchDescription([
        DeclareLaunchArgument('a'),
        GroupAction([DeclareLaunchArgument('b', default_value='1')]),
        GroupAction([DeclareLaunchArgument('c')], condition=IfCondition('false'))])
    found = {argument.name: argument._conditionally_included for argument in description.get_launch_arguments()}
    assert found == {'a': False, 'b': False, 'c': True}


# conditions and substitutions

@pytest.mark.parametrize('text, truth', [('true', True), ('True', True), ('1', True), ('false', False), ('FALSE', False), ('0', False)])
def test_conditions_read_truth(run_launch, seen, text, truth):
    run_launch(seen.note(TextSubstitution(text='if'), condition=IfCondition(text)),
               seen.note(TextSubstitution(text='unless'), condition=UnlessCondition(text)))
    assert seen == ['if' if truth else 'unless']


def test_a_condition_that_is_neither_true_nor_false_fails_the_launch(run_launch):
    assert run_launch(LogInfo(msg='never', condition=IfCondition('maybe'))) == 1


@pytest.mark.parametrize('substitution, value', [
    (EqualsSubstitution('a', 'a'), 'true'), (EqualsSubstitution('a', 'b'), 'false'), (EqualsSubstitution('True', 'true'), 'true'),
    (NotEqualsSubstitution('a', 'b'), 'true'), (NotEqualsSubstitution('1.0', '1'), 'false'),
    (AndSubstitution('true', 'false'), 'false'), (OrSubstitution('true', 'false'), 'true'), (NotSubstitution('true'), 'false'),
    (IfElseSubstitution('true', 'x', 'y'), 'x'), (IfElseSubstitution('false', 'x', 'y'), 'y'),
    (PathJoinSubstitution(['a', TextSubstitution(text='b'), [TextSubstitution(text='c'), '.yaml']]), os.path.join('a', 'b', 'c.yaml')),
    (PythonExpression(['2 ** ', TextSubstitution(text='5')]), '32'), (PythonExpression('math.floor(2.5)'), '2'),
    (EnvironmentVariable('NO_SUCH_VARIABLE', default_value='d'), 'd'), (LaunchConfiguration('no_such', default='d'), 'd'),
])
def test_values_of_substitutions(substitution, value):
    assert substitution.perform(LaunchContext()) == value


@pytest.mark.parametrize('substitution', [
    LaunchConfiguration('no_such'), EnvironmentVariable('NO_SUCH_VARIABLE'), AndSubstitution('true', 'maybe')])
def test_substitutions_without_a_value_raise(substitution):
    with pytest.raises(Exception, match='no_such|NO_SUCH|maybe'):
        substitution.perform(LaunchContext())


# scopes

def test_a_group_keeps_what_it_sets_to_itself(run_launch, seen, monkeypatch):
    monkeypatch.setenv('FLAVOUR', 'outer')
    flavour = EnvironmentVariable('FLAVOUR')
    run_launch(
        SetLaunchConfiguration('x', '1'),
        GroupAction([SetLaunchConfiguration('x', '2'), SetEnvironmentVariable('FLAVOUR', 'inner'), seen.value('x'), seen.note(flavour)]),
        seen.value('x'), seen.note(flavour),
        GroupAction([SetLaunchConfiguration('x', '3')], scoped=False), seen.value('x'),
        GroupAction([seen.value('x'), seen.value('y')], forwarding=False, launch_configurations={'y': '4'}), seen.value('y'))
    assert seen == ['2', 'inner', '1', 'outer', '3', 'unset', '4', 'unset']


def test_processes_inherit_the_environment_that_was_set(run_launch, monkeypatch):
    monkeypatch.setenv('FLAVOUR', 'outer')
    report = 'import os; print(os.environ.get("FLAVOUR"), os.environ.get("EXTRA"))'
    before, changed, own, gone = (ExecuteProcess(cmd=python(report), cached_output=True, **more) for more in (
        {}, {}, {'additional_env': {'FLAVOUR': 'own', 'EXTRA': TextSubstitution(text='more')}}, {}))
    run_launch(before, SetEnvironmentVariable('FLAVOUR', ['in', 'ner']), changed, own, UnsetEnvironmentVariable('FLAVOUR'), gone)
    assert [item.get_stdout().strip() for item in (before, changed, own, gone)] == ['outer None', 'inner None', 'own more', 'None None']


# includes

LAUNCH_FILE = '''
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetLaunchConfiguration
from launch.substitutions import LaunchConfiguration, ThisLaunchFileDir


def generate_launch_description():
    return LaunchDescription([
        DeclareLaunchArgument('needed', description='must be given'),
        DeclareLaunchArgument('optional', default_value='default'),
        SetLaunchConfiguration('result', [LaunchConfiguration('needed'), ' ', LaunchConfiguration('optional'), ' ', ThisLaunchFileDir()]),
    ])
'''


@pytest.fixture
def launch_file(tmp_path):
    path = tmp_path / 'included.launch.py'
    path.write_text(LAUNCH_FILE)
    return path


def test_an_included_file_gets_its_arguments(run_launch, seen, launch_file):
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource([str(launch_file.parent), '/included.launch.py']),
                                       launch_arguments={'needed': LaunchConfiguration('mine')}.items())
    assert run_launch(include, seen.value('result'), mine='given') == 0
    assert seen == [f'given default {launch_file.parent}']


def test_an_included_file_that_lacks_an_argument_fails_the_launch(run_launch, launch_file, capfd):
    assert run_launch(IncludeLaunchDescription(PythonLaunchDescriptionSource(str(launch_file)))) == 1
    assert 'needed' in ''.join(capfd.readouterr())


def test_the_folder_of_the_including_file_comes_back(run_launch, seen, launch_file, tmp_path):
    inner = IncludeLaunchDescription(PythonLaunchDescriptionSource(str(launch_file)), launch_arguments=[('needed', 'x')])
    outer = LaunchDescriptionSource(LaunchDescription([inner, seen.note(ThisLaunchFileDir())]), location=str(tmp_path / 'other' / 'outer.py'))
    assert run_launch(IncludeLaunchDescription(outer)) == 0
    assert seen == [str(tmp_path / 'other')]


def test_looking_for_arguments_does_not_fix_the_path_of_an_include(run_launch, seen, launch_file, tmp_path):
    other = tmp_path / 'other.launch.py'
    other.write_text(LAUNCH_FILE.replace("LaunchConfiguration('needed'), ' '", "'other ', LaunchConfiguration('needed'), ' '"))
    path = [str(tmp_path), '/', LaunchConfiguration('which', default='included'), '.launch.py']
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=[('needed', 'x')])
    assert 'needed' not in [argument.name for argument in LaunchDescription([include]).get_launch_arguments()]
    assert run_launch(include, seen.value('result'), which='other') == 0
    assert seen == [f'other x default {tmp_path}']


@pytest.mark.parametrize('source', ['', 'raise ValueError("broken on purpose")', 'def generate_launch_description(:'])
def test_a_broken_launch_file_fails_the_launch(run_launch, tmp_path, source, capfd):
    (tmp_path / 'broken.launch.py').write_text(source)
    assert run_launch(IncludeLaunchDescription(PythonLaunchDescriptionSource(str(tmp_path / 'broken.launch.py')))) == 1
    shown = ''.join(capfd.readouterr())
    assert 'generate_launch_description' in shown or 'broken on purpose' in shown or 'syntax' in shown


# functions, timers, events

def test_a_function_may_return_entities(run_launch, seen):
    run_launch(OpaqueFunction(function=lambda context, text, end: [seen.note(TextSubstitution(text=text + end))], args=['a'], kwargs={'end': 'b'}))
    assert seen == ['ab']


def test_messages_are_shown(run_launch, capfd):
    run_launch(LogInfo(msg=['value ', LaunchConfiguration('x')]), x='42')
    assert '[INFO] [launch.user]: value 42' in ''.join(capfd.readouterr())


def test_a_timer_acts_later_and_is_cancelled_by_the_end(run_launch, seen):
    note = [seen.note(TextSubstitution(text=text)) for text in ('now', 'later', 'never')]
    assert run_launch(TimerAction(period=0.2, actions=[note[1], Shutdown(reason='enough')]), TimerAction(period=300.0, actions=[note[2]]), note[0]) == 0
    assert seen == ['now', 'later']


def test_events_of_a_process_arrive_in_order(run_launch, seen):
    talker = ExecuteProcess(cmd=python('import sys; print("out", flush=True); print("err", file=sys.stderr); sys.exit(3)'))
    assert run_launch(
        RegisterEventHandler(OnProcessStart(target_action=talker, on_start=lambda event, context: seen.append(('start', event.pid)))),
        RegisterEventHandler(OnProcessIO(target_action=talker, on_stdout=lambda event: seen.append(event.text),
                                         on_stderr=lambda event: seen.append(event.text))),
        RegisterEventHandler(OnProcessExit(target_action=talker, on_exit=lambda event, context: seen.append(('exit', event.pid, event.returncode)))),
        talker) == 0
    pid = seen[0][1]
    assert seen[0] == ('start', pid) and seen[-1] == ('exit', pid, 3)
    assert sorted(b''.join(seen[1:-1]).split()) == [b'err', b'out']
    assert talker.return_code == 3


def test_handlers_of_one_process_leave_others_alone(run_launch, seen):
    first, second = (ExecuteProcess(cmd=python('pass')) for _ in range(2))
    run_launch(RegisterEventHandler(OnProcessExit(target_action=first, on_exit=[seen.note(TextSubstitution(text='first'))])), first, second)
    assert seen == ['first']


def test_an_exit_can_start_the_next_process_or_end_the_launch(run_launch, seen):
    forever = ExecuteProcess(cmd=python('import time; time.sleep(300)'))
    second = ExecuteProcess(cmd=python('pass'), on_exit=[Shutdown(reason='second ended')])
    first = ExecuteProcess(cmd=python('pass'), on_exit=[second])
    reasons = RegisterEventHandler(OnShutdown(on_shutdown=lambda event, context: seen.append(event.reason)))
    assert run_launch(reasons, forever, first) == 0
    assert second.return_code == 0 and forever.return_code != 0
    assert seen == ['second ended']


def test_an_emitted_shutdown_ends_the_launch(run_launch):
    forever = ExecuteProcess(cmd=python('import time; time.sleep(300)'))
    emit = RegisterEventHandler(OnProcessStart(target_action=forever, on_start=[EmitEvent(event=ShutdownEvent(reason='asked'))]))
    assert run_launch(emit, forever) == 0
