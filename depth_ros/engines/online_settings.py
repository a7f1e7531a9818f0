"""How an online learner is set up, what it can be doing, and the figures that it keeps."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from depth_ros.engines.replay_buffer import LEAST_STEP
from depth_ros.settings import setting


class State(enum.Enum):
    """What the learner is doing, as it is published."""

    LEARNING = 'learning'
    MOTION = 'waiting for motion'
    HITS = 'waiting for hits'
    PAUSED = 'paused'
    ROLLED_BACK = 'rolled back'
    DEAD = 'dead'


@dataclass(frozen=True)
class OnlineLearnerConfig:
    """What is remembered, how it is learned from, and who watches."""

    rate: float = setting(3.0e-4, "Adam's learning rate; every roll-back halves it, and success, or no gain at the slowest, brings it back", '', 1e-7, 1e-2)
    batch: int = setting(8, 'observations a batch', '', 1, 64)
    eagerness: int = setting(8, 'batches that the thread may learn from for each observation that comes, as far as its share of the core goes', '', 1, 1000)
    round: int = setting(8, 'batches between two checks of the weights', '', 1, 1000)
    recent: int = setting(60, 'newest observations that are remembered', '', 1, 10000, while_active=False)
    reservoir: int = setting(120, 'older observations that are remembered, drawn evenly from all', '', 0, 10000, while_active=False)
    withheld_share: float = setting(0.2, 'share of the observations whose hits are never learned from, but judge what was learned', '', 0.02, 0.8, while_active=False)
    withheld_run: int = setting(5, 'observations in a row that are withheld together', '', 1, 1000)
    checks: int = setting(12, 'withheld observations that are looked at in a check', '', 1, 200)
    min_hits: int = setting(1, 'range hits an image needs', '', 1, 10000)
    without_hits: bool = setting(True, 'remember pairs with fewer hits too, for depth from flow and for hits of earlier images; learned from only while there are hits')
    min_step: float = setting(0.01, 'shortest step of the camera from image to image', 'm', LEAST_STEP, 10.0)
    min_displacement: float = setting(0.006, 'least median displacement beyond that of the rotation, as a share of the width', '', 0.0, 0.5)
    max_contradiction: float = setting(0.3, 'median difference of the log of depth between hits and depth from flow, beyond which hits are not believed', '', 0.02, 3.0)
    max_misfit: float = setting(0.15, 'the same in most of the last twenty images with hits, as where TF puts the sensor in a wrong place', '', 0.01, 3.0)
    carry_seconds: float = setting(5.0, 'how long a hit teaches the images after its own', 's', 0.0, 60.0, while_active=False)
    hit_weight: float = setting(1.0, 'weight of the hits in the loss', '', 0.0, 100.0)
    carried_weight: float = setting(1.0, "weight of earlier images' hits in the loss", '', 0.0, 100.0)
    guide_weight: float = setting(1.5, 'weight of confident depth from flow in the loss', '', 0.0, 100.0)
    rehearsal_weight: float = setting(1.5, 'weight of synthetic pairs in the loss, where there are any', '', 0.0, 100.0)
    anchor: float = setting(1.0e-3, 'share of their way back to the first weights that all weights go with each batch', '', 0.0, 0.5)
    averaged: float = setting(20.0, 'batches that the mean of the weights reaches back over, which is what is judged and handed out; 1: the newest weights alone', '', 1.0, 10000.0)
    clip: float = setting(1.0, 'norm that the gradient is cut at', '', 1e-3, 1e3)
    tolerance: float = setting(0.1, 'share by which a withheld error may grow before the weights are rolled back', '', 0.0, 1.0)
    forgetting: float = setting(0.05, 'the same of the error on synthetic pairs', '', 0.0, 1.0)
    patience: int = setting(8, 'checks in a row without gain after which the weights are rolled back', '', 1, 1000)
    trusted_after: int = setting(200, 'observations, of all that were taken in since learning began, after which the learned weights are handed out as they are; before, a mixture '
                                 'with the first ones in that proportion', '', 1, 100000)
    watch_every: int = setting(1, 'moving pairs, with hits or without, of which one is watched for harm before it is learned from', '', 1, 1000)
    watched: int = setting(6, 'newest ones of those on which the learned and the frozen network are compared; on twice as many, before learned weights come back', '', 1, 100, while_active=False)
    harm: float = setting(0.05, 'share by which the learned error on them may exceed the frozen one before the frozen weights are handed out again, twice that on the two newest; '
                          'by as much it must be less before learned ones come back', '', 0.0, 0.5)
    share: float = setting(0.5, 'share of one CPU core that learning takes, with all checks and with taking pairs in, in processor time', '', 0.01, 1.0)
    max_batch_seconds: float = setting(0.15, 'longest processor time a batch of the thread may take, for which it is made smaller', 's', 0.01, 60.0)
    niceness: int = setting(10, 'of the thread: how far it gives way to others', '', 0, 19, while_active=False)
    only_idle: bool = setting(True, 'learn where a core has nothing else to do, and nowhere else, whatever the niceness (Linux); false: by its niceness, so that something is learned '
                              'even where all cores are always busy, and the depth of one pair in thirty comes too late for the next', while_active=False)
    seed: int = setting(0, 'of what is drawn', '', 0, 2 ** 31 - 1, while_active=False)


@dataclass
class Progress:
    """Figures that survive a restart. Everything here is JSON."""

    number: int = 0             # of the weights
    updates: int = 0            # weights that were handed out
    rollbacks: int = 0
    batches: int = 0
    observed: int = 0           # observations that were taken in
    hits: int = 0
    withheld: int = 0           # hits that judged only
    rate: float = 0.0
    trusted: float = 0.0        # share of the way from the first to the last good weights at which those lie that are handed out
    withheld_before: float | None = None    # error of the log of depth at withheld hits, with the weights that learning began with
    withheld_after: float | None = None     # and with the last good ones
    away_before: float | None = None        # the same away from the hits
    away_after: float | None = None
    serves_frozen: bool = False     # whether the frozen weights are handed out, for the learned ones do harm or hits are not trusted
