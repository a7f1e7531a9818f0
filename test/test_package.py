"""What the package tells colcon, rosdep and pip about itself is true."""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import distribution
from pathlib import Path

import pytest
from ament_index_python.packages import get_package_prefix, get_package_share_directory

ROOT = Path(__file__).resolve().parents[1]
# import name: rosdep key, where they differ
KEYS = {"cv2": "python3-opencv", "yaml": "python3-yaml", "pytest": "python3-pytest", "tf2_ros": "tf2_ros_py"} | {
    name: f"python3-{name}" for name in ("numpy", "scipy", "matplotlib", "tqdm")
}
PIP_ONLY = {"torch", "safetensors", "tensorboard", "onnx", "onnxruntime", "rosbags", "evo"}      # no rosdep key installs them everywhere
PROVIDED = {"depth_ros"} | {path.stem for path in (ROOT / "test").glob("*.py")} | set(sys.stdlib_module_names)


def _imported(*folders: str) -> set[str]:
    """Top-level names of every module that Python files in these folders import."""
    names: set[str] = set()
    for folder in folders:
        for source in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.split(".")[0])
    return names - PROVIDED


def _declared(*tags: str) -> set[str]:
    manifest = ElementTree.parse(ROOT / "package.xml").getroot()
    return {element.text for tag in tags for element in manifest.iter(tag)}


@pytest.mark.parametrize(("folders", "tags"), [
    (("depth_ros", "launch"), ("depend", "exec_depend")),
    (("test", "ros2_polyfill/test"), ("depend", "exec_depend", "test_depend")),
])  # fmt: skip
def test_the_manifest_declares_every_import(folders: tuple[str, ...], tags: tuple[str, ...]) -> None:
    needed = {KEYS.get(name, name) for name in _imported(*folders) - PIP_ONLY}
    assert needed - _declared(*tags) == set()


def test_every_requirement_is_pinned_once() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    names = [re.fullmatch(r"([\w.-]+)(\[\w+\])?==[\w.]+( ; .*)?", line)[1].lower() for line in lines]
    assert len(names) == len(set(names))
    assert PIP_ONLY <= set(names)


def test_every_executable_leads_to_a_function() -> None:
    scripts = [entry for entry in distribution("depth_ros").entry_points if entry.group == "console_scripts"]
    assert {"player", "flow", "sparse_depth", "deepv2d", "global_local", "evaluate", "convert"} <= {entry.name for entry in scripts}
    for entry in scripts:
        module, _, function = entry.value.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert os.access(Path(get_package_prefix("depth_ros")) / "lib/depth_ros" / entry.name, os.X_OK)


@pytest.mark.parametrize("folder", ["launch", "config", "rviz"])
def test_every_shared_file_is_installed(folder: str) -> None:
    share = Path(get_package_share_directory("depth_ros"))
    sources = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sources
    assert [path for path in sources if (share / path).read_bytes() != (ROOT / path).read_bytes()] == []
