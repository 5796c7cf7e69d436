"""What a model, its data and the process are at one moment, object by object and bit by bit, for comparison.

Written without the package's own guard on purpose: it goes through everything that can be reached.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
import types
import warnings
from typing import Any

import numpy as np
import torch
import torch._dynamo  # imported here, since its import for the first time changes the warnings filters
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_SIMPLE = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size)
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType)


class Digest:
    """The state of some objects: a token of every path that leads from them to a value.

    Args:
        roots: Objects by name.
    """

    def __init__(self, **roots: Any) -> None:
        self.tokens: dict[str, Any] = {}
        self._alive: list[Any] = []  # so that no identity is used twice
        self._seen: dict[int, str] = {}
        pending = list(roots.items())
        while pending:
            path, value = pending.pop()
            self._alive.append(value)
            pending.extend(self._note(path, value))

    def differences(self, other: Digest) -> list[str]:
        """The paths whose state differs."""
        mine, others = self.tokens, other.tokens
        return sorted(path for path in mine.keys() | others.keys() if mine.get(path) != others.get(path))

    def _note(self, path: str, value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, _SIMPLE):
            self.tokens[path] = type(value), repr(value)
            return []
        if id(value) in self._seen:
            self.tokens[path] = "same as", self._seen[id(value)]
            return []
        self._seen[id(value)] = path
        self.tokens[path] = type(value), id(value)
        if isinstance(value, Tensor):
            self.tokens[path] = (id(value), *_tensor(value))
            grad = value.grad if value.is_leaf else None
            return [(f"{path}.grad", grad), (f"{path}.__dict__", vars(value))]
        if isinstance(value, np.ndarray):
            self.tokens[path] = id(value), value.dtype, value.shape, value.tobytes()
            return []
        state = _generator(value)
        if state is not None:
            self.tokens[path] = id(value), state
            return []
        if isinstance(value, dict):
            self.tokens[path] = type(value), id(value), tuple(map(repr, value))
            return [(f"{path}[{key!r}]", item) for key, item in value.items()]
        if isinstance(value, (list, tuple)):
            self.tokens[path] = type(value), id(value), len(value)
            return [(f"{path}[{number}]", item) for number, item in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            self.tokens[path] = type(value), id(value), sorted(map(repr, value))
            return []
        if isinstance(value, _OPAQUE):
            return []
        if isinstance(value, types.MethodType):
            self.tokens[path] = (types.MethodType,)  # made whenever it is asked for
            return [(f"{path}.__self__", value.__self__), (f"{path}.__func__", value.__func__)]
        if isinstance(value, types.FunctionType):
            cells = value.__closure__ or ()
            return [(f"{path}.<{number}>", cell.cell_contents) for number, cell in enumerate(cells)]
        attributes = getattr(value, "__dict__", None)
        return [(f"{path}.__dict__", attributes)] if isinstance(attributes, dict) else []


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    flags = tensor.requires_grad, tensor.is_leaf, tensor.dtype, tuple(tensor.shape), type(tensor)
    if tensor.layout is not torch.strided:
        return (*flags, tensor.to_dense().detach().numpy().tobytes())
    bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return (*flags, tensor.stride(), tensor.untyped_storage().nbytes(), bits)


def _generator(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    return None


def process_state() -> dict[str, Any]:
    """What the process is apart from models and data: everything that a check must not change for good."""
    return {
        "torch generator": torch.get_rng_state().numpy().tobytes(),
        "numpy generator": repr(np.random.get_state()),
        "python generator": random.getstate(),
        "stdout": id(sys.stdout),
        "stderr": id(sys.stderr),
        "logging": logging.root.manager.disable,
        "warnings": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "default type": torch.get_default_dtype(),
        "function modes": len(_get_current_function_mode_stack()),
        "dispatch modes": len(_get_current_dispatch_mode_stack()),
        "excluded keys": str(torch._C._dispatch_tls_local_exclude_set()),
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "distributions": torch.distributions.Distribution._validate_args,
        "module hooks": nn.modules.module._has_any_global_hook(),
        "threads": threading.active_count(),
        "stance": torch.compiler.is_compiling(),
    }
