"""Something that happened during a launch."""


class Event:
    """Base of all events."""

    name = "launch.Event"
