"""Flow at another size."""

from __future__ import annotations

import cv2
import numpy as np

from depth_ros.frames import CameraFrame, FlowResult, ImagePair


def frame(size: tuple[int, int], seed: int = 0) -> CameraFrame:
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    return CameraFrame(0, 'camera', cv2.GaussianBlur(noise, (0, 0), 2), np.array([[500.0, 0, size[0] / 2], [0, 500, size[1] / 2], [0, 0, 1]]))


def test_flow_is_resized_in_length_too_and_what_is_not_finite_is_nowhere_valid():
    flow = np.full((96, 128, 2), (8.0, -4.0), np.float32)
    flow[40:60, 50:80] = np.nan
    small = FlowResult(ImagePair(frame((128, 96)), frame((128, 96), 1)), flow, -np.nan_to_num(flow, nan=0.0), 2.0).resized(64, 48)
    assert small.pair.current.size == small.pair.reference.size == (64, 48) and small.consistency == 1.0
    assert np.isfinite(small.flow).all()
    np.testing.assert_allclose(small.flow[5, 5], (4.0, -2.0), rtol=1e-5)
    assert not small.valid[20:30, 25:40].any() and small.valid[8:18, 8:20].all()
