"""Laws of choosing the pixels whose depth is told."""

from __future__ import annotations

import pytest
import torch

from depth_ros.learning import supervision


@pytest.fixture
def valid() -> torch.Tensor:
    return torch.rand(4, 1, 12, 16, generator=torch.Generator().manual_seed(3)) < 0.6


def choose(valid: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    return supervision.choose(valid, count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('count', [1, 2, 5, 10, 50, 100])
def test_each_image_gets_its_count_of_valid_pixels(valid, count):
    chosen = choose(valid, count)
    assert (chosen.flatten(1).sum(1) == count).all() and not (chosen & ~valid).any()


@pytest.mark.parametrize('count', [supervision.DENSE, 150, 1000])
def test_an_image_without_so_many_gives_all_it_has(valid, count):
    assert torch.equal(choose(valid, count), valid)


def test_an_image_without_valid_pixels_gives_none(valid):
    valid[2] = False
    assert choose(valid, 5).flatten(1).sum(1).tolist() == [5, 5, 0, 5]


def test_the_seed_decides(valid):
    assert torch.equal(choose(valid, 3, 1), choose(valid, 3, 1)) and not torch.equal(choose(valid, 3, 1), choose(valid, 3, 2))


def test_every_valid_pixel_is_as_likely_as_another():
    valid = torch.ones(4000, 1, 2, 5, dtype=torch.bool)
    valid[:, :, 1, 3] = False
    frequency = choose(valid, 3).float().mean(0)[0]
    assert frequency[1, 3] == 0.0
    assert (frequency[valid[0, 0]] - 3 / 9).abs().max() < 0.04


def test_a_negative_count_is_refused(valid):
    with pytest.raises(ValueError, match='supervised pixels'):
        choose(valid, -1)
