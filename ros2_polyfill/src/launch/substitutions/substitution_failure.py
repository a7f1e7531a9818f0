"""The error of substitutions."""


class SubstitutionFailure(Exception):
    """A substitution has no value."""
