"""Networks as exported graphs: what runs on a robot's CPU, with torch as the reference that every graph is compared with.

Measured for Global-Local at 256 x 192 on one thread (benchmarks/global_local.py): ONNX Runtime 15.6 ms, about half of eager torch's time. OpenVINO in the same precision takes 0.8 of
ONNX Runtime's for the published variant and 1.2 for the pose-aware one: what it would gain for the one variant is not worth a second runtime of 100 MB beside the first, which the other wants.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from depth_ros import settings
from depth_ros.engines.threads import single_threaded
from depth_ros.settings import setting

log = logging.getLogger(__name__)

BACKENDS = ('auto', 'onnxruntime', 'torch')
# Largest relative difference of one value from torch's, of a graph that is used. Measured for both variants of Global-Local at 128 x 96 and 256 x 192: 1e-6 for
# inverse depth, 8e-6 for global parameters near zero. A tenth of a per cent of the depth is below anything that could be seen of it.
TOLERANCE = 1e-3
_SMALL = 0.1            # share of the usual value below which values are compared as if they were that large
_OPSET = 17
_warned: set[str] = set()


@dataclass(frozen=True)
class InferenceConfig:
    """What runs a network."""

    backend: str = setting('auto', 'what runs the network: ONNX Runtime or torch; auto: ONNX Runtime where it is installed', choices=BACKENDS)
    threads: int = setting(1, 'threads that the network may use; more than one starves the other nodes of a small machine', '', 1, 64)


class ExportedModel:
    """A module with fixed input sizes, as a graph where there is a runtime. Calls may come from any thread, one at a time.

    `difference` is the largest relative deviation of one value of the graph from torch on the example. A graph that cannot be made, or deviates by more than
    TOLERANCE, is told and torch used instead. The module's weights must not change afterwards: see `renewed`.
    """

    def __init__(self, module: nn.Module, example: tuple[Tensor, ...], config: InferenceConfig = InferenceConfig(), graph: bytes | None = None) -> None:
        """`example`: one input tuple, which fixes the sizes. Raises ValueError if the module's output on it is not finite."""
        settings.check(config)
        self.config = config
        self.module = module.eval()
        self.example = tuple(e.detach().clone() for e in example)
        self.difference = 0.0
        self._session: Any = None
        self._graph = b''
        expected = self._run_torch(self.example)
        if not all(torch.isfinite(e).all() for e in expected):
            raise ValueError('the network gives values that are not finite')
        if self._wants_graph():
            self._export(expected, graph)

    @property
    def backend(self) -> str:
        """What runs it: onnxruntime | torch."""
        return 'torch' if self._session is None else 'onnxruntime'

    @property
    def graph(self) -> bytes:
        """The module as ONNX; empty where torch runs it."""
        return b'' if self._session is None else self._graph

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The module's outputs for inputs of the example's shapes. Raises ValueError for other shapes."""
        shapes, expected = [tuple(i.shape) for i in inputs], [tuple(e.shape) for e in self.example]
        if shapes != expected:
            raise ValueError(f'expected inputs of {expected}, got {shapes}')
        return self._run_torch(inputs) if self._session is None else self._run_graph(inputs)

    def renewed(self, module: nn.Module) -> ExportedModel:
        """The same network with the weights of `module`, beside this one. Only the graph's weights are exchanged, for an export would hold up the live thread."""
        return ExportedModel(module, self.example, self.config, _with_weights(self._graph, module) if self._graph else None)

    def _wants_graph(self) -> bool:
        if self.config.backend == 'torch':
            return False
        missing = [name for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name) is None]
        if missing and not _warned & {*missing}:
            _warned.update(missing)
            log.warning('%s not installed: torch runs the networks, more slowly', ' and '.join(missing))
        return not missing

    def _export(self, expected: tuple[Tensor, ...], graph: bytes | None) -> None:
        try:
            self._graph = graph or _graph_of(self.module, self.example)
            self._session = _session(self._graph, self.config.threads)
            found = self._run_graph(self.example)
        except Exception as error:      # the exporter and the runtime raise what they like; torch can do it all
            self._session = None
            log.warning('the network cannot be run as a graph, torch runs it: %s', str(error).partition('\n')[0][:200])
            return
        self.difference = max(_deviation(f, e) for f, e in zip(found, expected, strict=True))
        if not self.difference <= TOLERANCE:
            self._session = None
            log.warning('the exported graph deviates by a share of up to %.2g from torch, which runs it instead', self.difference)

    @single_threaded()
    def _run_torch(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            found = self.module(*inputs)
        return found if isinstance(found, tuple) else (found,)

    def _run_graph(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        feed = {name: np.ascontiguousarray(i.numpy()) for name, i in zip(_names(len(inputs)), inputs)}
        return tuple(torch.from_numpy(o) for o in self._session.run(None, feed))


def _names(count: int) -> list[str]:
    return [f'input{i}' for i in range(count)]


def _deviation(found: Tensor, expected: Tensor) -> float:
    """Largest difference of a value as a share of what is expected there, so that a large value elsewhere hides nothing; NaN counts as infinite."""
    size = expected.abs()
    deviation = float(((found - expected).abs() / (size + _SMALL * size.median()).clamp(min=1e-12)).max())
    return deviation if np.isfinite(deviation) else float('inf')


def _graph_of(module: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    """The module as ONNX, its weights under their own names wherever that can be."""
    # The exporter merges weights that happen to be equal, such as biases that are all zero; so it gets others first.
    distinct = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in distinct.parameters():
            parameter.uniform_(0.5, 1.0)
    return _with_weights(_exported(distinct, example), module) or _exported(module, example)


def _exported(module: nn.Module, example: tuple[Tensor, ...]) -> bytes:
    buffer = io.BytesIO()
    # The exporter that traces is called legacy; the other one needs two packages more, and takes seconds. What fails it prints at length.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        # Constants stay where they are, for the runtime folds them anyway.
        torch.onnx.export(module, example, buffer, dynamo=False, opset_version=_OPSET, input_names=_names(len(example)), do_constant_folding=False)
    return buffer.getvalue()


def _with_weights(graph: bytes, module: nn.Module) -> bytes | None:
    """The graph with the module's weights; None if it does not hold every one of them under its name, in its shape."""
    import onnx

    model = onnx.load_from_string(graph)
    there = {initialiser.name: initialiser for initialiser in model.graph.initializer}
    state = module.state_dict()
    if any(name not in there or tuple(there[name].dims) != tuple(value.shape) for name, value in state.items()):
        return None
    for name, value in state.items():
        there[name].CopyFrom(onnx.numpy_helper.from_array(value.detach().cpu().numpy(), name))
    return model.SerializeToString()


def _session(graph: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that wait busily take the cores from the other nodes.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(graph, options, providers=['CPUExecutionProvider'])
