"""Descriptions of parameters, under their second name."""
from polyfill_names import unprovided

from ..parameter_descriptions import Parameter, ParameterFile, ParameterValue

__all__ = ["Parameter", "ParameterFile", "ParameterValue"]
__getattr__ = unprovided(__name__)
