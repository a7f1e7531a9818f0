"""Laws of flow: a known shift comes back in both directions, and what cannot be seen in both images is not valid."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pwc_support import author_file, shifted_pairs

from depth_ros.engines.flow import FlowConfig, FlowEngine, grey
from depth_ros.frames import CameraFrame, ImagePair, consistency_error, pixel_grid
from depth_ros.geometry import warp
from depth_ros.learning.losses import pyramid_flow
from depth_ros.models import checkpoint
from depth_ros.models.pwc_net import PwcNet, PwcNetConfig

K = np.array([[260.0, 0.0, 159.5], [0.0, 260.0, 119.5], [0.0, 0.0, 1.0]])


def texture(seed: int = 0, size: tuple[int, int] = (400, 300)) -> np.ndarray:
    """Smooth random RGB texture (H, W, 3) uint8."""
    noise = np.random.default_rng(seed).normal(size=(size[1], size[0], 3)).astype(np.float32)
    smooth = sum(s * cv2.GaussianBlur(noise, (0, 0), s) for s in (2, 5, 12))     # coarse structure too: DIS comes from coarse to fine
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def frame(image: np.ndarray, stamp: int = 0) -> CameraFrame:
    return CameraFrame(stamp, 'camera', np.ascontiguousarray(image), K)


def shifted_pair(du: int, dv: int) -> ImagePair:
    """What stands at p in the current image stands at p + (du, dv) in the reference."""
    image = texture()
    return ImagePair(frame(image[30:270, 40:360], 1), frame(image[30 - dv:270 - dv, 40 - du:360 - du]))


@pytest.mark.parametrize(('preset', 'bound'), [('tuned', 0.05), ('fast', 0.2), ('medium', 0.05), ('depth', 0.05)])
def test_known_shift_comes_back_in_both_directions(preset: str, bound: float):
    result = FlowEngine(FlowConfig(preset=preset)).step(shifted_pair(7, -4))
    inner = np.s_[30:-30, 30:-30]
    assert np.abs(np.median(result.flow[inner] - [7, -4], axis=(0, 1))).max() < bound
    assert np.abs(np.median(result.backward[inner] - [-7, 4], axis=(0, 1))).max() < bound
    assert result.valid[inner].mean() > 0.98


def test_pixels_that_leave_the_image_are_rarely_valid():
    """DIS can make a consistent guess near the rim, so a few always remain."""
    result = FlowEngine().step(shifted_pair(24, 0))
    assert result.valid[:, -24:].mean() < 0.2
    assert result.valid[30:-30, 40:-60].mean() > 0.95


def test_error_is_that_of_the_geometry_on_tensors():
    rng = np.random.default_rng(1)
    flow, backward = (cv2.GaussianBlur(rng.normal(scale=60, size=(48, 64, 2)).astype(np.float32), (0, 0), 4) for _ in range(2))
    error = consistency_error(flow, backward)
    expected, inside = warp.forward_backward_error(torch.from_numpy(flow), torch.from_numpy(backward))
    ends = flow + pixel_grid(64, 48)
    clear = (np.abs(ends - [31.5, 23.5]) < [31.0, 23.0]).all(-1) | ~inside.numpy()     # OpenCV samples at 1/32 px: leave the rim out
    assert np.isfinite(error)[clear & inside.numpy()].all() and np.isinf(error[~inside.numpy()]).mean() > 0.9
    both = clear & inside.numpy()
    assert np.abs(error - expected.numpy())[both].max() < 0.1


def test_flow_that_is_not_a_number_is_not_consistent():
    flow = np.zeros((20, 30, 2), np.float32)
    flow[5, 6] = np.nan
    error = consistency_error(flow, np.zeros_like(flow))
    assert np.isinf(error[5, 6]) and error[10, 10] == 0


def test_a_start_helps_over_a_large_motion():
    pair = shifted_pair(39, 25)
    start = np.broadcast_to(np.float32([39, 25]), (240, 320, 2)).copy()
    result = FlowEngine().step(pair, (start, -start))
    assert np.abs(np.median(result.flow[20:180, 20:240] - [39, 25], axis=(0, 1))).max() < 0.1


def test_same_input_gives_same_bits():
    pair = shifted_pair(5, 3)
    first, second = FlowEngine().step(pair), FlowEngine().step(pair)
    assert np.array_equal(first.flow, second.flow) and np.array_equal(first.backward, second.backward)


def test_flow_does_not_depend_on_what_was_looked_at_before():
    pair, engine = shifted_pair(9, -5), FlowEngine()
    first = engine.step(pair)
    start = np.full_like(first.flow, 20.0)
    engine.step(shifted_pair(-20, 10), (start, -start))
    again = engine.step(pair)
    assert np.array_equal(first.flow, again.flow) and np.array_equal(first.backward, again.backward)
    assert (start == 20.0).all()


def test_images_of_two_sizes_are_refused():
    image = texture()
    with pytest.raises(ValueError, match='one size'):
        FlowEngine().step(ImagePair(frame(image[:240, :320]), frame(image[:120, :160])))


def test_settings_are_checked():
    with pytest.raises(ValueError, match='preset'):
        FlowEngine(FlowConfig(preset='best'))


def test_grey_is_luma():
    assert grey(np.full((2, 2, 3), (255, 0, 0), np.uint8))[0, 0] == 76


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A small PWC-Net that has learned to see one shift and its opposite, as a checkpoint."""
    torch.manual_seed(0)
    model = PwcNet(PwcNetConfig(share=0.25))
    image1, image2, flow = shifted_pairs(64, 64, [(5, -3)])
    first, second, flow = torch.cat([image1, image2]), torch.cat([image2, image1]), torch.cat([flow, -flow])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(40):
        optimiser.zero_grad()
        pyramid_flow(model.levels(first, second), flow, torch.ones_like(flow[:, :1], dtype=torch.bool)).backward()
        optimiser.step()
    path = tmp_path_factory.mktemp('pwc') / 'small.safetensors'
    checkpoint.save(path, 'pwc_net', model, {})
    return path


def pwc_pair() -> ImagePair:
    image1, image2, _ = shifted_pairs(64, 64, [(5, -3)])
    return ImagePair(*(frame((255 * image[0].movedim(0, -1)).round().byte().numpy()) for image in (image1, image2)))


def test_a_network_gives_flow_both_ways_with_its_consistency(trained: Path):
    pair = pwc_pair()
    result = FlowEngine(FlowConfig(estimator='pwc_net', weights=str(trained))).step(pair)
    assert result.pair is pair
    assert result.flow.shape == result.backward.shape == (64, 64, 2) and result.flow.dtype == result.backward.dtype == np.float32
    inner = np.s_[12:-12, 12:-12]
    assert np.abs(np.median(result.flow[inner] - [5, -3], axis=(0, 1))).max() < 1.5
    assert np.abs(np.median(result.backward[inner] - [-5, 3], axis=(0, 1))).max() < 1.5
    np.testing.assert_allclose(result.error, consistency_error(result.flow, result.backward), rtol=1e-5)     # OpenCV rounds its last row now so, now so
    assert (result.error[inner] < 3.0).mean() > 0.5


def test_published_weights_serve_the_engine(tmp_path: Path):
    torch.manual_seed(1)
    model = PwcNet().eval()
    path = author_file(tmp_path / 'pwc_net.pth.tar', model)
    pair = pwc_pair()
    result = FlowEngine(FlowConfig(estimator='pwc_net', weights=str(path))).step(pair)
    images = (torch.from_numpy(f.image).movedim(-1, 0)[None].float() / 255 for f in (pair.current, pair.reference))
    with torch.inference_mode():
        expected = model(*images)[0].movedim(0, -1).numpy()
    np.testing.assert_allclose(result.flow, expected, atol=1e-3)


def test_a_network_without_usable_weights_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match='needs a file of weights'):
        FlowEngine(FlowConfig(estimator='pwc_net'))
    with pytest.raises(OSError, match='absent.pth'):
        FlowEngine(FlowConfig(estimator='pwc_net', weights=str(tmp_path / 'absent.pth')))
    (tmp_path / 'bad.safetensors').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='bad.safetensors: not a safetensors file'):
        FlowEngine(FlowConfig(estimator='pwc_net', weights=str(tmp_path / 'bad.safetensors')))


def test_dis_needs_no_torch():
    """The flow node starts a second earlier for it."""
    script = 'import sys; from depth_ros.engines.flow import FlowEngine; FlowEngine(); sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', script], timeout=120).returncode == 0
