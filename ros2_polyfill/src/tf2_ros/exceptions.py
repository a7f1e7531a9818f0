"""The exceptions of tf2 (the real ones live in tf2_py and are re-exported by tf2_ros)."""


class TransformException(Exception):
    """Base of everything a lookup can raise."""


class ConnectivityException(TransformException):
    """Both frames are known, but no chain joins them."""


class LookupException(TransformException):
    """A frame is not known, or the tree has a loop."""


class ExtrapolationException(TransformException):
    """The chain exists, but not at the requested time."""


class InvalidArgumentException(TransformException):
    """An empty frame name, or one with a leading slash."""


class TimeoutException(TransformException):
    """Part of the family for the sake of `except` clauses; Buffer itself never raises it."""
