"""What launch_ros promises: names, namespaces, parameters and remappings reach the node."""
from __future__ import annotations

import os

import pytest
import yaml
from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, Shutdown
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessIO
from launch.actions import RegisterEventHandler
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, TextSubstitution
from launch_ros.actions import Node, PushRosNamespace, SetParameter, SetRemap
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.substitutions import FindPackageShare


def show(**options):
    """A node that prints its arguments."""
    return Node(package='demo_pkg', executable='show_arguments', cached_output=True, **options)


def words(node):
    return node.get_stdout().splitlines()[:-1]


def after(flag, given):
    return [given[index + 1] for index, word in enumerate(given[:-1]) if word == flag]


def test_a_bare_node_gets_no_rules(demo, run_launch):
    node = show()
    assert run_launch(node) == 0
    assert words(node) == ['--ros-args']


def test_arguments_come_before_ros_arguments(demo, run_launch):
    node = show(arguments=['--size', TextSubstitution(text='3')], ros_arguments=['--log-level', 'debug'], name='n', namespace='ns',
                remappings=[('a', 'b'), ('c', [TextSubstitution(text='/d'), 'e'])])
    assert run_launch(node) == 0
    given = words(node)
    assert given[:2] == ['--size', '3'] and given[2] == '--ros-args'
    assert after('--log-level', given) == ['debug']
    assert after('-r', given) == ['__node:=n', '__ns:=/ns', 'a:=b', 'c:=/de']
    assert node.node_name == '/ns/n'


@pytest.mark.parametrize('pushed, own, result', [
    ('a', None, '/a'), ('a', 'b', '/a/b'), ('a', '/b', '/b'), ('/a', 'b', '/a/b'), ('', None, None), ('', 'b', '/b')])
def test_namespaces_nest(demo, run_launch, pushed, own, result):
    node = show(namespace=own)
    assert run_launch(GroupAction([PushRosNamespace(pushed), node])) == 0
    assert after('-r', words(node)) == ([] if result is None else [f'__ns:={result}'])


def test_groups_limit_namespaces_parameters_and_remappings(demo, run_launch):
    inner, outer = show(), show()
    assert run_launch(GroupAction([PushRosNamespace('a'), SetParameter('p', 3), SetRemap('x', 'y'), inner]), outer) == 0
    assert '__ns:=/a' in words(inner) and 'x:=y' in words(inner) and any('p:=3' in word for word in words(inner))
    assert words(outer) == ['--ros-args']


@pytest.fixture
def evaluated(demo, run_launch):
    """Values with which a node's parameters arrive."""
    class Keeping(Node):
        def execute(self, context):
            result = super().execute(context)
            cmd = [''.join(context.perform_substitution(part) for part in word) for word in self.cmd]
            self.files = [yaml.safe_load(open(path)) for path in after('--params-file', cmd)]
            return result

    def evaluate(parameters, **arguments):
        node = Keeping(package='demo_pkg', executable='show_arguments', parameters=parameters)
        assert run_launch(node, **arguments) == 0
        (section,) = node.files[-1].items()
        assert section[0] == '/**'
        return section[1]['ros__parameters']

    return evaluate


@pytest.mark.parametrize('given, value', [
    (3, 3), (0.5, 0.5), (True, True), ('text', 'text'), ('3', '3'), ('true', 'true'), ([1, 2], [1, 2]), ([1, 2.5], [1.0, 2.5]), (['a', 'b'], ['a', 'b']),
    (LaunchConfiguration('three'), 3), (LaunchConfiguration('yes'), True), (LaunchConfiguration('list'), [1.0, 2.0]), (LaunchConfiguration('word'), 'w'),
    ([LaunchConfiguration('word'), '_', LaunchConfiguration('three')], 'w_3'),
    (ParameterValue(LaunchConfiguration('three'), value_type=str), '3'), (ParameterValue(LaunchConfiguration('three'), value_type=float), 3.0),
    (ParameterValue(LaunchConfiguration('yes'), value_type=bool), True), (ParameterValue(7, value_type=int), 7),
])
def test_values_keep_or_gain_their_type(evaluated, given, value):
    result = evaluated([{'p': given}], three='3', yes='true', list='[1.0, 2.0]', word='w')['p']
    assert result == value and type(result) is type(value)


def test_nested_parameters_get_names_with_dots(evaluated):
    assert evaluated([{'a': {'b': 1, 'c': {'d': 2}}, LaunchConfiguration('name'): 3}], name='e') == {'a.b': 1, 'a.c.d': 2, 'e': 3}


@pytest.mark.parametrize('given', [[], [1, 'a'], None])
def test_values_that_no_parameter_can_have_fail_the_launch(demo, run_launch, given):
    with_mistake = None
    try:
        with_mistake = show(parameters=[{'p': given}])
    except TypeError:
        return      # refused at once is just as well
    assert run_launch(with_mistake) == 1


@pytest.mark.parametrize('options', [{'package': 'no_such_package', 'executable': 'x'}, {'package': 'demo_pkg', 'executable': 'no_such_program'}])
def test_what_is_not_installed_fails_the_launch(demo, run_launch, options, capfd):
    assert run_launch(Node(**options)) == 1
    assert 'no_such' in ''.join(capfd.readouterr())


def test_a_condition_skips_a_node(demo, run_launch):
    node = show(condition=IfCondition(LaunchConfiguration('wanted')))
    assert run_launch(node, wanted='false') == 0
    assert node.process_details is None


def test_the_environment_of_a_node_is_extended(demo, run_launch):
    node = show(additional_env={'FLAVOUR': 'sweet'})
    run_launch(node)
    assert node.get_stdout().splitlines()[-1] == 'FLAVOUR sweet'


def test_package_share_is_found(demo):
    path = PathJoinSubstitution([FindPackageShare('demo_pkg'), 'launch'])
    assert path.perform(LaunchContext()) == os.path.join(str(demo), 'launch')


def test_everything_reaches_a_real_node(demo, run_launch, ros_domain, tmp_path):
    """Later parameters win: global ones, then a file, then a dictionary."""
    (tmp_path / 'params.yaml').write_text('/**:\n  ros__parameters:\n    rate: 10.0\n    label: from file\n    sizes: [7, 8, 9]\n')
    (demo / 'launch' / 'named.launch.py').write_text('')
    talker = Node(
        package='demo_pkg', executable='talker', name='renamed', namespace='inner', cached_output=True,
        parameters=[ParameterFile(str(tmp_path / 'params.yaml')), {'label': LaunchConfiguration('label'), 'flag': ParameterValue(True)}],
        remappings=[('chatter', 'talk')])
    end = RegisterEventHandler(OnProcessIO(target_action=talker, on_stdout=lambda event: Shutdown(reason='test') if b'\n' in event.text else None))
    assert run_launch(end, DeclareLaunchArgument('label', default_value='from argument'),
                      GroupAction([PushRosNamespace('outer'), SetParameter('use_sim_time', True), SetParameter('label', 'global'), talker])) == 0
    assert talker.get_stdout().splitlines()[0] == "ready /outer/inner/renamed /outer/inner/talk [10.0, 'from argument', True, True] [7, 8, 9]"
    assert talker.return_code == 0


def test_an_installed_launch_file_is_included(demo, run_launch):
    (demo / 'launch' / 'inner.launch.py').write_text(
        'from launch import LaunchDescription\nfrom launch.actions import DeclareLaunchArgument\n\n\n'
        'def generate_launch_description():\n    return LaunchDescription([DeclareLaunchArgument("must")])\n')
    source = PythonLaunchDescriptionSource(PathJoinSubstitution([FindPackageShare('demo_pkg'), 'launch', 'inner.launch.py']))
    assert run_launch(IncludeLaunchDescription(source, launch_arguments={'must': 'x'}.items())) == 0
    assert run_launch(IncludeLaunchDescription(source)) == 1
