"""Installs the nodes and programs of depth_ros, and its launch, configuration and RViz files, where ROS 2 looks for them."""

from glob import glob
from os.path import isfile, join

from setuptools import find_packages, setup

NAME = "depth_ros"
SHARE = join("share", NAME)


def shared(folder: str) -> list[tuple[str, list[str]]]:
    """(destination, files) of a folder and its sub-folders, as data_files wants them."""
    by_folder: dict[str, list[str]] = {}
    for path in sorted(filter(isfile, glob(join(folder, "**"), recursive=True))):
        if path.endswith(".pyc"):
            continue
        by_folder.setdefault(join(SHARE, path.rpartition("/")[0]), []).append(path)
    return list(by_folder.items())


setup(
    name=NAME,
    version="0.1.0",
    packages=find_packages(include=[NAME, NAME + ".*"]),
    package_data={NAME: ["weights/*.safetensors", "weights/README.md"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [join("resource", NAME)]),
        (SHARE, ["package.xml"]),
        *shared("launch"),
        *shared("config"),
        *shared("rviz"),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    maintainer="depth_ros maintainers",
    maintainer_email="maintainers@depth-ros.invalid",
    description="Live dense depth and camera tracking for robots with one camera",
    license="Apache-2.0",
    python_requires=">=3.10",
    entry_points={
        "console_scripts": [
            "player = depth_ros.ros.executables:player",
            "flow = depth_ros.ros.executables:flow",
            "sparse_depth = depth_ros.ros.executables:sparse_depth",
            "deepv2d = depth_ros.ros.executables:deepv2d",
            "global_local = depth_ros.ros.executables:global_local",
            "online_learning = depth_ros.ros.executables:online_learning",
            "train = depth_ros.apps.train:main",
            "evaluate = depth_ros.apps.evaluate:main",
            "convert = depth_ros.apps.convert:main",
        ],
    },
)
