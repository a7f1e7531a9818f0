"""Describe and run a set of processes (the part of ROS 2's `launch` that depth_ros uses)."""
from polyfill_names import unprovided

from . import actions, conditions, event_handlers, events, launch_description_sources, logging, substitutions, utilities
from .action import Action
from .condition import Condition
from .event import Event
from .event_handler import BaseEventHandler, EventHandler
from .launch_context import LaunchContext
from .launch_description import LaunchDescription
from .launch_description_entity import LaunchDescriptionEntity
from .launch_description_source import LaunchDescriptionSource
from .launch_service import LaunchService
from .some_entities_type import SomeEntitiesType
from .some_substitutions_type import SomeSubstitutionsType
from .substitution import Substitution

__all__ = [
    "Action", "BaseEventHandler", "Condition", "Event", "EventHandler", "LaunchContext", "LaunchDescription",
    "LaunchDescriptionEntity", "LaunchDescriptionSource", "LaunchService", "SomeEntitiesType", "SomeSubstitutionsType",
    "Substitution", "actions", "conditions", "event_handlers", "events", "launch_description_sources", "logging",
    "substitutions", "utilities",
]
__getattr__ = unprovided(__name__)
