"""The executables: each starts one node, and ends it within seconds of SIGINT or SIGTERM, whatever it is doing."""

from __future__ import annotations

import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rclpy.executors import Executor

    from depth_ros.ros.managed_node import ManagedNode

# One thread a computation unless the user says otherwise: the nodes of a graph share the cores, and threads that wait for each other on a busy machine
# cost more than they bring. Flow still computes its two directions side by side.
_THREADS = {'OMP_NUM_THREADS': '1', 'OPENCV_FOR_THREADS_NUM': '1'}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3                     # of mallopt
_KEPT = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}     # sizes [bytes] of a block that is asked of the system by itself, and of freed memory given back
_MALLOC_IS_SET = 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES'
_POLL = 0.1     # [s] within which a signal is noticed: Python runs handlers only between two waits of the executor


def player() -> None:
    """Play a recorded sequence."""
    _main('player_node', 'PlayerNode')


def flow() -> None:
    """Optical flow between the camera's current and an earlier image."""
    _main('flow_node', 'FlowNode')


def sparse_depth() -> None:
    """Range measurements projected into the camera."""
    _main('sparse_depth_node', 'SparseDepthNode')


def deepv2d() -> None:
    """Camera tracking and dense depth."""
    _main('deepv2d_node', 'DeepV2DNode')


def global_local() -> None:
    """Dense depth by the Global-Local network."""
    _main('global_local_node', 'GlobalLocalNode')


def online_learning() -> None:
    """A depth network that keeps learning from range hits."""
    _main('online_learning_node', 'OnlineLearningNode')


def _main(module: str, name: str) -> None:
    def leave(_signal: int, _frame: FrameType | None) -> None:
        # At once: an exception raised here inside the import of a C++ library aborts the process. Nothing is open yet.
        os._exit(0)

    # Set before the imports, which take seconds: a launch may be stopped while it starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    for variable, count in _THREADS.items():
        os.environ.setdefault(variable, count)
    keep_freed_memory()
    node_class = getattr(importlib.import_module(f'depth_ros.ros.{module}'), name)
    _heed_arguments(module.removesuffix('_node'), node_class)
    status = spin(node_class)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that is still in a long computation, or Fast DDS' own, must not hold up or crash the interpreter's exit.
    os._exit(status)


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of an image for the next one; whether it does. Given back, it costs a page fault for every 4 kB again, a tenth of all processor time of a graph.

    What the user sets in the environment stands.
    """
    if sys.platform != 'linux' or any(name in os.environ for name in _MALLOC_IS_SET):
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, 'mallopt') and all([library.mallopt(parameter, size) for parameter, size in _KEPT.items()])


def _heed_arguments(name: str, node_class: type) -> None:
    """Print the help where it is asked for; end with status 2 for what stands outside `--ros-args`, where it would be taken for something else or for nothing."""
    from depth_ros.apps.options import without_ros_arguments
    from depth_ros.ros import usage

    words = without_ros_arguments(sys.argv[1:])
    if {'-h', '--help'} & set(words):
        print(usage.text(name, node_class))
        sys.exit(0)
    if words:
        print(f'{usage.usage(name)}\nerror: {words[0]} stands outside --ros-args; parameters are set with --ros-args -p NAME:=VALUE, and --help tells of them', file=sys.stderr)
        sys.exit(2)


def spin(node_class: type) -> int:
    """Run a node until a signal comes or it has finished; the exit status."""
    import rclpy
    from rclpy.exceptions import ParameterException
    from rclpy.signals import SignalHandlerOptions

    try:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:       # arguments behind --ros-args or a parameter file that cannot be read
        rclpy.logging.get_logger(node_class.__name__).fatal(' '.join(str(error).split()))
        return 1
    try:
        node = node_class()
    except (ValueError, ParameterException) as error:
        rclpy.logging.get_logger(node_class.__name__).fatal(str(error))
        return 1
    status = _run(node)
    # Fast DDS takes its shared memory back, 64 MB a node, only with the last that holds on to the node.
    del node
    gc.collect()
    rclpy.try_shutdown()
    return status


class _ToRos(logging.Handler):
    """Brings what the engines log into the node's log."""

    def __init__(self, node: ManagedNode) -> None:
        super().__init__(logging.INFO)
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Log at the same severity, under a name of the module's."""
        child = self._logger.get_child(record.name.rpartition('.')[2])
        say = child.error if record.levelno >= logging.ERROR else child.warning if record.levelno >= logging.WARNING else child.info
        say(record.getMessage())


def make_executor() -> Executor:
    """What runs callbacks, one at a time. By events where this rclpy has that: taking a message then costs half the processor time, and here a thousand a second are taken."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        from rclpy.executors import SingleThreadedExecutor
        return SingleThreadedExecutor()
    return EventsExecutor()


def _run(node: ManagedNode) -> int:
    stopped = threading.Event()

    def leave(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()
        if node.in_transition:      # setting up may take long (rendering the sample, loading a model): do not wait for it
            sys.exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    log = logging.getLogger('depth_ros')
    log.setLevel(logging.INFO)
    to_ros = _ToRos(node)
    log.addHandler(to_ros)
    executor = make_executor()
    executor.add_node(node)
    try:
        while not stopped.is_set() and node.exit_status is None:
            executor.spin_once(timeout_sec=_POLL)
    except SystemExit:
        return 0
    finally:
        log.removeHandler(to_ros)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)       # it ends already
    node.trigger_shutdown()
    executor.shutdown(timeout_sec=1.0)
    node.destroy_node()
    return node.exit_status or 0
