"""Depth metrics against plain loops over pixels, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depth_ros.learning import metrics


@pytest.fixture
def depths():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 6.0, (12, 17)).astype(np.float32)
    predicted = (truth * np.exp(rng.normal(0.1, 0.3, truth.shape))).astype(np.float32)
    return predicted, truth, rng.random(truth.shape) < 0.7


def test_every_metric_is_what_its_definition_says(depths):
    predicted, truth, valid = depths
    pairs = [(float(p), float(t)) for p, t, v in zip(predicted.flat, truth.flat, valid.flat) if v]
    n = len(pairs)
    logs = [math.log(p / t) for p, t in pairs]
    wanted = {
        'abs_rel': sum(abs(p - t) / t for p, t in pairs) / n,
        'sq_rel': sum((p - t) ** 2 / t for p, t in pairs) / n,
        'rmse': math.sqrt(sum((p - t) ** 2 for p, t in pairs) / n),
        'rmse_log': math.sqrt(sum(d * d for d in logs) / n),
        'log10': sum(abs(math.log10(p) - math.log10(t)) for p, t in pairs) / n,
        'delta_1_25': sum(max(p / t, t / p) < 1.25 for p, t in pairs) / n,
        'delta_1_25_2': sum(max(p / t, t / p) < 1.5625 for p, t in pairs) / n,
        'delta_1_25_3': sum(max(p / t, t / p) < 1.953125 for p, t in pairs) / n,
        'sc_inv': math.sqrt(sum(d * d for d in logs) / n - (sum(logs) / n) ** 2),
        'abs_inv': sum(abs(1 / p - 1 / t) for p, t in pairs) / n,
    }
    found = metrics.depth_metrics(predicted, truth, valid)
    assert tuple(found) == metrics.NAMES
    assert found == pytest.approx(wanted, rel=1e-6)


def test_a_perfect_prediction_scores_perfectly(depths):
    _, truth, valid = depths
    found = metrics.depth_metrics(truth, truth, valid)
    assert {name: value for name, value in found.items() if value} == {'delta_1_25': 1.0, 'delta_1_25_2': 1.0, 'delta_1_25_3': 1.0}


def test_what_the_mask_leaves_out_does_not_count(depths):
    predicted, truth, valid = depths
    spoilt, bad = predicted.copy(), truth.copy()
    spoilt[~valid], bad[~valid] = np.nan, 0.0
    assert metrics.depth_metrics(spoilt, bad, valid) == metrics.depth_metrics(predicted, truth, valid)
    assert metrics.median_scale(spoilt, bad, valid) == metrics.median_scale(predicted, truth, valid)


def test_a_common_factor_leaves_the_relative_ones_alone(depths):
    predicted, truth, valid = depths
    found, scaled = metrics.depth_metrics(predicted, truth, valid), metrics.depth_metrics(4.0 * predicted, 4.0 * truth, valid)
    for name in ('abs_rel', 'rmse_log', 'log10', 'delta_1_25', 'sc_inv'):
        assert scaled[name] == pytest.approx(found[name], rel=1e-9)
    assert scaled['rmse'] == pytest.approx(4.0 * found['rmse']) and scaled['abs_inv'] == pytest.approx(found['abs_inv'] / 4.0)


def test_sc_inv_ignores_the_scale_of_the_prediction_and_the_median_finds_it(depths):
    predicted, truth, valid = depths
    assert metrics.depth_metrics(3.0 * predicted, truth, valid)['sc_inv'] == pytest.approx(metrics.depth_metrics(predicted, truth, valid)['sc_inv'])
    assert metrics.median_scale(truth * 0.4, truth, valid) == pytest.approx(2.5)
    factor = metrics.median_scale(predicted, truth, valid)
    assert np.median(factor * predicted[valid]) == pytest.approx(np.median(truth[valid]))


def test_the_median_ratio_stands_where_the_ratio_of_medians_jumps():
    truth = np.where(np.arange(1001) < 500, 1.0, 3.0)
    predicted = 2.0 * truth
    predicted[498:503] = 2.0        # five pixels at the edge on the wrong side turn the median of the prediction from far to near
    valid = np.ones(1001, bool)
    assert metrics.median_scale(predicted, truth, valid) == pytest.approx(1.5)
    assert metrics.median_ratio(predicted, truth, valid) == pytest.approx(0.5)


def test_the_mean_is_over_frames(depths):
    predicted, truth, valid = depths
    first, second = metrics.depth_metrics(predicted, truth, valid), metrics.depth_metrics(truth, truth, valid)
    assert metrics.mean_metrics([first, second])['abs_rel'] == pytest.approx(first['abs_rel'] / 2)
    assert metrics.mean_metrics([]) == {}


@pytest.mark.parametrize('spoil', [lambda p, t, v: (p, t, v & False), lambda p, t, v: (p * np.nan, t, v), lambda p, t, v: (p, t * 0, v), lambda p, t, v: (-p, t, v),
                                   lambda p, t, v: (p[1:], t, v), lambda p, t, v: (p, t, v[:, 1:])])
@pytest.mark.parametrize('function', [metrics.depth_metrics, metrics.median_scale, metrics.median_ratio])
def test_what_cannot_be_scored_is_refused(depths, spoil, function):
    with pytest.raises(ValueError, match='expected'):
        function(*spoil(*depths))
