"""`ros2 run depth_ros NODE --help`: purpose, every parameter with default and bounds; what stands outside --ros-args is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ros_support import LIMIT

from depth_ros.ros import params, usage
from depth_ros.ros.deepv2d_node import DeepV2DNode
from depth_ros.ros.flow_node import FlowNode
from depth_ros.ros.global_local_node import GlobalLocalNode
from depth_ros.ros.online_learning_node import OnlineLearningNode
from depth_ros.ros.player_node import PlayerNode
from depth_ros.ros.sparse_depth_node import SparseDepthNode

NODES = {'deepv2d': DeepV2DNode, 'flow': FlowNode, 'global_local': GlobalLocalNode, 'online_learning': OnlineLearningNode, 'player': PlayerNode, 'sparse_depth': SparseDepthNode}


def run(*words: str) -> subprocess.CompletedProcess:
    """The executable of sparse_depth."""
    code = 'from depth_ros.ros import executables; executables.sparse_depth()'
    return subprocess.run([sys.executable, '-c', code, *words], capture_output=True, text=True, timeout=LIMIT)


@pytest.mark.parametrize('name', NODES)
def test_every_parameter_stands_there_with_its_description(name):
    text = usage.text(name, NODES[name])
    told = ' '.join(text.split())
    assert told.startswith(f'usage: ros2 run depth_ros {name} ') and f'{name}: ros__parameters:' in told
    for parameter, fact in params.facts_of(NODES[name].config_class).items():
        assert f'\n  {parameter} = ' in text and ' '.join(fact.setting.description.split()) in told, parameter


def test_defaults_bounds_choices_and_what_is_for_the_start_only_are_told():
    told = ' '.join(usage.text('deepv2d', DeepV2DNode).split())
    assert 'width = 320 image width that tracking and depth work at [px]; from 64 to 1920; not while the node is active' in told
    assert "depth = 'auto'" in told and 'one of: auto, sensor, flow, sweep' in told
    assert 'publish_tf = true publish odom -> camera (or base) on /tf, unless TF has another parent of that frame already; for the start only' in told


@pytest.mark.parametrize('words', [['--help'], ['-h'], ['--help', '--ros-args', '-p', 'gather:=0.2']])
def test_help_is_printed_and_no_node_started(words):
    done = run(*words)
    assert done.returncode == 0 and done.stderr == ''
    assert done.stdout == usage.text('sparse_depth', SparseDepthNode) + '\n'


@pytest.mark.parametrize('word', ['gather:=0.2', '--gather', 'help'])
def test_a_word_that_nothing_would_heed_is_refused_by_name(word):
    done = run(word)
    assert done.returncode == 2 and done.stdout == ''
    assert f'error: {word} stands outside --ros-args' in done.stderr and 'Traceback' not in done.stderr
