"""Laws of the network that corrects the depth which DeepV2D's 3D network chose."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from deepv2d_network_support import SMALL, depth_of, images, motions
from torch import Tensor

from depth_ros.models import deepv2d_depth
from depth_ros.models.deepv2d import LIVE, DeepV2D

pytestmark = pytest.mark.usefixtures('one_thread')


def test_a_correction_begins_with_none_and_then_scales_inverse_depth():
    clips, T = images(1, 3, 3, 48, 64), motions(1, 2)
    torch.manual_seed(0)
    plain, corrected = DeepV2D(replace(SMALL, correction=0)).eval(), DeepV2D(SMALL).eval()
    plain.load_state_dict({name: value for name, value in corrected.state_dict().items() if '.correction.' not in name})
    with torch.inference_mode():
        before, begun = (depth_of(network, clips, T).depths[-1] for network in (plain, corrected))
        corrected.depth.correction.head[-1].bias.fill_(math.log(1.05))
        after = depth_of(corrected, clips, T).depths[-1]
    assert torch.equal(before, begun) and (after > SMALL.near).all()
    torch.testing.assert_close(after, begun / 1.05)


def test_a_correction_sees_the_image_the_choice_and_how_sure_it_is():
    generator = torch.Generator().manual_seed(2)
    correction = deepv2d_depth._Correction(LIVE)
    torch.nn.init.normal_(correction.head[-1].weight, generator=generator)
    features, logits, at = torch.rand(1, 33, 12, 16, generator=generator), torch.randn(1, LIVE.planes, 12, 16, generator=generator), torch.rand(1, 12, 16, generator=generator)
    told = [features, torch.softmax(logits, 1), at, 0.4 + at]
    found = correction(*told)
    assert found.shape == (1, 12, 16)
    for i, other in enumerate((1.0 - features, torch.softmax(-logits, 1), 1.0 - at, 1.0 + at)):
        assert not torch.allclose(correction(*told[:i], other, *told[i + 1:]), found)


def test_a_correction_is_told_the_choice_as_flow_left_it(monkeypatch):
    """A sure choice of one plane, moved half a plane on; what comes of it stays between the planes, and its confidence is that of where it ends."""
    network, told = DeepV2D(SMALL).eval(), []
    planes, key = network.planes(torch.zeros(1)), torch.rand(1, 33, 4, 4)
    inverse, step = 1 / planes[0], (1 / planes[0, 1] - 1 / planes[0, 0]).item()
    logits = torch.full((1, SMALL.planes, 4, 4), -50.0)
    logits[:, 3] = 0.0
    factor = torch.zeros(1, 4, 4)
    monkeypatch.setattr(network.depth.correction, 'forward', lambda *given: (told.append(given), factor)[1])

    def chosen() -> tuple[Tensor, Tensor]:
        return network.depth._choose(logits, planes, key, (16, 16), lambda expected, _: expected + 0.5 * step)

    still, sure = chosen()
    features, probability, at, deviation = told[0]
    assert features is key and probability[0, 3].min() > 0.99
    torch.testing.assert_close(at, torch.full_like(at, 3.5 / (SMALL.planes - 1)))
    torch.testing.assert_close(deviation, torch.full_like(deviation, 0.4))
    torch.testing.assert_close(1 / still, torch.full_like(still, (inverse[3] + 0.5 * step).item()))
    assert sure.min() > 0.99
    for log, end in ((10.0, SMALL.near), (-10.0, SMALL.far)):
        factor = torch.full((1, 4, 4), log)
        moved, unsure = chosen()
        torch.testing.assert_close(moved, torch.full_like(moved, end))
        assert unsure.max() < 0.01
