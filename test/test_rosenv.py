"""rosenv on a small copy of the tree, with a Python that notes what it is asked to do instead of doing it."""

from __future__ import annotations

import importlib
import os
import pty
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = sys._base_executable      # without the packages of the environment that the tests run in
FRESH = ["venv", "pip", "colcon", "pip", "colcon"]      # the wheels, tf2_msgs, the polyfill, depth_ros
TOOLS = "bash cat chmod cp cut date dirname env find flock mkdir mv readlink rm sed sha256sum sleep sort tail tee true uname wc".split()

# Stands in for python3 and, copied into .venv, for its Python: code goes to the real one, without its site-packages.
PYTHON = """#!/bin/bash
note() {
    echo "$1" >>"$CALLS"
    if [[ $(wc -l <"$CALLS") == "${FAIL_AT:-}" ]]; then echo "no space left on device"; exit 1; fi
}
case "$*" in
    *get_include*) echo /numpy/include ;;
    "-m venv"*) mkdir -p "${!#}"/{bin,share,lib/python3.12/site-packages}; cp "$0" "${!#}/bin/python"; note venv ;;
    "-m pip"*) note pip ;;
    *colcon_core*) while [[ $1 != --install-base ]]; do shift; done; mkdir -p "$2"; echo 'export PYTHONPATH=/built' >"$2/local_setup.sh"; note colcon ;;
    *) exec %(python)s -S "$@" ;;
esac
"""


@dataclass
class Tree:
    """A copy of what rosenv reads, in `folder`, and the environment to call it in."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "rosenv"), *command], cwd=cwd, env=self.environment | variables, capture_output=True, text=True, timeout=120
        )

    def calls(self) -> list[str]:
        """What the Python was asked since the last time."""
        notes = Path(self.environment["CALLS"])
        lines = notes.read_text().split() if notes.exists() else []
        notes.unlink(missing_ok=True)
        return lines


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("rosenv", "setup.py", "setup.cfg", "package.xml", "requirements.txt", "launch", "ros2_polyfill/pyproject.toml", "ros2_polyfill/interfaces"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    for name in ("python3", "c++"):
        _program(tools / name, PYTHON % {"python": BASE})
    return Tree(folder, {"PATH": str(tools), "HOME": str(tmp_path), "CALLS": str(tmp_path / "calls"), "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1"})


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_without_a_command_it_tells_its_usage(tree: Tree) -> None:
    bare, asked, unknown = tree.call(), tree.call("--help"), tree.call("--frobnicate")
    assert (bare.returncode, asked.returncode, unknown.returncode) == (2, 0, 2)
    assert "usage: ./rosenv COMMAND" in bare.stderr and "usage: ./rosenv COMMAND" in asked.stdout and "--frobnicate" in unknown.stderr
    assert tree.calls() == []


def test_sets_up_once_and_runs_the_command_where_it_was_called(tree: Tree, tmp_path: Path) -> None:
    script = 'echo "$PWD|$1|$ROS_DISTRO|$ROS_AUTOMATIC_DISCOVERY_RANGE|$PYTHONPATH"; exit 7'
    first = tree.call("bash", "-c", script, "-", "two words", cwd=tmp_path)
    assert tree.calls() == FRESH
    assert first.returncode == 7, first.stderr
    assert first.stdout == f"{tmp_path}|two words|jazzy|LOCALHOST|/built\n"
    second = tree.call("bash", "-c", script, "-", "two words", cwd=tmp_path)
    assert tree.calls() == []
    assert (second.stdout, second.stderr, second.returncode) == (first.stdout, "", 7)


def test_a_call_inside_the_environment_changes_nothing(tree: Tree) -> None:
    show = 'echo "$PATH|$PYTHONPATH|$AMENT_PREFIX_PATH|$LD_LIBRARY_PATH"'
    outer = tree.call("bash", "-c", show)
    inner = tree.call(str(tree.folder / "rosenv"), "bash", "-c", show)
    assert inner.stdout == outer.stdout and inner.returncode == 0
    assert tree.calls() == FRESH


def test_keeps_the_users_discovery_range_and_drops_another_ros(tree: Tree) -> None:
    done = tree.call(
        "bash", "-c", 'echo "$ROS_AUTOMATIC_DISCOVERY_RANGE|$AMENT_PREFIX_PATH|$PYTHONPATH"',
        ROS_AUTOMATIC_DISCOVERY_RANGE="SUBNET", ROS_DISTRO="humble", AMENT_PREFIX_PATH="/opt/other", PYTHONPATH="/opt/other/lib",
    )  # fmt: skip
    assert done.stdout == f"SUBNET|{tree.folder}/.venv|/built\n"


@pytest.fixture
def full_ros(tree: Tree, tmp_path: Path) -> dict[str, str]:
    """The variables of a sourced distribution, as far as rosenv looks at it."""
    packages = tmp_path / "opt/ros/packages"
    for name in ("launch_ros", "rclpy", "numpy", "cv2"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
    (packages / "numpy-1.26.4.dist-info").mkdir()
    (packages / "numpy-1.26.4.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.4\n")
    tools = Path(tree.environment["PATH"])
    _program(tools / "ros2", f"#!{tools}/python3\n")
    return {"ROS_DISTRO": "kilted", "AMENT_PREFIX_PATH": "/opt/ros", "PYTHONPATH": str(packages)}


def test_uses_a_sourced_ros_and_adds_what_it_lacks(tree: Tree, full_ros: dict[str, str]) -> None:
    show = ("bash", "-c", 'echo "$ROS_DISTRO|$AMENT_PREFIX_PATH|$PYTHONPATH"')
    first, second = tree.call(*show, **full_ros), tree.call(*show, **full_ros)
    state = tree.folder / ".rosenv/kilted"
    assert first.stdout == second.stdout == f"kilted|/opt/ros|/built:{state}/venv/lib/python3.12/site-packages:{full_ros['PYTHONPATH']}\n", first.stderr
    assert tree.calls() == ["venv", "pip", "colcon"]
    assert not (tree.folder / ".venv").exists()
    missing, constraints = (state / "missing.txt").read_text(), (state / "constraints.txt").read_text().splitlines()
    assert "torch==" in missing and "numpy" not in missing and "opencv" not in missing and "ros-" not in missing
    assert "numpy==1.26.4" in constraints and len([line for line in constraints if line.startswith("numpy==")]) == 1


def test_a_sourced_ros_without_opencv_is_told_to_run_rosdep(tree: Tree, full_ros: dict[str, str]) -> None:
    shutil.rmtree(Path(full_ros["PYTHONPATH"]) / "cv2")
    done = tree.call("true", **full_ros)
    assert done.returncode != 0 and "has no cv2" in done.stderr and "rosdep install" in done.stderr


@pytest.mark.parametrize(("failing", "title", "repair"), [
    (2, "installing the pinned wheels", FRESH),
    (3, "building the messages of tf2_msgs", FRESH[2:]),
    (4, "installing the parts of ROS 2", FRESH[3:]),
    (5, "building depth_ros", FRESH[4:]),
])  # fmt: skip
def test_a_failed_step_is_named_and_taken_up_again(tree: Tree, failing: int, title: str, repair: list[str]) -> None:
    failed = tree.call("true", FAIL_AT=str(failing))
    assert failed.returncode != 0 and tree.calls() == FRESH[:failing]
    assert f"this step failed: {title}" in failed.stderr and "no space left on device" in failed.stderr
    log = Path(failed.stderr.split("All of its output is in ")[1].split(". Put")[0])
    assert "no space left on device" in log.read_text()
    assert tree.call("true").returncode == 0
    assert tree.calls() == repair


@pytest.mark.parametrize("failing", [1, 2])
def test_a_half_made_venv_is_made_anew(tree: Tree, failing: int) -> None:
    assert tree.call("true", FAIL_AT=str(failing)).returncode != 0
    half = tree.folder / ".venv/half of a package"
    half.touch()
    tree.calls()
    assert tree.call("true").returncode == 0
    assert tree.calls() == FRESH and not half.exists()


def test_ctrl_c_leaves_what_the_next_call_repairs(tree: Tree, tmp_path: Path) -> None:
    waiting = tmp_path / "waiting"
    os.mkfifo(waiting)
    _program(tmp_path / "bin/python3", (PYTHON % {"python": BASE}).replace("note venv", f"note venv; echo >'{waiting}'; sleep 60"))
    process = subprocess.Popen(
        [tree.folder / "rosenv", "true"], env=tree.environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    waiting.read_text()     # returns when the set-up has come to the venv
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode != 0 and "interrupted while installing the pinned wheels" in told
    _program(tmp_path / "bin/python3", PYTHON % {"python": BASE})
    tree.calls()
    assert tree.call("true").returncode == 0
    assert tree.calls() == FRESH


def test_a_deleted_venv_is_made_anew_with_all_that_is_built_on_it(tree: Tree) -> None:
    tree.call("true")
    tree.calls()
    shutil.rmtree(tree.folder / ".venv")
    assert tree.call("true").returncode == 0
    assert tree.calls() == FRESH


def test_a_moved_checkout_is_set_up_anew(tree: Tree) -> None:
    tree.call("true")
    tree.calls()
    tree.folder = tree.folder.rename(tree.folder.with_name("elsewhere"))
    assert tree.call("true").returncode == 0
    assert tree.calls() == FRESH


@pytest.mark.parametrize(("changed", "steps"), [
    ("requirements.txt", FRESH[1:]),
    ("ros2_polyfill/interfaces/tf2_msgs/msg/TFMessage.msg", ["colcon", "colcon"]),
    ("ros2_polyfill/pyproject.toml", ["pip", "colcon"]),
    ("setup.py", ["colcon"]),
    ("launch/new.launch.py", ["colcon"]),
])  # fmt: skip
def test_a_change_repeats_only_the_steps_that_depend_on_it(tree: Tree, changed: str, steps: list[str]) -> None:
    tree.call("true")
    tree.calls()
    (tree.folder / "launch").mkdir(exist_ok=True)
    with (tree.folder / changed).open("a") as file:
        file.write("\n")
    assert tree.call("true").returncode == 0
    assert tree.calls() == steps


def test_two_calls_at_once_set_up_once(tree: Tree) -> None:
    both = [subprocess.Popen([tree.folder / "rosenv", "true"], env=tree.environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert tree.calls() == FRESH


def test_says_that_a_compiler_is_missing_before_it_installs_anything(tree: Tree) -> None:
    os.unlink(Path(tree.environment["PATH"]) / "c++")
    done = tree.call("true")
    assert done.returncode == 1 and "needs a C++ compiler" in done.stderr and "g++" in done.stderr
    assert tree.calls() == []


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 13, 0)])
def test_says_which_python_it_needs(tree: Tree, tmp_path: Path, version: tuple[int, int, int]) -> None:
    number = ".".join(map(str, version))
    old = tmp_path / "old_python"
    pretend = f"import sys, platform; sys.version_info = ({version[0]}, {version[1]}, {version[2]}); platform.python_version = lambda: '{number}'"
    _program(old, f'#!/bin/bash\nexec {BASE} -c "{pretend}; exec(sys.stdin.read())"\n')
    done = tree.call("true", ROSENV_PYTHON=str(old))
    assert done.returncode == 1 and "needs CPython 3.10, 3.11 or 3.12" in done.stderr and f"is CPython {number}" in done.stderr
    assert tree.calls() == []


def test_says_that_no_python_runs(tree: Tree) -> None:
    os.unlink(Path(tree.environment["PATH"]) / "python3")
    done = tree.call("true")
    assert done.returncode == 1 and "python3 does not run" in done.stderr


def test_refuses_a_path_that_colcon_cannot_build_in(tree: Tree) -> None:
    tree.folder = tree.folder.rename(tree.folder.with_name("with space"))
    done = tree.call("true")
    assert done.returncode == 1 and "a space or colon" in done.stderr and tree.calls() == []


def test_the_launch_folder_does_not_hide_the_launch_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    probe = "import launch.actions; print(launch.__file__)"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).name == "__init__.py"
    assert importlib.import_module("launch.actions").__name__ == "launch.actions"


def test_progress_goes_on_showing_what_is_installed_while_pip_throws_out_the_old() -> None:
    said = ["Installing collected packages: torch, setuptools", "  Attempting uninstall: setuptools", "    Found existing installation: setuptools 65.5.1",
            "    Uninstalling setuptools-65.5.1:", "      Successfully uninstalled setuptools-65.5.1"]
    master, slave = pty.openpty()
    try:
        code = 'source <(sed -n "/^show_progress()/,/^}/p" "$1"); show_progress'
        subprocess.run(["bash", "-c", code, "bash", str(ROOT / "rosenv")], input="\n".join(said) + "\n", stderr=slave, text=True, timeout=120, check=True)
        os.close(slave)
        shown = os.read(master, 1 << 16).decode()
    finally:
        os.close(master)
    assert shown.count(said[0]) == len(said) and "ninstall" not in shown.replace(said[0], "") and "existing" not in shown
