"""The file of a learner: one process holds it, and what a kill left beside it goes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from depth_ros import files
from depth_ros.engines.learner_file import LearnerFile


def test_only_one_holds_it_until_it_lets_go(tmp_path):
    one = LearnerFile(tmp_path / 'folder' / 'state.safetensors')
    with pytest.raises(ValueError, match='state.safetensors: another process learns into this file'):
        LearnerFile(one.path)
    one.close()
    LearnerFile(one.path).close()


def test_the_first_free_one_of_a_row_is_taken(tmp_path):
    held = [LearnerFile.free(tmp_path, 'robot') for _ in range(3)]
    assert [one.path.name for one in held] == ['robot.safetensors', 'robot-2.safetensors', 'robot-3.safetensors']
    held[1].close()
    assert LearnerFile.free(tmp_path, 'robot').path.name == 'robot-2.safetensors'


def test_what_a_killed_writer_left_is_swept_up_and_nothing_else(tmp_path):
    path, other = tmp_path / 'state.safetensors', tmp_path / 'state.safetensors.refused'
    for written in (path, other):
        written.write_text('whole')
    with pytest.raises(KeyboardInterrupt), files.whole(path) as partial:       # what is swept is what `whole` makes
        left = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=tmp_path))
        assert len(left.name) == len(partial.parent.name)
        (left / path.name).write_text('ha')
        raise KeyboardInterrupt
    assert left.exists()
    LearnerFile(path).close()
    assert not left.exists() and path.read_text() == other.read_text() == 'whole'


def test_a_durable_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'state'
    with files.whole(path, durable=True) as partial:
        partial.write_text('one')
        assert not path.exists()
    with pytest.raises(RuntimeError), files.whole(path, durable=True) as partial:
        partial.write_text('tw')
        raise RuntimeError
    assert path.read_text() == 'one' and list(tmp_path.iterdir()) == [path]
