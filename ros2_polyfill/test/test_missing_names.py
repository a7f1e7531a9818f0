"""A name the polyfill lacks says so, however it is asked for. (There is nothing to test with a full ROS 2.)"""
import importlib

import pytest

pytest.importorskip('polyfill_names', reason='a full ROS 2 has every name')

MODULES = ['tf2_ros', 'message_filters', 'cv_bridge', 'sensor_msgs_py', 'sensor_msgs_py.point_cloud2', 'launch', 'launch.actions', 'launch.substitutions',
           'launch_ros', 'launch_ros.actions', 'launch_pytest', 'launch_pytest.tools', 'ros2cli']


@pytest.mark.parametrize('name', MODULES)
def test_an_attribute_that_is_lacking_says_where_it_exists(name):
    module = importlib.import_module(name)
    with pytest.raises(AttributeError, match='no_such_thing.*full ROS 2'):
        module.no_such_thing
    assert not hasattr(module, 'no_such_thing')


@pytest.mark.parametrize('name', MODULES)
def test_an_import_of_a_lacking_name_says_where_it_exists(name):
    with pytest.raises(ImportError, match='no_such_thing.*full ROS 2'):
        exec(f'from {name} import no_such_thing')


def test_submodules_are_still_found():
    from sensor_msgs_py import point_cloud2
    assert point_cloud2.read_points


@pytest.mark.parametrize('name', ['launch.frontend', 'launch_ros.event_handlers'])
def test_a_submodule_that_is_lacking_says_where_it_exists(name):
    with pytest.raises(ModuleNotFoundError, match=f'{name}.*full ROS 2'):
        importlib.import_module(name)
