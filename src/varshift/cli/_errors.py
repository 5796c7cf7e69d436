"""Errors on the command line: one clear line on standard error, the traceback on request."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from types import TracebackType
from typing import Any

from varshift._errors import VarshiftError
from varshift._printable import printable

_OWN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
_LIBRARIES = tuple(
    os.path.join(sysconfig.get_paths()[key], "") for key in ("stdlib", "platstdlib", "purelib", "platlib")
)


class UserCodeError(VarshiftError):
    """Code of the user failed; the cause carries its traceback."""


def user_code_error(doing: str, cause: BaseException) -> UserCodeError:
    """An error that says what was being done and how the user's code failed, with file and line."""
    return UserCodeError(f"{doing} failed: {described(cause)}")


def print_error(error: BaseException, *, verbose: bool) -> None:
    """Prints an error as one line on standard error, below its traceback if `verbose`."""
    if verbose:
        sys.stderr.write(traceback_of(error))
    prefix, message = "varshift", ""
    if isinstance(error, VarshiftError):
        message = one_line(str(error)) + _cause(error)
    elif is_usage_error(error):
        prefix, message = _usage(error)
    else:
        message = described(error)
    hint = "" if verbose or not _has_more(error) else " (--verbose shows the traceback)"
    _write(prefix, f"{message}{hint}")


def _cause(error: VarshiftError) -> str:
    """Where in the user's code an error arose of which another one tells; empty where its message says so."""
    where = location(error.__cause__) if error.__cause__ is not None else ""
    return f" ({where})" if where and where not in str(error) else ""


def print_warning(message: str) -> None:
    """Prints one line on standard error."""
    _write("varshift", one_line(message), label="warning")


def print_note(message: str) -> None:
    """Prints one line on standard error."""
    _write("varshift", one_line(message), label="note")


def _write(prefix: str, message: str, label: str = "error") -> None:
    from rich.console import Console
    from rich.text import Text

    colour = {"error": "bold red", "warning": "yellow", "note": "cyan"}[label]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(f"{prefix}: ", (f"{label}:", colour), f" {printable(message)}"))


def one_line(text: str) -> str:
    """Text without its line breaks."""
    return " ".join(text.split())


def described(error: BaseException) -> str:
    """The kind of an error, the first line of its message, and where in the user's code it arose."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    if isinstance(error, SyntaxError):
        lines = [error.msg or ""]
    text = f"{type(error).__name__}: {lines[0]}" if lines and lines[0] else type(error).__name__
    where = location(error)
    return f"{text} ({where})" if where else text


def location(error: BaseException) -> str:
    """``file:line`` of the innermost frame in code that is neither varshift's nor a library's, if any."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_user_code(frame.filename)]
    return f"{_short(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def traceback_of(error: BaseException) -> str:
    """The traceback of an error; of a user's code, only from where that code begins."""
    cause = error.__cause__ if isinstance(error, UserCodeError) else None
    if cause is None:
        return "".join(traceback.format_exception(error))
    start: TracebackType | None = cause.__traceback__
    while start is not None and not _is_user_code(start.tb_frame.f_code.co_filename):
        start = start.tb_next
    # An error raised by the import itself, a missing file or a syntax error, has no frame of the user's.
    shown = cause.with_traceback(start)
    return "".join(traceback.format_exception(shown))


def _is_user_code(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = os.path.abspath(filename)
    return not path.startswith(_OWN) and not path.startswith(_LIBRARIES)


def _short(filename: str) -> str:
    here = os.path.join(os.getcwd(), "")
    return filename[len(here) :] if filename.startswith(here) else filename


def _has_more(error: BaseException) -> bool:
    return isinstance(error, UserCodeError) or not (isinstance(error, VarshiftError) or is_usage_error(error))


def is_usage_error(error: BaseException) -> bool:
    """Whether the command line itself was wrong, as the parser sees it."""
    return callable(getattr(error, "format_message", None))


def is_abort(error: BaseException) -> bool:
    """Whether the parser was interrupted."""
    return type(error).__name__ == "Abort"


def _usage(error: Any) -> tuple[str, str]:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "varshift"
    message = one_line(error.format_message()).rstrip(".?")
    end = "?" if error.format_message().rstrip().endswith("?") else "."
    return path, f"{message}{end} See `{path} --help`."
