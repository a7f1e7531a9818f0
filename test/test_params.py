"""Parameters: what is declared, what is refused and why."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from rcl_interfaces.msg import ParameterType
from rclpy.node import Node
from rclpy.parameter import Parameter

from depth_ros.ros import params
from depth_ros.settings import setting


@dataclass(frozen=True)
class Engine:
    width: int = setting(320, 'width', 'px', low=16, high=4096, while_active=False)
    mode: str = setting('fast', 'mode', choices=('fast', 'good'))


@dataclass(frozen=True)
class Config:
    rate: float = setting(1.0, 'speed', low=0.0)
    path: str = setting('', 'where', read_only=True)
    loop: bool = setting(False, 'again and again')
    engine: Engine = params.included(Engine, mode='good')
    other: Engine = params.included(Engine, prefix='other_')


@pytest.fixture
def node(world):
    made = []

    def make(**overrides):
        made.append(Node('subject', context=world.context, parameter_overrides=[Parameter(n, value=v) for n, v in overrides.items()]))
        return made[-1]

    yield make
    for one in made:
        one.destroy_node()


def test_included_fields_keep_their_names_and_defaults(node):
    config = params.declare(node(), Config)
    assert config == Config()
    assert (config.engine.mode, config.other.mode) == ('good', 'fast')
    assert list(params.facts_of(Config)) == ['rate', 'path', 'loop', 'width', 'mode', 'other_width', 'other_mode']


def test_overrides_reach_nested_fields_and_whole_numbers_serve_as_floats(node):
    config = params.declare(node(rate=2, mode='fast', other_width=64), Config)
    assert (config.rate, config.engine.mode, config.other.width, config.engine.width) == (2.0, 'fast', 64, 320)
    assert isinstance(config.rate, float)


@pytest.mark.parametrize(('overrides', 'words'), [
    ({'width': 5}, ('width', 'at least 16 px', '5')),
    ({'mode': 'best'}, ('mode', 'fast, good', "'best'")),
    ({'loop': 1}, ('loop', 'bool', '1')),
    ({'width': 320.0}, ('width', 'int', '320.0')),
    ({'rate': float('nan')}, ('rate', 'at least 0.0', 'nan'))])
def test_a_bad_override_is_refused_by_name_and_reason(node, overrides, words):
    with pytest.raises(ValueError) as error:
        params.declare(node(**overrides), Config)
    assert all(word in str(error.value) for word in words), error.value


def test_descriptors_tell_description_unit_range_choices_and_read_only(node):
    subject = node()
    params.declare(subject, Config)
    width, mode, path, rate = (subject.describe_parameter(name) for name in ('width', 'mode', 'path', 'rate'))
    assert width.description == 'width [px]' and width.type == ParameterType.PARAMETER_INTEGER
    assert (width.integer_range[0].from_value, width.integer_range[0].to_value) == (16, 4096)
    assert mode.additional_constraints == 'one of: fast, good' and width.additional_constraints == 'not while the node is active'
    assert path.read_only and not rate.read_only
    assert rate.floating_point_range[0].from_value == 0.0 and rate.floating_point_range[0].to_value > 1e300
    assert not any(subject.describe_parameter(name).dynamic_typing for name in params.facts_of(Config))
    assert not subject.set_parameters([Parameter('path', value='else')])[0].successful
    assert not subject.set_parameters([Parameter('width', value=8)])[0].successful


def test_changes_apply_together_or_not_at_all():
    config = params.changed(Config(), [Parameter('mode', value='fast'), Parameter('rate', value=0.5), Parameter('use_sim_time', value=True)])
    assert (config.engine.mode, config.rate, config.other) == ('fast', 0.5, Engine())
    with pytest.raises(ValueError, match="mode: expected one of fast, good, got 'slow'"):
        params.changed(config, [Parameter('rate', value=3.0), Parameter('mode', value='slow')])


def test_what_a_running_node_cannot_take_is_refused_by_name_until_it_pauses():
    wider, faster = Parameter('width', value=640), Parameter('mode', value='fast')
    assert params.changed(Config(), [wider, faster]).engine == Engine(640, 'fast')
    assert params.changed(Config(), [faster], active=True).engine.mode == 'fast'
    assert params.changed(Config(), [Parameter('width', value=320)], active=True) == Config()
    with pytest.raises(ValueError, match='width: cannot change while the node is active; deactivate it first'):
        params.changed(Config(), [faster, wider], active=True)


def test_two_parameters_of_one_name_are_an_error():
    @dataclass(frozen=True)
    class Twice:
        width: int = setting(1, 'width')
        engine: Engine = params.included(Engine)

    with pytest.raises(ValueError, match='width is defined by'):
        params.facts_of(Twice)


CONFIGS = sorted((Path(__file__).resolve().parents[1] / 'config').glob('*.yaml'))
NODES = {'player': ('player_node', 'PlayerConfig'), 'flow': ('flow_node', 'FlowNodeConfig'), 'sparse_depth': ('sparse_depth_node', 'SparseDepthConfig'),
         'deepv2d': ('deepv2d_node', 'DeepV2DNodeConfig'), 'global_local': ('global_local_node', 'GlobalLocalNodeConfig'),
         'online_learning': ('online_learning_node', 'OnlineLearningNodeConfig')}


def test_there_are_configurations():
    assert CONFIGS


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.name)
def test_configurations_name_only_parameters_that_exist_with_values_that_hold(path):
    for pattern, section in yaml.safe_load(path.read_text()).items():
        module, name = NODES[pattern.rpartition('/')[2]]
        config = getattr(importlib.import_module(f'depth_ros.ros.{module}'), name)
        params.build(config, {k: v for k, v in section['ros__parameters'].items() if k != 'use_sim_time'})


@pytest.mark.parametrize(('module', 'name'), NODES.values(), ids=NODES)
def test_every_parameter_is_described(module, name):
    facts = params.facts_of(getattr(importlib.import_module(f'depth_ros.ros.{module}'), name))
    assert all(len(fact.setting.description) > 8 for fact in facts.values())
    assert 'autostart' in facts
