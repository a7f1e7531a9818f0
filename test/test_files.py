"""A file is written whole or not at all."""

from __future__ import annotations

import pytest

from depth_ros import files


def test_a_finished_file_replaces_the_old_one(tmp_path):
    target = tmp_path / 'folder' / 'note.txt'
    for text in ('first', 'second'):
        with files.whole(target) as partial:
            partial.write_text(text)
        assert target.read_text() == text
    assert [p.name for p in target.parent.iterdir()] == ['note.txt']


def test_a_finished_folder_replaces_a_filled_one(tmp_path):
    target = tmp_path / 'sequence'
    for name in ('a', 'b'):
        with files.whole(target) as partial:
            partial.mkdir()
            (partial / name).write_text(name)
        assert [p.name for p in target.iterdir()] == [name]


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / 'note.txt'
    target.write_text('old')
    with pytest.raises(error), files.whole(target) as partial:
        partial.write_text('half')
        raise error
    assert target.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [target]
