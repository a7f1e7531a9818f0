"""Nodes, and what is set for the nodes that follow."""
from polyfill_names import unprovided

from .node import Node
from .scope import PushROSNamespace, PushRosNamespace, SetParameter, SetParametersFromFile, SetRemap, SetUseSimTime

__all__ = ["Node", "PushROSNamespace", "PushRosNamespace", "SetParameter", "SetParametersFromFile", "SetRemap", "SetUseSimTime"]
__getattr__ = unprovided(__name__)
