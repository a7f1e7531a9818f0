"""Command-line options say what the settings say."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import pytest

from depth_ros.apps import options
from depth_ros.settings import setting


@dataclass(frozen=True)
class Config:
    mode: str = setting('slow', 'how', choices=('slow', 'fast'))
    grid_step: int = setting(4, 'spacing of 50 % of the points', 'px', low=1, high=16)
    gain: float = setting(0.5, 'weight', low=0.0)
    check: bool = setting(True, 'whether')


def parsed(*words: str) -> Config:
    parser = argparse.ArgumentParser()
    options.add(parser, Config, 'engine')
    return options.read(parser.parse_args(words), Config)


def test_without_options_the_defaults_hold():
    assert parsed() == Config()


def test_every_type_is_read_under_its_name():
    assert parsed('--mode', 'fast', '--grid-step', '8', '--gain', '2', '--check', 'false') == Config('fast', 8, 2.0, False)
    assert parsed('--grid_step', '8') == parsed('--grid-step', '8')


def test_a_program_does_not_see_what_ros_adds_to_its_arguments():
    seen = []
    assert options.run(seen.extend, ['a', '--ros-args', '-r', '__node:=x', '--', 'b', '--ros-args', '--log-level', 'info']) == 0
    assert seen == ['a', 'b']


@pytest.mark.parametrize('words, complaint', [
    (('--grid-step', '17'), r'grid_step: expected at most 16 px, got 17'),
    (('--gain', '-1'), r'gain: expected at least 0.0, got -1.0'),
    (('--gain', 'nan'), r'gain: expected at least 0.0, got nan'),
])
def test_a_value_out_of_range_is_refused_with_the_reason(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        parsed(*words)


@pytest.mark.parametrize('words', [('--mode', 'idle'), ('--check', 'perhaps'), ('--grid-step', '2.5'), ('--unknown', '1')])
def test_a_value_of_another_kind_ends_the_program(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_help_gives_description_unit_and_default(capsys):
    with pytest.raises(SystemExit):
        parsed('--help')
    assert 'spacing of 50 % of the points [px] (default: 4)' in ' '.join(capsys.readouterr().out.split())


def test_an_expected_failure_is_one_line_and_a_status(capsys):
    def fail(_argv: list[str]) -> None:
        raise ValueError('rgb.txt:3: a duplicate time stamp')

    assert options.run(fail, []) == 1
    assert capsys.readouterr().err == 'error: rgb.txt:3: a duplicate time stamp\n'
    assert options.run(lambda argv: None, []) == 0
