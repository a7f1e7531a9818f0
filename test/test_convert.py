"""`convert`: from any format to any other and back without a changed bit, and nothing half-written."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from sequence_support import assert_identical, head_of, random_folder

from depth_ros.apps import convert
from depth_ros.learning.sequences import Sequence
from depth_ros.learning.tum import open_sequence

CHAIN = (('bag', 'a.bag'), ('rosbag2-mcap', 'b'), ('rosbag2-sqlite3', 'c'), ('tum', 'd'), ('rosbag2-sqlite3', 'e'), ('bag', 'f.bag'))


def same(first: Path, second: Path) -> None:
    with open_sequence(first) as a, open_sequence(second) as b:
        assert a.frame_id == b.frame_id and a.K.tobytes() == b.K.tobytes() and a.size == b.size
        for x, y in zip(a.events(), b.events(), strict=True):
            assert_identical(x, y)


def run_chain(source: Path, folder: Path) -> None:
    paths = [source]
    for kind, name in CHAIN:
        assert convert.main([str(paths[-1]), str(folder / name), '--format', kind]) == 0
        paths.append(folder / name)
    for path in paths[1:]:
        same(source, path)


def test_a_chain_of_all_formats_changes_nothing(tmp_path):
    run_chain(random_folder(tmp_path / 's'), tmp_path)


def test_kitchen_survives_the_chain(kitchen, tmp_path):
    run_chain(head_of(kitchen, tmp_path / 's', 4), tmp_path)


def test_the_name_tells_the_format(tmp_path):
    source = random_folder(tmp_path / 's', frames=2)
    for name in ('a.bag', 'plain'):
        assert convert.main([str(source), str(tmp_path / name)]) == 0
    assert (tmp_path / 'a.bag').is_file() and (tmp_path / 'plain' / 'rgb.txt').exists()


def test_it_does_not_replace_unless_told(tmp_path, capsys):
    source, target = random_folder(tmp_path / 's', frames=2), tmp_path / 'out'
    assert convert.main([str(source), str(target)]) == 0
    before = sorted(target.rglob('*'))
    assert convert.main([str(random_folder(tmp_path / 't', frames=3)), str(target)]) == 1
    assert '--force' in capsys.readouterr().err and sorted(target.rglob('*')) == before
    for kind, frames in (('tum', 3), ('rosbag2-mcap', 3), ('bag', 3)):     # folder by folder, then folder by file
        assert convert.main([str(tmp_path / 't'), str(target), '--force', '--format', kind]) == 0
    target.rename(tmp_path / 'out.bag')
    with open_sequence(tmp_path / 'out.bag') as replaced:
        assert len(replaced) == frames


def test_force_spares_the_source_and_folders_of_other_things(tmp_path, capsys):
    source = random_folder(tmp_path / 's', frames=2)
    assert convert.main([str(source), str(source), '--force']) == 1
    assert 'replace the source' in capsys.readouterr().err
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.txt').write_text('years of work')
    assert convert.main([str(source), str(tmp_path / 'home'), '--force']) == 1
    assert 'no sequence' in capsys.readouterr().err and (tmp_path / 'home' / 'thesis.txt').exists() and len(open_sequence(source)) == 2


@pytest.mark.parametrize('kind', ['tum', 'bag', 'rosbag2-sqlite3', 'rosbag2-mcap'])
def test_a_bad_image_in_the_middle_leaves_nothing_behind(tmp_path, capsys, kind):
    source = random_folder(tmp_path / 's', frames=5)
    bad = sorted((source / 'depth').iterdir())[3]
    bad.write_bytes(bad.read_bytes()[:50])
    (tmp_path / 'out').mkdir()
    assert convert.main([str(source), str(tmp_path / 'out' / 'copy'), '--format', kind]) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert bad.name in told[-1] and told[-1].startswith('error:')
    assert list((tmp_path / 'out').iterdir()) == []


@pytest.mark.parametrize('kind', ['tum', 'bag', 'rosbag2-sqlite3', 'rosbag2-mcap'])
def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, kind):
    source = random_folder(tmp_path / 's', frames=5)
    count, event = itertools.count(), Sequence.event

    def interrupted(self, *args):
        if next(count) == 7:
            raise KeyboardInterrupt
        return event(self, *args)

    monkeypatch.setattr(Sequence, 'event', interrupted)
    (tmp_path / 'out').mkdir()
    assert convert.main([str(source), str(tmp_path / 'out' / 'copy'), '--format', kind]) == 130
    assert next(count) == 8 and list((tmp_path / 'out').iterdir()) == []


def test_arguments_of_ros_are_passed_over(tmp_path):
    source = random_folder(tmp_path / 's', frames=2)
    assert convert.main([str(source), '--ros-args', '-r', '__node:=x', '--log-level', 'info', '--', str(tmp_path / 'out')]) == 0
    assert len(open_sequence(tmp_path / 'out')) == 2


def test_the_program_fails_with_one_line_and_helps(tmp_path):
    command = [sys.executable, '-m', 'depth_ros.apps.convert']
    root = Path(__file__).resolve().parents[1]
    failed = subprocess.run([*command, str(tmp_path / 'nothing.bag'), str(tmp_path / 'out')], cwd=root, capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and len(failed.stderr.strip().splitlines()) == 1 and 'nothing.bag' in failed.stderr
    helped = subprocess.run([*command, '--help'], cwd=root, capture_output=True, text=True, check=False)
    assert helped.returncode == 0 and 'rosbag2-mcap' in helped.stdout
