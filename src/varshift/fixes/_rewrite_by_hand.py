"""The edit of a noise site that its user makes by hand."""

from __future__ import annotations

import ast
import linecache

from varshift._sites import Source
from varshift.fixes._noise_action import NoiseAction
from varshift.flow import CallFrame, NoiseSite


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
    module = action.text if action is not None and action.text.endswith(")") else f"nn.Dropout({site.rate})"
    if expression is None:
        return f"{source}: `{_line(source)}` makes the noise; give it a module of its own, `{module}`."
    signal = _signal(expression)
    before = ast.unparse(expression)
    if signal is None:
        return (
            f"{source}: `{before}` joins the noise with the signal; give it a module of its own, `{module}`."
        )
    if action is not None and action.kind == "remove":
        return f"{source}: replace `{before}` by `{signal}`."
    return (
        f"{source}: replace `{before}` by `self.noise({signal})`, with `self.noise = {module}` in `__init__`."
    )


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
