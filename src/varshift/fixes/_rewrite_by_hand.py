"""The edit of a noise site that its user makes by hand."""

from __future__ import annotations

import ast
import linecache

from varshift._sites import Source
from varshift.fixes._noise_action import NEW_NOISE, NoiseAction
from varshift.fixes._rewrite_join import Join
from varshift.fixes._source_code import called_name
from varshift.flow import CallFrame, NoiseSite

_LAYERS = {
    "dropout": "nn.Dropout",
    "alpha_dropout": "nn.AlphaDropout",
    "uniform": "varshift.nn.UniformDropout",
    "gaussian": "varshift.nn.GaussianDropout",
}
_Written = ast.expr | ast.AugAssign
_INSIDE = ("attention_dropout", "recurrent_dropout", "weight_dropout")  # calls that do more than make noise


def edit_by_hand(site: NoiseSite, action: NoiseAction | None = None, join: Join | None = None) -> str:
    """What to change in the source where no edit can be made: file, line, before and after.

    Args:
        site: The noise site.
        action: What is to become of it; by default a module of its own, which can be changed afterwards.
        join: How it is joined with its signal, where that is known.

    Returns:
        Text for the end of a refusal, ``"net.py:12: replace `F.dropout(x, 0.5)` by `self.noise(x)` ..."``.
    """
    frame = site.calls[-1] if site.calls else None
    source = frame.source if frame is not None else site.source
    if source is None:
        return f"Its place in the source is not known; it is in module '{site.name}'."
    expression = _expression(frame) if frame is not None else None
    layer = _layer(site, action)
    own = "give it a module of its own" + (f", `{layer}`" if layer else "")
    if expression is None:
        return f"{source}: `{_line(source)}` makes the noise; {own}."
    signal = _signal(expression, join)
    before = ast.unparse(expression)
    if signal is None:
        return f"{source}: `{before}` joins the noise with the signal; {own}."
    if site.kind in _INSIDE and join is None:
        return f"{source}: `{before}` makes the noise inside; pass another rate to it."
    if action is not None and action.kind == "remove":
        return f"{source}: replace `{before}` by `{_after(expression, signal, join)}`."
    if not layer:
        return f"{source}: `{before}` makes the noise; {own}."
    noise = ast.Call(ast.Attribute(ast.Name("self"), "noise"), [signal], [])
    after = _after(expression, noise, join)
    return f"{source}: replace `{before}` by `{after}`, with `self.noise = {layer}` in `__init__`."


def _after(expression: _Written, value: ast.expr, join: Join | None) -> str:
    """What is written in the place of an expression, as far as the code around it asks for."""
    if join is not None and join.scale != 1:
        value = ast.BinOp(value, ast.Mult(), ast.Constant(join.scale))
    target = f"{ast.unparse(expression.target)} = " if isinstance(expression, ast.AugAssign) else ""
    return target + ast.unparse(value)


def _layer(site: NoiseSite, action: NoiseAction | None) -> str:
    """The module that makes the noise from then on, as its user would write it; empty where none is known."""
    kind, rate, factor = site.kind, site.rate, not site.additive
    if action is not None and action.kind in NEW_NOISE:
        kind, rate, factor = action.kind, action.value, True
    elif action is not None and action.kind == "rate":
        rate = action.value
    if kind not in _LAYERS or rate is None or not factor:
        return ""
    return f"{_LAYERS[kind]}({float(f'{rate:.6g}')})"


def _expression(frame: CallFrame) -> _Written | None:
    """The expression of a frame, from the text of its file."""
    lines = linecache.getlines(frame.file)[frame.line - 1 : frame.end_line]
    if not lines or frame.column is None or frame.end_column is None:
        return None
    parts = [line.encode() for line in lines]
    parts[-1] = parts[-1][: frame.end_column]
    parts[0] = parts[0][frame.column :]
    try:
        text = b"".join(parts).decode()
        statement = ast.parse(text).body[0] if len(parts) == 1 else None
        if isinstance(statement, ast.AugAssign):
            return statement
        return ast.parse(f"({text})", mode="eval").body
    except (SyntaxError, UnicodeDecodeError):
        return None


def _signal(expression: _Written, join: Join | None) -> ast.expr | None:
    """What the noise acts on, if the expression is a call, or joins noise with it."""
    if join is not None:
        values = _operands(expression)
        return values[join.operand] if join.operand < len(values) else None
    if not isinstance(expression, ast.Call):
        return None
    named = [word.value for word in expression.keywords if word.arg in ("input", "x")]
    first = next(iter((*expression.args, *named)), None)
    return None if isinstance(first, ast.Starred) else first


def _operands(expression: _Written) -> list[ast.expr]:
    """What an operation takes; the tensor whose method it is comes first."""
    if isinstance(expression, ast.BinOp):
        return [expression.left, expression.right]
    if isinstance(expression, ast.AugAssign):
        return [expression.target, expression.value]
    if not isinstance(expression, ast.Call) or any(isinstance(a, ast.Starred) for a in expression.args):
        return []
    values = [*expression.args, *(word.value for word in expression.keywords if word.arg)]
    takes = 3 if called_name(expression).removesuffix("_") in ("masked_fill", "where") else 2
    if isinstance(expression.func, ast.Attribute) and len(values) < takes:
        return [expression.func.value, *values]
    return values


def _line(source: Source) -> str:
    return linecache.getline(source.file, source.line).strip()
