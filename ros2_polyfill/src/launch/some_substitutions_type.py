"""Type of what is evaluated to a string when the launch runs."""
from typing import Iterable, Text, Union

from .substitution import Substitution

SomeSubstitutionsType = Union[Text, Substitution, Iterable[Union[Text, Substitution]]]
SomeSubstitutionsType_types_tuple = (str, Substitution, Iterable)
