"""Images as the networks and the plane sweep take them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def image_tensor(image: np.ndarray, device: torch.device | str = 'cpu') -> Tensor:
    """(..., 3, H, W) float in [0, 1] of an image or a stack of them, (..., H, W, 3) uint8."""
    return torch.from_numpy(image).to(device).movedim(-1, -3).float() / 255
