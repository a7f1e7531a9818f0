"""What a camera makes of a rendered image: exposure, white balance, rows read one after the other, blur, noise."""

from __future__ import annotations

import math

import cv2
import numpy as np

_ROLLING = 0.003        # shift within an image by reading its rows one after the other, as a share of the width: a few degrees a second


def exposed(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Images (N, H, W, 3) uint8 of one camera as its sensor would give them; strength 0 changes nothing, 1 is usual."""
    if strength == 0.0:
        return images
    gamma = math.exp(strength * rng.normal(0.0, 0.15))
    aim = rng.uniform(0.25, 0.62) / max(float(np.mean((images / 255.0) ** gamma)), 0.02)       # bright parts may saturate, as in life
    gain = aim ** min(strength, 1.0) * np.exp(strength * rng.normal(0.0, 0.06, 3))
    noise, soft = strength * rng.uniform(0.0, 4.0), strength * rng.uniform(0.0, 1.0)
    made = []
    for image in images:
        gains = gain * math.exp(strength * rng.normal(0.0, 0.03))
        seen = 255.0 * (image / np.float32(255.0)) ** np.float32(gamma) * gains.astype(np.float32)
        seen = _rolled(seen, strength * rng.normal(0.0, _ROLLING, 2))
        if soft > 0.35:
            seen = cv2.GaussianBlur(seen, (0, 0), soft)
        seen += np.float32(noise) * rng.standard_normal(seen.shape, np.float32)
        made.append(np.clip(np.rint(seen), 0, 255).astype(np.uint8))
    return np.stack(made)


def _rolled(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) whose camera turned while its rows were read: the last row is off by shift (x, y), as shares of the width, against the first."""
    height, width = image.shape[:2]
    x, y = shift * width / height
    shear = np.array([[1.0, x, -x * (height - 1) / 2], [0.0, 1.0 + y, -y * (height - 1) / 2]])
    return cv2.warpAffine(image, shear, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
