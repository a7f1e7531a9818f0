"""The base of every node: a lifecycle node that can start itself, keeps its parameters checked and reports on /diagnostics."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription

from depth_ros.ros import diagnostics, params
from depth_ros.ros.diagnostics import Diagnostics, Flow
from depth_ros.ros.latest_worker import LatestWorker
from depth_ros.settings import setting

_PATIENCE = 3.0     # [s] that everything at work is given to end, all together: a signal must end the process within 5 s
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
# Sensor data: a reliable writer keeps and repeats, a best-effort reader takes what is fresh, so any pair of them connects (REP 2003). Ten
# messages are a third of a second of a camera, which covers the pauses of a loaded machine.
SENSOR_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT, history=HistoryPolicy.KEEP_LAST)
OUTPUT_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST)
LATCHED_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL, history=HistoryPolicy.KEEP_LAST)


@dataclass(frozen=True)
class NodeConfig:
    """Parameters that every node has."""

    autostart: bool = setting(True, 'configure and activate at start; false leaves that to a lifecycle manager', read_only=True)
    stale_after: float = setting(2.0, 'report an input as stalled after this silence', 's', low=0.1, high=3600.0)


class ManagedNode(LifecycleNode):
    """Subclasses set `config_class` and fill in setup, start, stop and teardown; whatever they open through this class is closed by it.

    An exception in `setup` or `start` fails the transition with its text as the reason. A node that starts itself then ends with `exit_status` 1,
    for nobody is there to try again.
    """

    config_class: ClassVar[type[NodeConfig]] = NodeConfig

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, automatically_declare_parameters_from_overrides=True, **options)
        try:
            self.config = params.declare(self, self.config_class)
            for sentence in params.drop_unknown(self, self.config_class):
                self.get_logger().warning(sentence)
        except (ValueError, ParameterException):
            self.destroy_node()
            raise
        self.exit_status: int | None = None     # set when the node has nothing more to do
        self.in_transition = False              # a signal may then interrupt the main thread
        self.diagnostics = Diagnostics(self, self.config.stale_after, lambda: self.state)
        self._outputs: list[Publisher] = []
        self._subscriptions_open: list[Subscription] = []
        self._workers: list[LatestWorker] = []
        self._abandoned: list[LatestWorker] = []    # did not end when they were told to
        self._failed_calls = 0                      # of services, that raised
        self._deadline = 0.0                        # steady time [s] by which all is to have ended
        self._service_change_state.callback = self._refuse_impossible(self._service_change_state.callback)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._starter = None
        if self.config.autostart:
            self._starter = self.create_timer(0.0, self._autostart, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # What a node does

    def setup(self) -> None:
        """Make the engine and the publishers (configure)."""

    def start(self) -> None:
        """Open the inputs (activate)."""

    def halt(self) -> None:
        """Tell threads of the node's own to end, without waiting for them: before workers are waited for (deactivate)."""

    def stop(self) -> None:
        """Pause (deactivate); inputs and workers are already closed. What else is waited for gets `patience`."""

    def teardown(self) -> None:
        """Let go of what `setup` made (cleanup); also called after a setup that failed half-way."""

    def reconfigured(self, before: Any) -> None:
        """A parameter changed while the node was configured; `config` is new, `before` what it was. ValueError refuses the change."""

    # What it opens

    def publisher(self, kind: type, topic: str, qos: QoSProfile = OUTPUT_QOS) -> LifecyclePublisher:
        """A publisher that speaks only while the node is active, counted in the diagnostics by `tell`."""
        publisher = self.create_lifecycle_publisher(kind, topic, qos)
        self._outputs.append(publisher)
        return publisher

    def listen(self, kind: type, topic: str, callback: Callable[[Any], None], qos: QoSProfile = SENSOR_QOS, stalls: bool = True) -> Flow:
        """Subscribe until the node is deactivated, and watch the topic."""
        flow = self.diagnostics.input(self.resolve_topic_name(topic), stalls)

        def on_message(message: Any) -> None:
            flow.tick()
            try:
                callback(message)
            except Exception as error:      # whatever others send must not end this node
                self._on_work_error(error)

        self._subscriptions_open.append(self.create_subscription(kind, topic, on_message, qos))
        return flow

    def service(self, kind: type, name: str, answer: Callable[[Any], tuple[bool, str]]) -> None:
        """Offer a service of std_srvs in every state; `answer` gives success and message. What it raises is the message of a call that failed."""
        def on_call(request: Any, response: Any) -> Any:
            try:
                response.success, response.message = answer(request)
            except Exception as error:      # rclpy would raise it in the executor and so end the node
                response.success, response.message = False, f'{type(error).__name__}: {error}'
                self._failed_calls += 1
                self.diagnostics.value('failed service calls', self._failed_calls)
                self.diagnostics.complain(name, f'{name}: {response.message}', details=f'{name}: {traceback.format_exc()}')
            return response

        self.create_service(kind, name, on_call)

    def worker(self, work: Callable[[Any], None], task: str = '', waiting: int = 1) -> LatestWorker:
        """A running thread for the newest items that ends when the node is deactivated; `task` tells several of them apart, and `waiting` items may wait."""
        worker = LatestWorker(f'{self.get_name()} {task}'.rstrip(), work, self._on_work_error, waiting)
        self.diagnostics.watch(worker, task)
        self._workers.append(worker)
        worker.start()
        return worker

    def tell(self, publisher: Publisher, message: Any) -> None:
        """Publish and count. Raises RuntimeError in a worker that should have ended long ago: nobody asked for what it has to say."""
        if any(worker.is_here() for worker in self._abandoned):
            raise RuntimeError(f'{publisher.topic_name}: not published, for the node was deactivated meanwhile')
        publisher.publish(message)
        self.diagnostics.output(publisher.topic_name).tick()

    @property
    def patience(self) -> float:
        """What is left of the time [s] that everything at work is given to end, from when the node was told to pause."""
        return max(self._deadline - time.monotonic(), 0.0)

    @property
    def is_abandoned(self) -> bool:
        """Whether a worker did not end in time."""
        return any(worker.abandoned for worker in self._abandoned)

    @property
    def state(self) -> str:
        """Label of the lifecycle state."""
        return self._state_machine.current_state[1]

    def finish(self, exit_status: int) -> None:
        """Ask the main loop to end the process."""
        self.exit_status = exit_status

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `setup`; a failure is logged with its reason and leaves nothing behind."""
        if not self._attempt('configure', self.setup):
            self._close()
            return FAILURE
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the publishers, then the inputs."""
        super().on_activate(state)
        if not self._attempt('activate', self.start):
            self._pause()
            super().on_deactivate(state)
            return FAILURE
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Close the inputs and workers, then the publishers."""
        self._pause()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of everything that `on_configure` made."""
        result = super().on_cleanup(state)
        self._close()
        self.diagnostics.forget()
        return result

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """From any state: close everything, and tell what was done."""
        summary = self.diagnostics.summary()
        if summary:
            self.get_logger().info(summary)
        self._pause()
        self._close()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Fall back to unconfigured."""
        self._pause()
        self._close()
        return SUCCESS

    def _attempt(self, transition: str, action: Callable[[], None]) -> bool:
        self.in_transition = True
        try:
            self._await_abandoned()
            action()
        except Exception as error:      # rclpy would swallow it without a word
            reason = f'cannot {transition}: {error}'
            expected = isinstance(error, (ValueError, OSError))
            self.get_logger().error(reason if expected else f'{reason}\n{traceback.format_exc()}')
            self.diagnostics.hold('transition', diagnostics.ERROR, reason, logged=True)
            return False
        finally:
            self.in_transition = False
        self.diagnostics.clear('transition')
        return True

    def _autostart(self) -> None:
        self.destroy_timer(self._starter)
        if self.state != 'unconfigured':
            return      # a lifecycle manager was quicker
        if self.trigger_configure() != SUCCESS or self.trigger_activate() != SUCCESS:
            self.finish(1)

    def _pause(self) -> None:
        for subscription in self._subscriptions_open:
            self.destroy_subscription(subscription)
        self._subscriptions_open.clear()
        for worker in self._workers:
            worker.halt()
        self.halt()
        self._deadline = time.monotonic() + _PATIENCE
        self._abandoned += [worker for worker in self._workers if not worker.stop(self.patience)]
        self._workers.clear()
        if self._abandoned:
            self.diagnostics.hold('worker', diagnostics.ERROR, f'{_names(self._abandoned)}: still at work {_PATIENCE:.0f} s after it was told to end; its result is discarded')
        self.stop()

    def _await_abandoned(self) -> None:
        """Two threads must not work with one engine. Raises ValueError while there is one from before."""
        self._abandoned = [worker for worker in self._abandoned if worker.abandoned]
        if self._abandoned:
            raise ValueError(f'{_names(self._abandoned)}: still at work since the node was deactivated; try again when it has ended')
        self.diagnostics.clear('worker')

    def _close(self) -> None:
        self.teardown()
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        self._outputs.clear()

    def _refuse_impossible(self, change_state: Callable[..., ChangeState.Response]) -> Callable[..., ChangeState.Response]:
        """Answer an impossible transition with success=False, where rclpy raises in the executor and so ends the node."""
        def checked(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            try:
                return change_state(request, response)
            except rclpy_implementation.RCLError as error:
                self.get_logger().error(f'transition {request.transition.label or request.transition.id} refused in state {self.state}: {error}')
                response.success = False
                return response
        return checked

    # Parameters and errors

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        before = self.config
        try:
            self.config = params.changed(before, parameters, active=self.state == 'active')
            self.diagnostics.stale_after = self.config.stale_after
            if self.config != before and self.state in ('inactive', 'active'):
                self.reconfigured(before)
        except Exception as error:      # rclpy would raise it in the executor and so end the node
            self.config, self.diagnostics.stale_after = before, before.stale_after
            if isinstance(error, (ValueError, OSError)):
                return SetParametersResult(successful=False, reason=str(error))
            self.get_logger().error(f'cannot change parameters: {error}\n{traceback.format_exc()}')
            return SetParametersResult(successful=False, reason=f'{type(error).__name__}: {error}')
        return SetParametersResult(successful=True)

    def _on_work_error(self, error: Exception) -> None:
        trace = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
        self.diagnostics.complain('work', f'{type(error).__name__}: {error}', details=trace)


def _names(workers: list[LatestWorker]) -> str:
    return ', '.join(worker.name for worker in workers)
