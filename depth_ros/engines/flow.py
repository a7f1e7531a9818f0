"""Dense optical flow of an image pair in both directions, with its forward-backward consistency.

DIS flow: T. Kroeger, R. Timofte, D. Dai, L. Van Gool, "Fast optical flow using dense inverse search", ECCV 2016, as in OpenCV. Or a trained PWC-Net.
"""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np

from depth_ros import settings
from depth_ros.frames import CameraFrame, FlowResult, ImagePair
from depth_ros.settings import setting

PRESETS = {'ultrafast': cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, 'fast': cv2.DISOPTICAL_FLOW_PRESET_FAST, 'medium': cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}

# What DeepV2D's networks learned from, and are shown of a few views that may be far apart: at 320 x 240, wild on fewer pixels of synthetic clips (a mean error of 8 px, tuned 10), as exact on the others.
FAR_APART = 'medium'
# Pairs of a recorded sequence ten frames apart, at 256 x 192 on a slow core: the published and the pose-aware network err by 0.170 and 0.103 (Abs-Rel) in 7.5 ms a direction; with
# ten refinements by 0.170 and 0.103 in 10.2, with patches every 4 px by 0.181 and 0.105 in 5.9. The way back, which tells where flow is to be trusted
# and is of more effort than what tracking measured best on, takes 4.4.
FOR_DEPTH = {'finest_scale': 1, 'patch_stride': 3, 'descent_iterations': 12, 'refinement_iterations': 5}
BACK_FOR_DEPTH = {**FOR_DEPTH, 'patch_stride': 4, 'refinement_iterations': 2}


@dataclass(frozen=True)
class FlowConfig:
    """Size and effort of the flow. The defaults of the four knobs are what tracking and depth measured best on for their time."""

    width: int = setting(320, 'image width that flow is computed at', 'px', 64, 1920, while_active=False)
    height: int = setting(240, 'image height that flow is computed at', 'px', 48, 1200, while_active=False)
    estimator: str = setting('dis', 'what finds the flow: DIS, or the network PWC-Net with the weights below', choices=('dis', 'pwc_net'))
    weights: str = setting('', 'file of PWC-Net: a checkpoint of this package (.safetensors) or the PyTorch weights of its authors or of S. Niklaus')
    preset: str = setting('tuned', "OpenCV's preset of DIS; tuned: the four settings below; depth: the smooth flow that triangulates best",
                          choices=('tuned', *PRESETS, 'depth'))
    finest_scale: int = setting(1, 'pyramid level at which DIS stops, 0 is full size', '', 0, 4)
    patch_stride: int = setting(4, 'distance between DIS patches (8 px wide)', 'px', 1, 8)
    descent_iterations: int = setting(12, 'descent steps a patch', '', 1, 100)
    refinement_iterations: int = setting(0, 'variational refinement steps a level', '', 0, 20)


class FlowEngine:
    """Flow by the estimator of the configuration."""

    def __init__(self, config: FlowConfig = FlowConfig()) -> None:
        """Raises ValueError or OSError, naming the file, for weights that cannot be used."""
        settings.check(config)
        self.config = config
        self._estimate = _Dis(config) if config.estimator == 'dis' else _pwc_net(config)

    def step(self, pair: ImagePair, initial: tuple[np.ndarray, np.ndarray] | None = None) -> FlowResult:
        """Flow of both directions at the pair's own size; the two images must be of one size.

        `initial`: flow and backward flow (H, W, 2) float32 [px] to start from, where motion is too large for a start at zero; the network needs none.
        """
        if pair.current.size != pair.reference.size:
            raise ValueError(f'expected two images of one size, got {pair.current.size} and {pair.reference.size}')
        forward, backward = self._estimate(pair.current.image, pair.reference.image, initial)
        return FlowResult(pair, forward, backward)


def both_flows(config: FlowConfig = FlowConfig()) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(rgb1, rgb2), (H, W, 3) uint8 each -> flow (H, W, 2) float32 [px] from 1 to 2 and from 2 to 1, as trainings on clips want it."""
    engine = FlowEngine(config)

    def flows(*images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = engine.step(ImagePair(*(CameraFrame(0, '', image, np.eye(3)) for image in images)))
        return found.flow, found.backward

    return flows


def flow_function(config: FlowConfig = FlowConfig()) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(rgb1, rgb2), (H, W, 3) uint8 each -> flow (H, W, 2) float32 [px] from 1 to 2, as stores of pairs want it."""
    both = both_flows(config)
    return lambda image1, image2: both(image1, image2)[0]


class _Dis:
    """DIS. The two directions run side by side, each on its own matcher, for a matcher is not re-entrant.

    Nor does one that was ever given a flow to start from start from nothing again (OpenCV 4): there is another two for that.
    """

    def __init__(self, config: FlowConfig) -> None:
        ways = (FOR_DEPTH, BACK_FOR_DEPTH) if config.preset == 'depth' else ({}, {})
        self._from_nothing, self._from_flow = (tuple(_matcher(replace(config, **way)) for way in ways) for _ in range(2))
        self._beside = ThreadPoolExecutor(1, thread_name_prefix='flow')

    def __call__(self, current: np.ndarray, reference: np.ndarray, initial: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """Flow from current to reference (H, W, 3) uint8 RGB and back, (H, W, 2) float32 [px] each."""
        current, reference = grey(current), grey(reference)
        matchers = self._from_nothing if initial is None else self._from_flow
        forward_start, backward_start = (None, None) if initial is None else (start.copy() for start in initial)       # which it would write over
        beside = self._beside.submit(matchers[1].calc, reference, current, backward_start)
        forward = matchers[0].calc(current, reference, forward_start)
        return forward, beside.result()


def _pwc_net(config: FlowConfig) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    if not config.weights:
        raise ValueError('weights: PWC-Net needs a file of weights, got none')
    from depth_ros.engines.pwc_flow import PwcFlow      # here, because DIS needs no torch, which takes a second to import
    network = PwcFlow(config.weights)
    return lambda current, reference, initial: network(current, reference)


def grey(image: np.ndarray) -> np.ndarray:
    """Luma (H, W) uint8 of an RGB image (H, W, 3) uint8."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _matcher(config: FlowConfig) -> cv2.DISOpticalFlow:
    matcher = cv2.DISOpticalFlow.create(PRESETS.get(config.preset, cv2.DISOPTICAL_FLOW_PRESET_FAST))
    if config.preset not in PRESETS:
        matcher.setFinestScale(config.finest_scale)
        matcher.setPatchStride(config.patch_stride)
        matcher.setGradientDescentIterations(config.descent_iterations)
        matcher.setVariationalRefinementIterations(config.refinement_iterations)
    return matcher
