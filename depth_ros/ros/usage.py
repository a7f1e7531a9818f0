"""What `ros2 run depth_ros NODE --help` prints: what a node is for, its parameters and how they are set."""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap

from depth_ros.ros import params
from depth_ros.ros.params import Fact

_WIDEST = 140       # columns of text that are read with ease
_SETTING = '''\
Parameters are set behind --ros-args, with -p NAME:=VALUE or in a YAML file:

    {name}:
      ros__parameters:
        NAME: VALUE

and, unless they are for the start only, with `ros2 param set /{name} NAME VALUE` while the node runs.
As in every node, use_sim_time:=true follows /clock, and -r FROM:=TO renames a topic.'''


def usage(name: str) -> str:
    """How a node's program is called."""
    return f'usage: ros2 run depth_ros {name} [-h] [--ros-args [-p NAME:=VALUE ...] [--params-file FILE] [-r FROM:=TO ...] [--log-level LEVEL]]'


def text(name: str, node_class: type) -> str:
    """The help on a node: purpose, how parameters are set, and each with its default, range and description."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    module = inspect.cleandoc(sys.modules[node_class.__module__].__doc__)
    purpose = [textwrap.fill(' '.join(part.split()), width) for part in (*module.split('\n\n'), *inspect.getdoc(node_class).split('\n\n'))]
    facts = params.facts_of(node_class.config_class)
    return '\n\n'.join([usage(name), *purpose, _SETTING.format(name=name), 'parameters:\n' + '\n'.join(_entry(*item, width) for item in facts.items())])


def _entry(name: str, fact: Fact, width: int) -> str:
    """A parameter in two lines or more."""
    default = str(fact.default).lower() if isinstance(fact.default, bool) else repr(fact.default)
    told = params.descriptor(fact)
    notes = '; '.join(filter(None, (told.description, _range(fact), told.additional_constraints, 'for the start only' if fact.setting.read_only else '')))
    return f'  {name} = {default}\n' + textwrap.fill(notes, width, initial_indent=' ' * 6, subsequent_indent=' ' * 6)


def _range(fact: Fact) -> str:
    low, high = fact.setting.low, fact.setting.high
    return ' '.join(f'{word} {bound:g}' for word, bound in (('from', low), ('to', high)) if bound is not None)
