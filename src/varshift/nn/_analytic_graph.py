"""Networks with a forward of their own: traced once, then walked with their moments."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.fx.proxy import TraceError
from torch.nn import functional as F

from varshift.functional import KalmanState, add_kalman_states

from ._analytic_network import propagate
from ._analytic_norm import AnalyticModule
from ._analytic_rules import find_rule

# Functions and methods as the modules that they are, made from what follows the signal.
_MODULES: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU,
    torch.relu: nn.ReLU,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    F.relu6: nn.ReLU6,
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.selu: nn.SELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.mish: nn.Mish,
    F.softplus: nn.Softplus,
    F.hardtanh: nn.Hardtanh,
    F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    "tanh": nn.Tanh,
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    F.avg_pool1d: nn.AvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.max_pool1d: nn.MaxPool1d,
    F.max_pool2d: nn.MaxPool2d,
}
_NOISE = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
_SAME = {*_NOISE, "contiguous", "clone"}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_JOINS = {torch.cat, torch.concat}
_FLAT = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}


class _Ref(NamedTuple):
    """Stands for the value of an earlier step."""

    name: str


@dataclass(frozen=True)
class _Signal:
    """A tensor and its moments."""

    value: torch.Tensor
    state: KalmanState


class AnalyticGraph(AnalyticModule):
    r"""Any network whose `forward` can be traced, as a module that takes and returns moments.

    `torch.fx` traces the network once, when this is made. Its modules then move moments as under
    `varshift.nn.propagate`, and the functions between them do, too: activations and pools of
    `torch.nn.functional`, sums (variances add, as of uncorrelated summands), products with numbers,
    concatenation along channels, flattening. Norms stand where batch norms would, called with the signal
    alone. Parameters stay where they were: the network is the attribute ``body``.

    Shape:
        As the network's: one input of shape (N, C, ...), one output.

    Args:
        body: The network. Its control flow must not depend on data; what depends on the mode is traced as it
            is in the mode of the body, but for the functions of dropout.

    Raises:
        ValueError: If the network cannot be traced; in use, if there is no rule for an operation.

    Reference:
        As for `varshift.nn.AnalyticNorm2d`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from varshift.nn import AnalyticGraph, AnalyticNetwork, AnalyticNorm1d
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer, self.norm = nn.Linear(4, 4), AnalyticNorm1d(4)
        ...     def forward(self, x):
        ...         return x + torch.relu(self.norm(self.layer(x)))
        >>> net = AnalyticNetwork(AnalyticGraph(Block()), mean=[0.0] * 4, var=[1.0] * 4)
        >>> net(torch.randn(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        try:
            graph = _Tracer().trace(body)
        except (TraceError, TypeError) as problem:
            raise ValueError(
                f"body of class {type(body).__name__} must be traceable by torch.fx: {problem}. "
                "Derive the module at fault from varshift.nn.AnalyticModule."
            ) from problem
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ValueError(f"body of class {type(body).__name__} must take one input, not {len(inputs)}.")
        # What a step is the last to use is let go behind it.
        last = {used: node for node in graph.nodes for used in node.all_input_nodes}
        self._steps = [
            (
                node.name,
                node.op,
                node.target,
                *fx.map_arg((node.args, node.kwargs), lambda used: _Ref(used.name)),
                [used.name for used in node.all_input_nodes if last[used] is node],
            )
            for node in graph.nodes
        ]

    def forward(self, x: torch.Tensor, state: KalmanState) -> tuple[torch.Tensor, KalmanState]:
        """The network's output and its moments."""
        values: dict[str, Any] = {}
        for name, op, target, args, kwargs, done in self._steps:
            args, kwargs = _filled(args, values), _filled(kwargs, values)
            for used in done:
                del values[used]
            if op == "placeholder":
                values[name] = _Signal(x, state)
            elif op == "get_attr":
                values[name] = operator.attrgetter(target)(self.body)
            elif op == "call_module":
                values[name] = _module(self.body.get_submodule(target), args, kwargs)
            elif op == "output":
                result = args[0]
                if not isinstance(result, _Signal):
                    raise ValueError("body must return one signal with known moments.")
                return result.value, result.state
            else:
                if target in _NOISE:
                    args, kwargs = _mode(args, kwargs, self.training)
                values[name] = _function(op == "call_method", target, args, kwargs)
        raise ValueError("body must return a signal.")


class _Tracer(fx.Tracer):
    """Leaves alone what has moments of its own; looks into everything else."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module is one step of the walk."""
        plain = isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward
        known = isinstance(m, AnalyticModule) or find_rule(m) is not None
        return known or (not plain and super().is_leaf_module(m, module_qualified_name))


def _filled(value: Any, values: dict[str, Any]) -> Any:
    """Arguments with the values of earlier steps in their places."""
    if isinstance(value, _Ref):
        return values[value.name]
    if isinstance(value, tuple):
        return tuple(_filled(item, values) for item in value)
    if isinstance(value, list):
        return [_filled(item, values) for item in value]  # torch.fx has a class of lists of its own
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return value


def _mode(args: tuple, kwargs: dict, training: bool) -> tuple[tuple, dict]:
    """Arguments of functional dropout: a mode that was given is that of now, not of when it was traced."""
    if len(args) > 2:
        args = (*args[:2], training, *args[3:])
    elif "training" in kwargs:
        kwargs = {**kwargs, "training": training}
    return args, kwargs


def _module(module: nn.Module, args: tuple, kwargs: dict) -> Any:
    if len(args) != 1 or kwargs or not isinstance(args[0], _Signal):
        raise ValueError(f"module {module!r} must be called with one signal, and nothing else.")
    return _Signal(*propagate(module, args[0].value, args[0].state))


def _function(method: bool, target: Any, args: tuple, kwargs: dict) -> Any:
    """One function or method: its value, and moments where it has a signal."""

    def plain(value: Any) -> Any:
        if isinstance(value, _Signal):
            return value.value
        if isinstance(value, (tuple, list)):
            return type(value)(plain(item) for item in value)
        return value

    if not args or any(isinstance(item, _Signal) for item in kwargs.values()):
        raise ValueError(f"operation {target} must take its signals by position.")
    run: Callable = _call_method if method else target
    before = plain(args[0])  # the shape, should the function write into it
    shape = before.shape if isinstance(before, torch.Tensor) else None
    value = run(
        *([target] if method else []), *plain(args), **{key: plain(item) for key, item in kwargs.items()}
    )
    listed = args[0] if isinstance(args[0], (tuple, list)) else args
    signals = [item for item in listed if isinstance(item, _Signal)]
    if not signals or not isinstance(value, torch.Tensor):
        return value  # sizes and shapes
    state = _moments(target, listed, args[1:], kwargs, signals, shape, value)
    if state is None:
        raise ValueError(
            f"operation {target} must be one whose moments are known: put it into a module with a rule of "
            "varshift.nn.moment_rule."
        )
    return _Signal(value, state)


def _call_method(name: str, first: Any, *rest: Any, **named: Any) -> Any:
    return getattr(first, name)(*rest, **named)


def _moments(
    target: Any,
    listed: tuple | list,
    rest: tuple,
    kwargs: dict,
    signals: list[_Signal],
    before: torch.Size | None,
    value: torch.Tensor,
) -> KalmanState | None:
    first = signals[0].state
    numbers = [item for item in listed if isinstance(item, (int, float))]
    if target in _SAME:
        return first
    if target in _MODULES and before is not None:
        options = {key: item for key, item in kwargs.items() if key not in ("inplace", "training")}
        module = _MODULES[target](*rest, **options)
        rule = find_rule(module)
        return None if rule is None else rule(module, first, before, value.shape)
    if target in _SUMS and not kwargs and len(listed) == 2:
        if len(signals) == 2 and signals[0] is signals[1]:
            return KalmanState(2 * first.mean, 4 * first.var)
        if len(signals) == 2:
            same = signals[0].value.shape[1:2] == signals[1].value.shape[1:2]
            return add_kalman_states(first, signals[1].state) if same else None
        return KalmanState(first.mean + numbers[0], first.var) if numbers else None
    if target in _PRODUCTS and numbers and len(signals) == 1:
        return KalmanState(first.mean * numbers[0], first.var * numbers[0] ** 2)
    if target in _JOINS and len(signals) == len(listed) and (rest or (kwargs.get("dim", 0),))[0] == 1:
        return KalmanState(*(torch.cat(parts) for parts in zip(*(s.state for s in signals), strict=True)))
    if target in _FLAT and before is not None and value.dim() == 2 and value.shape[0] == before[0]:
        copies = value.shape[1] // before[1]
        return KalmanState(*(part.repeat_interleave(copies) for part in first))
    return None
