"""message_filters without a full ROS 2: subscribers, a cache and the two time synchronisers, with the semantics of Jazzy's Python package."""
from message_filters.cache import Cache
from message_filters.simple_filter import SimpleFilter, Subscriber
from message_filters.synchronizers import ApproximateTimeSynchronizer, TimeSynchronizer
from polyfill_names import unprovided

__all__ = ['ApproximateTimeSynchronizer', 'Cache', 'SimpleFilter', 'Subscriber', 'TimeSynchronizer']
__getattr__ = unprovided(__name__)
