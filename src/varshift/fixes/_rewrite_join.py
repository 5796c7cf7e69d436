"""Noise that an operation such as ``x * mask`` joins with a signal: other noise in its place."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from varshift.fixes._class_draft import ClassDraft, EditedText
from varshift.fixes._noise_action import NoiseAction
from varshift.fixes._rewrite_functions import unscripted
from varshift.fixes._rewrite_names import UNKNOWN
from varshift.fixes._source_code import Expression, called_name
from varshift.fixes._surgery import Refused
from varshift.flow import Flow, NoiseSite, Ref

_CLOSE = 1e-4  # of factors that are read from a mask's arithmetic
_OPERATORS: dict[type[ast.operator], tuple[Callable[..., Any], Callable[..., Any]]] = {
    ast.Mult: (operator.mul, operator.imul),
    ast.Div: (operator.truediv, operator.itruediv),
    ast.Add: (operator.add, operator.iadd),
    ast.Sub: (operator.sub, operator.isub),
}
_METHODS = ("mul", "multiply", "div", "divide", "true_divide", "add", "sub", "subtract", "masked_fill")
_FUNCTIONS = (*_METHODS, "where")  # whose arguments come in the order of those of the operation


@dataclass(frozen=True, slots=True)
class Join:
    """How an operation joins noise with a signal.

    Attributes:
        operand: Place of the signal among what the operation takes: 0 for ``x`` in ``x * mask``, in
            ``x.mul(mask)`` and in ``torch.mul(x, mask)``.
        scale: What the new noise is multiplied with, because the code before or after the operation takes
            it away again: 0.9 for the product in ``x * mask / 0.9``.
    """

    operand: int
    scale: float = 1.0


def join_of(flow: Flow, site: NoiseSite) -> Join | None:
    """How the noise of a site is joined with its signal, where they meet in one operation.

    Args:
        flow: The flow that the site is in.
        site: The noise site.

    Returns:
        None where they meet several times, or the mean of the factor is not known.
    """
    if site.signal is None or len(site.traces) != 1:
        return None
    node = flow.nodes[site.node]
    operands = [place for place, value in enumerate(node.args) if value == Ref(site.signal)]
    whole = node.shape == flow.nodes[site.signal].shape  # else the mask makes the signal larger
    if len(operands) != 1 or not whole:
        return None
    if site.additive:
        return Join(operands[0])
    if not (site.own_factor and site.mean_factor):
        return None
    scale = site.own_factor / site.mean_factor
    return Join(operands[0], 1.0 if abs(scale - 1) <= _CLOSE else float(f"{scale:.6g}"))


def joined_alike(join: Join, other: Join | None) -> bool:
    """Whether one edit does for two places."""
    close = other is not None and abs(join.scale - other.scale) <= _CLOSE
    return other is not None and close and join.operand == other.operand


def rewrite_join(
    draft: ClassDraft,
    text: EditedText,
    expression: Expression,
    join: Join,
    action: NoiseAction,
    always: bool,
) -> None:
    """Has other noise made where an operation joins noise with a signal.

    Args:
        draft: The class in the making.
        text: The text that the operation is in.
        expression: The operation.
        join: How it joins them.
        action: What becomes of the noise.
        always: Whether the operation joins noise in evaluation, too.

    Raises:
        Refused: If it cannot be told what the expression computes, or the action keeps a call.
    """
    written = f"`{ast.unparse(expression)}`"
    if action.kind == "rate":
        raise Refused(f"{written} has no argument for a rate: put other noise in its place.")
    if isinstance(expression, ast.Call):
        _require_operation(text, expression, join, written)
        name = called_name(expression)
        inplace = name.endswith("_")
        if text.value_of(expression) is not UNKNOWN:
            draft.replace(text, expression, _joined(None, join, action, always, inplace=inplace))
            return
        function = _method(name)
    elif type(expression.op) not in _OPERATORS:
        raise Refused(f"{written} is no product and no sum: give the noise a module of its own.")
    else:
        inplace = isinstance(expression, ast.AugAssign)
        if isinstance(expression, ast.AugAssign) and not _can_be_read_twice(expression.target):
            raise Refused(f"{written} calls something on its left: give that a name of its own.")
        function = _OPERATORS[type(expression.op)][inplace]
    method = _joined(function, join, action, always, inplace=inplace)
    draft.replace_operation(text, expression, method)


def _require_operation(text: EditedText, call: ast.Call, join: Join, written: str) -> None:
    """Refuses a call whose arguments are not known to be those of one operation."""
    value = text.value_of(call)
    name = called_name(call).removesuffix("_")
    receiver = value is UNKNOWN and isinstance(call.func, ast.Attribute) and not text.is_member(call)
    library = (getattr(value, "__module__", None) or "torch").partition(".")[0]
    function = name in _FUNCTIONS and value is not UNKNOWN and library == "torch"
    known = name in _METHODS if receiver else function
    positional = [*([call.func] if receiver else []), *call.args]
    starred = any(isinstance(argument, ast.Starred) for argument in positional)
    out = any(keyword.arg in ("out", None) for keyword in call.keywords)
    if not known or starred or out or join.operand >= len(positional):
        raise Refused(f"{written} is no product or sum whose signal can be told from its text.")


def _can_be_read_twice(target: ast.expr) -> bool:
    return not any(isinstance(node, (ast.Call, ast.NamedExpr, ast.Await)) for node in ast.walk(target))


def _method(name: str) -> Callable[..., Any]:
    def method(value: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(value, name)(*args, **kwargs)

    return method


def _joined(
    operation: Callable[..., Any] | None, join: Join, action: NoiseAction, always: bool, *, inplace: bool
) -> Any:
    """The method that runs in the place of an operation; without one it takes the function first."""

    def call(self: nn.Module, /, *values: Any, **kwargs: Any) -> Any:
        function, values = (operation, values) if operation is not None else (values[0], values[1:])
        if action.kind == "follow-mode":
            if self.training:
                return function(*values, **kwargs)
            new = values[join.operand]
        elif not (self.training or always):
            return function(*values, **kwargs)
        elif action.kind == "rescale":
            return function(*values, **kwargs) / action.value
        else:
            new = action.act(values[join.operand], True)
        if join.scale != 1.0:
            new = new * join.scale
        return values[0].copy_(new) if inplace and new is not values[0] else new

    return unscripted(call)
