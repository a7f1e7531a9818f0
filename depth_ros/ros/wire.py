"""What all codecs share: the one error for a message that cannot be used, stamps, headers, and bytes for `data` fields."""

from __future__ import annotations

import array

import numpy as np
from builtin_interfaces.msg import Time
from std_msgs.msg import Header

NANOSECONDS = 1_000_000_000


class BadMessage(ValueError):
    """A message that must not be used; the text names its topic, what came and what is accepted."""

    def __init__(self, topic: str, came: str, accepted: str) -> None:
        super().__init__(f'{topic}: got {came}; accepted: {accepted}')
        self.topic = topic


def stamp_ns(stamp: Time) -> int:
    """The stamp of a header [ns]."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def to_stamp(nanoseconds: int) -> Time:
    """A stamp for a header from [ns]."""
    sec, nanosec = divmod(int(nanoseconds), NANOSECONDS)
    return Time(sec=sec, nanosec=nanosec)


def make_header(stamp: int, frame_id: str) -> Header:
    """A header from a stamp [ns] and a frame."""
    return Header(stamp=to_stamp(stamp), frame_id=frame_id)


def copied(header: Header) -> Header:
    """A header of its own for each message: a shared one would change in all of them."""
    return Header(stamp=Time(sec=header.stamp.sec, nanosec=header.stamp.nanosec), frame_id=header.frame_id)


def to_bytes(values: np.ndarray) -> array.array:
    """The memory of an array as array.array('B'): the only sequence that a `data` field takes without looking at every element."""
    data = array.array('B')
    if values.size:
        data.frombytes(memoryview(np.ascontiguousarray(values)).cast('B'))
    return data
