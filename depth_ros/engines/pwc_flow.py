"""Flow by a trained PWC-Net, on whatever device there is."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from depth_ros.engines.images import image_tensor
from depth_ros.engines.threads import single_threaded
from depth_ros.models import checkpoint, pwc_weights
from depth_ros.models.pwc_net import PwcNet


class PwcFlow:
    """Both directions of a pair at once, in eager torch: ONNX Runtime takes as long for this network (0.7 s on one core at 320 x 240) and exports it anew for every size."""

    def __init__(self, weights: str | Path) -> None:
        """`weights`: a checkpoint of this package (.safetensors), or PyTorch weights as others publish them. Raises ValueError or OSError, naming the file."""
        self._device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        self._model = load(weights).to(self._device, memory_format=torch.channels_last)

    @single_threaded()
    @torch.inference_mode()
    def __call__(self, current: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flow from current to reference (H, W, 3) uint8 RGB and back, (H, W, 2) float32 [px] each."""
        images = image_tensor(np.stack([current, reference]), self._device)
        flows = self._model.both_ways(images[:1], images[1:]).movedim(1, -1).contiguous().cpu().numpy()
        return flows[0], flows[1]


def load(weights: str | Path) -> PwcNet:
    """The network of a file of either kind, told apart by its suffix. Raises ValueError or OSError, naming the file."""
    path = Path(weights).expanduser()
    if path.suffix == '.safetensors':
        return checkpoint.load(path, expect='pwc_net').model
    return pwc_weights.load(path)
