"""For the tests of the online learner: the same wall seen again and again, whose hits and depth from flow lie a little farther than the flow tells, and short rounds."""

from __future__ import annotations

import cv2
import global_local_support as support
import numpy as np
import torch

from depth_ros.engines import update_guard
from depth_ros.engines.online_settings import OnlineLearnerConfig
from depth_ros.engines.replay_buffer import observation
from depth_ros.frames import DepthResult, Scale
from depth_ros.models import checkpoint

T = support.T_REF_CUR
SIZE = 64, 48       # [px]
QUICK = OnlineLearnerConfig(averaged=1.0, rate=1e-3, batch=2, round=3, withheld_run=2, checks=3, recent=12, reservoir=6, trusted_after=1)
SHARE = 1.15        # of the depth that flow tells, at which the hits lie: a lesson that there is to learn


def scene(number):
    """The same wall at another time, of half the size, with the noise of a living sensor."""
    result, depth = support.wall(current=(number + 2) * 10 ** 8, reference=10 ** 8)
    result = support.living(result)
    result, depth = result.resized(*SIZE), cv2.resize(depth, SIZE, interpolation=cv2.INTER_AREA)
    guide = DepthResult(result.pair.current, depth * np.float32(SHARE), depth > 0, np.ones_like(depth), Scale.METRIC)
    return result, depth, guide


def hits_on(depth, share=1.0):
    """A row of range hits (H, W) [m] at a share of the depth (H, W) [m]."""
    hits = np.zeros_like(depth)
    hits[20] = share * depth[20]
    return hits


def feed(learner, numbers, batches=0, spoil=lambda hits: hits, motion=T):
    """Observe the wall so many times; the state after the last."""
    for number in numbers:
        result, depth, guide = scene(number)
        learner.observe(result, motion, spoil(hits_on(depth, SHARE)), np.eye(4), guide)
        learner.learn(batches)
    return learner.state


def parameters(blob):
    return checkpoint.from_bytes(blob).model.state_dict()


def same(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


def withheld_error(learner, start):
    """On the true hits of times that nobody saw: of the last good weights, and of the first ones."""
    seen = []
    for number in (900, 901):
        result, depth, guide = scene(number)
        seen.append(observation(result, T, hits_on(depth, SHARE), guide=guide))
    return [update_guard.Checked(model).errors(seen).withheld for model in (checkpoint.from_bytes(learner.weights()).model, start.model)]
