"""Small helpers on substitutions and entities."""
from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable

from polyfill_names import unprovided

from ..substitution import Substitution

if TYPE_CHECKING:
    from ..launch_context import LaunchContext
    from ..launch_description_entity import LaunchDescriptionEntity

__all__ = ["ensure_argument_type", "is_a", "is_a_subclass", "normalize_to_list_of_entities", "normalize_to_list_of_substitutions",
           "perform_substitutions", "visit_all_entities_and_collect_futures"]
__getattr__ = unprovided(__name__)


def is_a(obj: Any, entity_type: type) -> bool:
    return isinstance(obj, entity_type)


def is_a_subclass(obj: Any, entity_type: type) -> bool:
    """True for an instance of the class or of a class derived from it."""
    return isinstance(obj, entity_type) or (isinstance(obj, type) and issubclass(obj, entity_type))


def ensure_argument_type(argument: Any, types: type | Iterable[type], argument_name: str, caller: str | None = None) -> None:
    """TypeError unless the argument is of one of the types."""
    wanted = (types,) if isinstance(types, type) else tuple(types)
    if not isinstance(argument, wanted):
        names = ", ".join(getattr(kind, "__name__", str(kind)) for kind in wanted)
        raise TypeError(f"{caller + ': ' if caller else ''}expected '{argument_name}' to be one of [{names}], "
                        f"got {argument!r} of type {type(argument).__name__}")


def normalize_to_list_of_substitutions(subs: Any) -> list[Substitution]:
    """Turn text, a path, a substitution or a (nested) sequence of them into a flat list of substitutions."""
    from ..substitutions import TextSubstitution
    if isinstance(subs, Substitution):
        return [subs]
    if isinstance(subs, (str, Path)):
        return [TextSubstitution(text=str(subs))]
    if isinstance(subs, Iterable):
        return [part for item in subs for part in normalize_to_list_of_substitutions(item)]
    raise TypeError(f"expected text, a Substitution or a sequence of them, got {subs!r} of type {type(subs).__name__}")


def normalize_to_list_of_entities(entities: Any) -> list[LaunchDescriptionEntity]:
    """Flatten one entity or nested sequences of them."""
    if isinstance(entities, Iterable):
        return [flat for entity in entities for flat in normalize_to_list_of_entities(entity)]
    return [entities]


def perform_substitutions(context: LaunchContext, subs: Iterable[Substitution]) -> str:
    """Evaluate substitutions and join the results."""
    return "".join(context.perform_substitution(sub) for sub in subs)


def visit_all_entities_and_collect_futures(
    entity: LaunchDescriptionEntity, context: LaunchContext,
) -> list[tuple[LaunchDescriptionEntity, asyncio.Future]]:
    """Visit an entity and, depth first, all that it yields; return the futures of those still at work."""
    pairs = []
    children = entity.visit(context)
    future = entity.get_asyncio_future()
    if future is not None:
        pairs.append((entity, future))
    for child in children or ():
        pairs += visit_all_entities_and_collect_futures(child, context)
    return pairs
