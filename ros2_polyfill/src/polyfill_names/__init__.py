"""What the packages of this distribution share: the answer to names they do not provide. Not named after its folder, which pytest would take for it."""
from __future__ import annotations

import dis
import importlib.abc
import sys
from typing import Any, Callable, NoReturn

_PACKAGES: set[str] = set()


def _sentence(name: str) -> str:
    return (f"{name} is not provided by ros2_polyfill, which holds only the part of ROS 2 that depth_ros uses; "
            f"a full ROS 2 installation has it")


class _Submodules(importlib.abc.MetaPathFinder):
    """Last finder on the path: explains why a submodule of a provided package is missing."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        package, _, rest = fullname.partition(".")
        if rest and package in _PACKAGES and not fullname.rpartition(".")[2].startswith("_"):
            raise ModuleNotFoundError(_sentence(fullname), name=fullname)


def unprovided(module: str) -> Callable[[str], NoReturn]:
    """Make a module's `__getattr__`: AttributeError for `module.name`, ImportError for `from module import name`.

    Python drops the text of an AttributeError raised during `from ... import`, so that case is told apart by the
    instruction the caller is at.
    """
    if not _PACKAGES:
        sys.meta_path.append(_Submodules())
    _PACKAGES.add(module.partition(".")[0])

    def __getattr__(name: str) -> NoReturn:
        caller = sys._getframe(1)
        importing = caller.f_lasti >= 0 and caller.f_code.co_code[caller.f_lasti] == dis.opmap["IMPORT_FROM"]
        if importing and not name.startswith("_") and not _is_submodule(module, name):
            raise ImportError(_sentence(f"{module}.{name}"), name=module)
        raise AttributeError(_sentence(f"{module}.{name}") if not name.startswith("_") else f"{module} has no {name}")

    return __getattr__


def _is_submodule(module: str, name: str) -> bool:
    return f"{module}.{name}" in sys.modules
