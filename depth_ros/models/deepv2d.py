"""DeepV2D, both modules in one network: camera motion given depth (deepv2d_motion.py), depth given camera motion (deepv2d_depth.py).

Source: Teed & Deng, "DeepV2D: Video to depth with differentiable structure from motion". PAPER is the published size; LIVE is made for two CPU cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from depth_ros import settings
from depth_ros.models.deepv2d_blocks import NORMS
from depth_ros.models.deepv2d_depth import FORMS, MATCHING, SPACINGS, UPSAMPLING, DepthModule, planes_between
from depth_ros.models.deepv2d_motion import MotionModule
from depth_ros.settings import setting


@dataclass(frozen=True)
class DeepV2DNetworkConfig:
    """Sizes of both modules; the defaults are the paper's, with 8.6 M parameters in the motion module without, and 32.1 M in the depth module."""

    motion_width: int = setting(32, 'channels of the motion trunk at half size; twice as many at a quarter', '', 4, 128)
    motion_blocks: int = setting(3, 'residual blocks of the motion trunk at each size', '', 0, 8)
    motion_norm: str = setting('batch', 'norm in the motion trunk', choices=NORMS)
    motion_features: int = setting(64, 'channels of the motion features', '', 4, 256)
    motion_flow: int = setting(32, 'channels of the residual flow network at its first level; twice as many at each further one', '', 4, 128)
    motion_levels: int = setting(5, 'levels of the residual flow network, each of half the size', '', 2, 6)
    motion_widest: int = setting(512, 'most channels at any level of the residual flow network', '', 4, 1024)
    motion_kernel: int = setting(7, 'kernel of the residual flow network at its first level; two less at each further one, down to 3', 'px', 3, 9)
    motion_reach: int = setting(0, 'displacements at which the residual flow network is shown how features agree; 0: none, as published', 'px of the maps', 0, 6)
    measured_flow: bool = setting(False, 'show the residual flow network optical flow that was measured, which it corrects')
    pose_network: bool = setting(True, 'have a network that guesses the first motion of a pair')

    depth_width: int = setting(32, 'channels of the depth trunk at half size; twice as many at a quarter', '', 4, 128)
    depth_blocks: int = setting(3, 'residual blocks of the depth trunk at each size', '', 0, 8)
    depth_norm: str = setting('batch', 'norm in the depth trunk and the 2D hourglasses', choices=NORMS)
    depth_hourglasses: int = setting(2, '2D hourglasses', '', 0, 4)
    depth_levels: int = setting(4, 'levels of the 2D hourglasses', '', 1, 6)
    depth_growth: int = setting(64, 'channels that a 2D hourglass gains at each level', '', 0, 256)
    depth_features: int = setting(32, 'channels of the features that are matched', '', 4, 128)
    context: int = setting(0, 'channels of further features of the keyframe, which weight the 3D network\'s channels (Bangunharcana et al., IROS 2021)', '', 0, 64)

    form: str = setting('mean', 'how views meet: their mean, for any number of them; or side by side, for `views` of them', choices=FORMS)
    views: int = setting(4, 'views beside the keyframe in the form concatenation', '', 1, 16)
    matching: str = setting('concatenation', 'features side by side, as published, or correlated in groups', choices=MATCHING)
    groups: int = setting(8, 'groups of the correlation', '', 1, 64)
    zncc: bool = setting(False, 'correlate grey windows too, in both modules')
    depth_flow: bool = setting(False, 'show the depth module optical flow that was measured: the 3D network how near each plane comes to it, and what it chose moves to where flow says')
    volume_width: int = setting(32, 'channels of the 3D network', '', 1, 128)
    volume_hourglasses: int = setting(2, '3D hourglasses, each with a depth of its own', '', 1, 4)
    volume_levels: int = setting(4, 'levels of the 3D hourglasses', '', 1, 6)
    volume_growth: int = setting(48, 'channels that a 3D hourglass gains at each level', '', 0, 128)
    volume_norm: str = setting('batch', 'norm in the 3D network', choices=NORMS)
    correction: int = setting(0, 'channels of a 2D network that corrects what the 3D one chose, by what the image shows; 0: none, as published', '', 0, 256)
    correction_levels: int = setting(4, 'levels of that network', '', 1, 6)
    correction_growth: int = setting(16, 'channels that it gains at each level', '', 0, 128)
    upsampling: str = setting('logits', 'to full size: the logits, bilinearly, as published; or the expected value, by convex weights that the features give', choices=UPSAMPLING)

    planes: int = setting(32, 'planes of depth', '', 2, 256)
    near: float = setting(0.2, 'nearest plane', 'm, or the unit that the caller works in', 1e-3, 1e3)
    far: float = setting(10.0, 'farthest plane', 'm, or the unit that the caller works in', 1e-3, 1e4)
    spacing: str = setting('linear', 'of the planes: equal steps of depth, or of inverse depth', choices=SPACINGS)

    def __post_init__(self) -> None:
        settings.check(self)
        if self.near >= self.far:
            raise ValueError(f'near: expected less than far, {self.far}, got {self.near}')
        if self.matching == 'correlation' and self.depth_features % self.groups:
            raise ValueError(f'groups: expected a divisor of depth_features, {self.depth_features}, got {self.groups}')
        if self.form == 'concatenation' and self.matching == 'correlation':
            raise ValueError('form: expected mean with matching correlation, got concatenation')
        if self.zncc and self.matching != 'correlation':
            raise ValueError('zncc: expected False with matching concatenation, got True')
        if self.depth_flow and (self.matching, self.spacing, self.upsampling) != ('correlation', 'inverse', 'convex'):
            raise ValueError(f'depth_flow: expected False unless matching is correlation, spacing inverse and upsampling convex, got {self.matching}, {self.spacing} and {self.upsampling}')
        if self.correction and (self.spacing, self.upsampling) != ('inverse', 'convex'):
            raise ValueError(f'correction: expected 0 unless spacing is inverse and upsampling convex, got {self.correction} with {self.spacing} and {self.upsampling}')


PAPER = DeepV2DNetworkConfig()
LIVE = DeepV2DNetworkConfig(
    motion_width=16, motion_blocks=1, motion_norm='group', motion_features=16, motion_flow=16, motion_levels=4, motion_widest=64, motion_kernel=3, measured_flow=True, pose_network=False,
    depth_width=16, depth_blocks=1, depth_norm='group', depth_hourglasses=1, depth_levels=2, depth_growth=16, depth_features=16, context=16,
    matching='correlation', groups=4, zncc=True, depth_flow=True, volume_width=8, volume_hourglasses=1, volume_levels=3, volume_growth=8, volume_norm='none', correction=48, upsampling='convex',
    planes=48, near=0.4, far=12.0, spacing='inverse')
TYPICAL_DEPTH = 2.0         # [m] the median depth that LIVE's planes are made for: whoever works in a free unit scales lengths to it


class DeepV2D(nn.Module):
    """The two modules; see DepthModule and MotionModule for what they take and give."""

    def __init__(self, config: DeepV2DNetworkConfig = PAPER) -> None:
        super().__init__()
        self.config = config
        self.motion = MotionModule(config)
        self.depth = DepthModule(config)

    def planes(self, like: Tensor) -> Tensor:
        """The configured planes (B, D) [m] for a batch like (B, ...)."""
        config = self.config
        return planes_between(config.near, config.far, config.planes, config.spacing, like).expand(len(like), -1)
