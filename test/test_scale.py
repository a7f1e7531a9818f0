"""The metric scale from range hits: many at once, one at a time, and false ones."""

from __future__ import annotations

import numpy as np
import pytest

from depth_ros.engines.scale import MetricScale, MetricScaleConfig, ScaledPath

RNG = np.random.default_rng(5)
DEPTH = RNG.uniform(0.5, 2.0, (24, 32)).astype(np.float32)      # in the odometry's unit
TRUSTED = np.ones(DEPTH.shape, bool)


def hits(factor: float, count: int, noise: float = 0.01) -> np.ndarray:
    """`count` hits [m] on DEPTH, a metre being 1 / factor units."""
    sparse = np.zeros_like(DEPTH)
    chosen = RNG.choice(DEPTH.size, count, replace=False)
    sparse.flat[chosen] = factor * DEPTH.flat[chosen] * (1 + RNG.normal(0, noise, count))
    return sparse


def test_one_frame_with_many_hits_tells_the_scale():
    scale = MetricScale()
    assert scale.update(DEPTH, TRUSTED, hits(1.7, 60))
    assert scale.factor == pytest.approx(1.7, rel=0.01)


def test_a_single_rangefinder_tells_it_after_some_frames():
    scale = MetricScale()
    told = [scale.update(DEPTH, TRUSTED, hits(0.6, 1)) for _ in range(40)]
    assert told.count(True) == 2 and not told[0]
    assert scale.factor == pytest.approx(0.6, rel=0.01)


def test_the_median_bears_a_third_of_false_hits():
    scale = MetricScale()
    for _ in range(20):
        sparse = hits(1.7, 60)
        false = RNG.choice(np.flatnonzero(sparse), 18, replace=False)
        sparse.flat[false] = RNG.uniform(0.1, 10.0, 18)
        scale.update(DEPTH, TRUSTED, sparse)
    assert scale.factor == pytest.approx(1.7, rel=0.05)


def test_hits_that_disagree_with_each_other_tell_nothing():
    scale = MetricScale()
    for _ in range(5):
        sparse = np.where(hits(1.0, 100) > 0, RNG.uniform(0.1, 20.0, DEPTH.shape), 0.0)
        assert not scale.update(DEPTH, TRUSTED, sparse)
    assert scale.factor is None


def test_distrusted_depth_counts_for_nothing():
    scale = MetricScale()
    assert not any(scale.update(DEPTH, ~TRUSTED, hits(1.0, 100)) for _ in range(5))
    assert scale.factor is None


def test_a_short_fault_is_outlived_and_a_lasting_change_believed():
    config = MetricScaleConfig()
    scale = MetricScale(config)
    for _ in range(config.scale_patience):
        scale.update(DEPTH, TRUSTED, hits(1.0, 60))
    for _ in range(config.scale_patience):
        assert not scale.update(DEPTH, TRUSTED, hits(10.0, 60))
    assert scale.factor == pytest.approx(1.0, rel=0.01)
    assert scale.restarts == 0
    assert scale.update(DEPTH, TRUSTED, hits(10.0, 60))
    assert scale.factor == pytest.approx(10.0, rel=0.01) and scale.restarts == 1


def test_a_wrong_first_frame_is_believed_no_longer_than_it_was_alone():
    scale = MetricScale()
    scale.update(DEPTH, TRUSTED, hits(3.0, 60))
    assert not scale.update(DEPTH, TRUSTED, hits(1.0, 60))
    assert scale.update(DEPTH, TRUSTED, hits(1.0, 60)) and scale.restarts == 1
    assert scale.factor == pytest.approx(1.0, rel=0.01)


def test_the_first_frames_have_equal_shares():
    told, scale = (1.1, 1.0, 0.9, 1.05), MetricScale()
    for factor in told:
        scale.update(DEPTH, TRUSTED, hits(factor, 60, noise=0.0))
    assert scale.factor == pytest.approx(np.exp(np.mean(np.log(told))), rel=1e-3) and scale.restarts == 0


def test_a_new_factor_changes_the_steps_and_not_the_place():
    path, T = ScaledPath(), np.eye(4)
    places = []
    for i, factor in enumerate((1.0, 1.0, 2.0, 2.0)):
        T[0, 3] = float(i)
        places.append(path.pose(T, factor)[0, 3])
    np.testing.assert_allclose(places, [0.0, 1.0, 3.0, 5.0])
