"""cv_bridge without a full ROS 2: image messages to OpenCV arrays and back."""
from cv_bridge.core import CvBridge, CvBridgeError
from polyfill_names import unprovided

__all__ = ['CvBridge', 'CvBridgeError']
__getattr__ = unprovided(__name__)
