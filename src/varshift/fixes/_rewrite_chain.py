"""From a noise site to the calls in the source that may be rewritten for it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
from torch import nn

from varshift.fixes._edited_class import user_class
from varshift.fixes._rewrite_arguments import arguments_of
from varshift.fixes._rewrite_functions import innermost, methods_of
from varshift.fixes._rewrite_names import UNKNOWN, Names, is_super
from varshift.fixes._source_code import (
    CallPlace,
    Expression,
    FunctionSource,
    called_name,
    calls_in,
    source_of,
)
from varshift.fixes._surgery import Refused
from varshift.flow import CallFrame, NoiseSite

_NOISE = ("drop", "noise", "rrelu", "gumbel", "attention", "stochastic_depth")
_WORK = ("linear", "conv", "mm", "matmul", "einsum", "softmax", "norm", "attention", "embedding", "pool")

Chain = tuple[CallPlace, ...]


@dataclass(frozen=True, slots=True)
class _Step:
    """A frame: whose function it runs, and where in its text it is, which a function inside it may tell."""

    function: CallFrame
    position: CallFrame

    def runs(self, function: FunctionType) -> bool:
        code, frame = function.__code__, self.function
        place = (code.co_filename, code.co_firstlineno, code.co_qualname)
        return place == (frame.file, frame.first_line, frame.function)


def call_chain(network: nn.Module, site: NoiseSite) -> list[tuple[str, Chain]]:
    """The calls that can be rewritten to change a noise site, the innermost first.

    A call that joins the signal with a mask made before (``x.mul(mask)``) is none of them: there the call of
    the function that does it is the noise. Nor is a call of something that does more than make noise,
    unless it takes the rate as an argument.

    Args:
        network: The network that the site was captured from.
        site: The site.

    Returns:
        For each candidate the path of the module whose method holds the outermost call, and the calls from
        there inwards: the `path` and `chain` of a `RewriteCall`. Empty where nothing can be rewritten.
    """
    traces = [_steps(trace.call_frames()) for trace in site.traces]
    if not traces or not traces[0]:
        return []
    draws = [_steps(draw.calls) for draw in site.drawn]
    steps, module = traces[0], traces[0][-1].function.module
    here = [draw for draw in draws if draw and draw[-1].function.module == module]
    # A call is the noise if all of it happens inside: each draw, and each place where it acts.
    shared = min(_shared(steps, others) for others in (*traces, *here))
    candidates: list[tuple[str, Chain]] = []
    for last in reversed(range(shared)):
        walked = _walk(network, steps, last)
        if walked is not None and _may_stand_for_noise(network, steps, last, *walked[2:]):
            candidates.append(walked[:2])
        further_in = last and steps[last - 1].function.module == steps[last].function.module
        if _is_large(network, steps[last].function.module) and not further_in:
            break  # further out are calls of whole modules
    for draw in draws:  # elsewhere, such as a mask that a dropout layer makes of ones
        walked = _walk(network, draw, len(draw) - 1) if draw and draw not in here else None
        call = walked[2] if walked is not None else None
        if walked is not None and isinstance(call, ast.Call) and _is_noise(call, walked[3].value(call.func)):
            candidates.append(walked[:2])
    return list(dict.fromkeys(candidates))


def chain_of(network: nn.Module, frames: Sequence[CallFrame]) -> tuple[str, Chain] | None:
    """The call at the innermost of some frames, for an edit next to it.

    Args:
        network: The network that was captured.
        frames: The calls that led to an operation, the outermost first.

    Returns:
        Path and chain as in `call_chain`; None where the operation is no call, or cannot be reached.
    """
    steps = _steps(frames)
    walked = _walk(network, steps, len(steps) - 1) if steps else None
    return walked[:2] if walked is not None and isinstance(walked[2], ast.Call) else None


def operation_chain(network: nn.Module, site: NoiseSite) -> tuple[str, Chain] | None:
    """The operation at which noise meets its signal, ``x * mask``, whether or not it is written as a call.

    Args:
        network: The network that the site was captured from.
        site: The site.

    Returns:
        Path and chain as in `call_chain`; None where it cannot be reached.
    """
    steps = _steps(site.calls)
    walked = _walk(network, steps, len(steps) - 1) if steps else None
    return walked[:2] if walked is not None else None


def _steps(frames: Sequence[CallFrame]) -> list[_Step]:
    """The frames with those of nested functions merged into the function whose text holds them."""
    steps: list[_Step] = []
    for frame in frames:
        outer = [
            index
            for index, step in enumerate(steps)
            if step.function.file == frame.file
            and frame.function.startswith(f"{step.function.function}.<locals>.")
        ]
        if outer:
            steps[outer[-1] :] = [_Step(steps[outer[-1]].function, frame)]
        else:
            steps.append(_Step(frame, frame))
    return steps


def _shared(steps: list[_Step], others: list[_Step]) -> int:
    """The number of steps that two ways have in common."""
    for count, (step, other) in enumerate(zip(steps, others, strict=False)):
        if step != other:
            return count
    return min(len(steps), len(others))


def _walk(network: nn.Module, steps: list[_Step], last: int) -> tuple[str, Chain, Expression, Names] | None:
    """The shortest chain from a method of the module at work to the call or the operation of one frame."""
    path = steps[last].function.module
    module = network.get_submodule(path)
    for first in range(last, -1, -1):
        if steps[first].function.module != path:
            return None
        method = _method(module, steps[first])
        if method is None:
            continue
        try:
            ways = _follow(module, method, steps[first : last + 1])
        except Refused:
            return None
        if ways is not None:
            return path, *ways
    return None


def _follow(
    module: nn.Module, method: FunctionType, steps: list[_Step]
) -> tuple[Chain, Expression, Names] | None:
    cls: type | None = user_class(module)
    source = source_of(method)
    chain: list[CallPlace] = []
    place = 0
    while True:
        position, is_last = steps[place].position, place == len(steps) - 1
        call: Expression | None = source.call_at(position)
        if call is None and is_last:
            call = source.expression_at(position)
        if call is None:
            return None
        chain.append(source.place(call))
        names = Names(source, cls, module if cls is not None else None)
        if is_last or not isinstance(call, ast.Call):
            return tuple(chain), call, names
        following = _next(Names(source, cls), call, steps, place + 1)
        if following is None:
            return None
        place, function = following
        cls = cls if is_super(call.func) else None
        source = source_of(function)


def _next(names: Names, call: ast.Call, steps: list[_Step], start: int) -> tuple[int, FunctionType] | None:
    """The frame of the function that a call runs, past those of its decorators."""
    for place in range(start, len(steps)):
        frame = steps[place].function
        target = names.function(call.func, CallPlace(frame.function, "", 1, _module_of(frame.file)))
        if target is not None and steps[place].runs(target[1]):
            return place, target[1]
    return None


def _method(module: nn.Module, step: _Step) -> FunctionType | None:
    """The method of a module that a frame runs, if the module would find it under its name."""
    for _, held, function in methods_of(user_class(module), step.runs):
        if not isinstance(held, (staticmethod, classmethod)):
            return function
    return None


def _may_stand_for_noise(
    network: nn.Module, steps: list[_Step], last: int, call: Expression, names: Names
) -> bool:
    if not isinstance(call, ast.Call):
        return False
    value = names.value(call.func)
    if last + 1 == len(steps):
        return _is_noise(call, value)
    following = steps[last + 1].function
    if following.module != steps[last].function.module:
        return not _is_large(network, following.module)
    plain = innermost(value) if value is not UNKNOWN else None
    if plain is not None and arguments_of(plain).rate is not None:
        return True
    return plain is not None and _only_noise(source_of(plain), network.get_submodule(following.module))


def _is_noise(call: ast.Call, value: Any) -> bool:
    """Whether the innermost call of the user's code may be the one that makes the noise."""
    if isinstance(value, nn.Module):
        return next(value.parameters(), None) is None
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if value is UNKNOWN:
        arithmetic = isinstance(call.func, ast.Attribute) and hasattr(torch.Tensor, name)
    else:
        name = getattr(value, "__name__", "")
        arithmetic = (getattr(value, "__module__", None) or "torch").partition(".")[0] == "torch"
    return not arithmetic or any(word in name for word in _NOISE)


def _only_noise(source: FunctionSource, module: nn.Module) -> bool:
    """Whether nothing in a function's text weighs, normalises or mixes values."""
    names = Names(source, type(module), module)
    code = source.function.__code__
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    for node in ast.walk(source.node):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            return False
    for call in calls_in(source.node):
        value = names.value(call.func)
        if value is UNKNOWN and isinstance(call.func, ast.Name) and call.func.id in arguments:
            return False  # it runs what it is handed, such as a layer
        if isinstance(value, nn.Module) and next(value.parameters(), None) is not None:
            return False
        name = called_name(call)
        if any(word in name for word in _WORK) and "drop" not in name:
            return False
    return True


def _is_large(network: nn.Module, path: str) -> bool:
    """Whether a module does more than make noise: it has parameters or children."""
    module = network.get_submodule(path)
    return next(module.parameters(), None) is not None or next(module.children(), None) is not None


@lru_cache(maxsize=1024)
def _module_of(file: str) -> str:
    """Name of the imported module of a file."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == file and name != "__main__":
            return name
    return "__main__"
