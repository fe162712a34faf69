"""Functions that are recorded as a flat list of tensor operations, and replayed.

At small batches the cost of a derivative is Python: functorch builds it anew at each call.
Recording it once for each shape, dtype and device (``make_fx``) and replaying the recording does
the same arithmetic without that.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch

# Calls of a signature before it is recorded: recording costs as much as some fifty calls, and most
# shapes of a shrinking batch are seen only a few times.
_CALLS_BEFORE_RECORDING = 12

# Recordings kept by each function, the oldest dropped first: bounds the memory where batch sizes
# vary.
_RECORDINGS = 64

Outputs = tuple[torch.Tensor, ...]

_KIND = operator.attrgetter("shape", "dtype", "device")


class Replayed:
    """A pure function of tensors, recorded on repeated use.

    Args:
        function: maps tensors to a tuple of tensors. It must depend on nothing but its arguments,
            and take no decision by their values.
        record: False calls the function anew each time.
    """

    def __init__(self, function: Callable[..., Outputs], *, record: bool = True) -> None:
        self.function = function
        self.record = record
        self._calls: dict[Any, int] = {}
        self._recorded: dict[Any, Callable[..., Outputs] | None] = {}

    def __call__(self, *tensors: torch.Tensor) -> Outputs:
        """The function's value."""
        if not self.record:
            return self.function(*tensors)
        signature = tuple(map(_KIND, tensors))
        recorded = self._recorded.get(signature)
        if recorded is not None:
            return recorded(*tensors)
        if signature in self._recorded or not self._is_plain(tensors):
            return self.function(*tensors)
        calls = self._calls.get(signature, 0) + 1
        self._calls[signature] = calls
        if calls < _CALLS_BEFORE_RECORDING:
            return self.function(*tensors)
        del self._calls[signature]
        if len(self._recorded) >= _RECORDINGS:
            del self._recorded[next(iter(self._recorded))]
        self._recorded[signature] = recorded = _recording(self.function, tensors)
        return self.function(*tensors) if recorded is None else recorded(*tensors)

    @staticmethod
    def _is_plain(tensors: Outputs) -> bool:
        """Inside a functorch transform or autograd's recording nothing is recorded."""
        return not (torch._C._are_functorch_transforms_active() or torch.is_grad_enabled())

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "record": self.record, "_calls": {}, "_recorded": {}}


def _recording(function: Callable[..., Outputs], tensors: Outputs) -> Callable[..., Outputs] | None:
    """The function as a graph of tensor operations, or None where it cannot be recorded."""
    from torch._functorch.compile_utils import fx_graph_cse
    from torch.fx import GraphModule
    from torch.fx.experimental.proxy_tensor import make_fx

    examples = [tensor.detach().clone() for tensor in tensors]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = make_fx(function)(*examples)
        graph = module.graph
        # Saved intermediate values are detached; without these nodes a replay is itself
        # differentiable, and one operation in ten is gone.
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target is torch.ops.aten.detach.default:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        graph = fx_graph_cse(graph)
        graph.eliminate_dead_code()
        return GraphModule(module, graph)
    except Exception:  # whatever a user's function does that cannot be recorded
        return None
