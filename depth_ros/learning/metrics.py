"""Metrics of depth, once for everything: evaluation, training and the online learner.

Definitions as in D. Eigen, C. Puhrsch, R. Fergus, "Depth map prediction from a single image using a multi-scale deep network", NIPS 2014 (abs_rel,
sq_rel, rmse, rmse_log, thresholds; sc_inv is the root of its scale-invariant error), and B. Ummenhofer et al., "DeMoN", CVPR 2017 (abs_inv, sc_inv).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

NAMES = ('abs_rel', 'sq_rel', 'rmse', 'rmse_log', 'log10', 'delta_1_25', 'delta_1_25_2', 'delta_1_25_3', 'sc_inv', 'abs_inv')


def depth_metrics(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Every metric of NAMES over the pixels of the mask; predicted and truth are depths [m] of one shape, positive and finite where valid.

    Raises ValueError if the mask is empty or holds pixels whose depth is not positive and finite.
    """
    p, t = _chosen(predicted, truth, valid)
    log_ratio = np.log(p) - np.log(t)
    error = np.abs(p - t)
    ratio = np.exp(np.abs(log_ratio))
    return {
        'abs_rel': _mean(error / t),
        'sq_rel': _mean(error ** 2 / t),
        'rmse': _mean(error ** 2) ** 0.5,
        'rmse_log': _mean(log_ratio ** 2) ** 0.5,
        'log10': _mean(np.abs(log_ratio)) / float(np.log(10.0)),
        'delta_1_25': _mean(ratio < 1.25),
        'delta_1_25_2': _mean(ratio < 1.25 ** 2),
        'delta_1_25_3': _mean(ratio < 1.25 ** 3),
        'sc_inv': float(np.std(log_ratio)),
        'abs_inv': _mean(np.abs(1.0 / p - 1.0 / t)),
    }


def mean_metrics(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean over frames of each metric that depth_metrics gave; {} for no frames."""
    scores = list(scores)
    return {name: _mean(np.array([s[name] for s in scores])) for name in (scores[0] if scores else ())}


def median_scale(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """The factor on `predicted` that makes its median over the mask that of `truth`: the ratio of the medians. Raises ValueError as depth_metrics does."""
    p, t = _chosen(predicted, truth, valid)
    return float(np.median(t) / np.median(p))


def median_ratio(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """The median of truth / predicted over the mask: unlike median_scale it does not jump where half of a scene is near and half far."""
    p, t = _chosen(predicted, truth, valid)
    return float(np.median(t / p))


def _chosen(predicted: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not np.shape(predicted) == np.shape(truth) == np.shape(valid):
        raise ValueError(f'expected one shape, got {np.shape(predicted)}, {np.shape(truth)} and the mask {np.shape(valid)}')
    chosen = np.asarray(valid, bool)
    if not chosen.any():
        raise ValueError('expected at least one valid pixel')
    p, t = (np.asarray(depth)[chosen].astype(np.float64) for depth in (predicted, truth))
    if not ((p > 0.0) & (t > 0.0) & np.isfinite(p) & np.isfinite(t)).all():
        raise ValueError('expected positive and finite depth wherever the mask holds')
    return p, t


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))
