"""The edit of a noise site that its user makes by hand."""

from __future__ import annotations

import ast
import linecache

from varshift._sites import Source
from varshift.fixes._noise_action import NEW_NOISE, NoiseAction
from varshift.flow import CallFrame, NoiseSite

_LAYERS = {
    "dropout": "nn.Dropout",
    "alpha_dropout": "nn.AlphaDropout",
    "uniform": "varshift.nn.UniformDropout",
    "gaussian": "varshift.nn.GaussianDropout",
}
_INSIDE = ("attention_dropout", "recurrent_dropout", "weight_dropout")  # calls that do more than make noise


def edit_by_hand(site: NoiseSite, action: NoiseAction | None = None) -> str:
    """What to change in the source where no edit can be made: file, line, before and after.

    Args:
        site: The noise site.
        action: What is to become of it; by default a module of its own, which can be changed afterwards.

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
    signal = _signal(expression)
    before = ast.unparse(expression)
    if signal is None:
        return f"{source}: `{before}` joins the noise with the signal; {own}."
    if site.kind in _INSIDE:
        return f"{source}: `{before}` makes the noise inside; pass another rate to it."
    if action is not None and action.kind == "remove":
        return f"{source}: replace `{before}` by `{signal}`."
    if not layer:
        return f"{source}: `{before}` makes the noise; {own}."
    return (
        f"{source}: replace `{before}` by `self.noise({signal})`, with `self.noise = {layer}` in `__init__`."
    )


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


def _expression(frame: CallFrame) -> ast.expr | None:
    """The expression of a frame, from the text of its file."""
    lines = linecache.getlines(frame.file)[frame.line - 1 : frame.end_line]
    if not lines or frame.column is None or frame.end_column is None:
        return None
    parts = [line.encode() for line in lines]
    parts[-1] = parts[-1][: frame.end_column]
    parts[0] = parts[0][frame.column :]
    try:
        return ast.parse(f"({b''.join(parts).decode()})", mode="eval").body
    except (SyntaxError, UnicodeDecodeError):
        return None


def _signal(expression: ast.expr) -> str | None:
    """What the noise acts on, if the expression is a call."""
    if not isinstance(expression, ast.Call):
        return None
    named = [word.value for word in expression.keywords if word.arg in ("input", "x")]
    first = next(iter((*expression.args, *named)), None)
    return ast.unparse(first) if first is not None and not isinstance(first, ast.Starred) else None


def _line(source: Source) -> str:
    return linecache.getline(source.file, source.line).strip()
