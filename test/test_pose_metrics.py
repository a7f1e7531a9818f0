"""Metrics of camera motion: what must change them, what must not, and what a motion without length says."""

from __future__ import annotations

import math

import pytest
import torch

from depth_ros.geometry import se3
from depth_ros.learning import pose_metrics

COUNT = 6


@pytest.fixture
def motions():
    generator = torch.Generator().manual_seed(4)
    return se3.exp(0.3 * torch.randn(COUNT, 6, generator=generator, dtype=torch.float64))


def values(estimated, true, name):
    return torch.tensor([one[name] for one in pose_metrics.pose_metrics(estimated, true)])


def test_a_perfect_estimate_has_no_error(motions):
    for name in pose_metrics.NAMES:
        torch.testing.assert_close(values(motions, motions, name), torch.zeros(COUNT), atol=1e-4, rtol=0)


def test_a_turn_about_the_own_centre_is_the_rotation_error(motions):
    turn = se3.exp(torch.tensor([0.0, 0.0, 0.0, 0.0, math.radians(3.0), 0.0], dtype=torch.float64))
    turned = motions @ turn
    torch.testing.assert_close(values(turned, motions, 'rotation'), torch.full((COUNT,), 3.0), atol=1e-4, rtol=0)
    assert values(turned, motions, 'direction').max() < 1e-4 and values(turned, motions, 'translation_cm').max() < 1e-4


def test_length_counts_in_centimetres_and_not_in_the_direction(motions):
    longer = pose_metrics.rescaled(motions, 1.5)
    torch.testing.assert_close(values(longer, motions, 'translation_cm'), (50.0 * motions[:, :3, 3].norm(dim=1)).float())
    assert values(longer, motions, 'direction').max() < 1e-4
    assert values(pose_metrics.rescaled(motions, -1.0), motions, 'direction').min() > 179.9


def test_the_factor_undoes_a_wrong_unit_and_only_that(motions):
    assert pose_metrics.length_factor(pose_metrics.rescaled(motions, 0.2), motions) == pytest.approx(5.0)
    noisy = motions.clone()
    noisy[:, :3, 3] += 0.05 * torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    best = pose_metrics.length_factor(noisy, motions)

    def error(factor):
        return float((factor * noisy[:, :3, 3] - motions[:, :3, 3]).square().sum())

    assert error(best) < min(error(1.001 * best), error(0.999 * best))


def test_a_camera_that_stands_still_tells_no_direction(motions):
    still = torch.eye(4, dtype=torch.float64).expand(COUNT, 4, 4)
    assert (values(still, motions, 'direction') == pose_metrics.UNKNOWN_DIRECTION).all()
    assert pose_metrics.length_factor(still, motions) == 1.0


def test_what_cannot_be_scored_is_refused(motions):
    with pytest.raises(ValueError, match='expected two sets'):
        pose_metrics.pose_metrics(motions, motions[:2])
    with pytest.raises(ValueError, match='finite'):
        pose_metrics.pose_metrics(motions * float('nan'), motions)
