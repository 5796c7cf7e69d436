"""The console script: runs a verb and turns whatever goes wrong into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

CLEAN, FINDINGS, BROKEN, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after ``varshift``; those of this process by default.

    Returns:
        0 when all is well, 1 when a check found something, 2 when it could not be done, 130 when interrupted.
    """
    try:
        from varshift.cli._app import run
        from varshift.cli._errors import is_abort, print_error
        from varshift.cli._state import State
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "click"):
            raise
        sys.stderr.write(
            f'varshift: error: the command line needs {error.name}: pip install "varshift[cli]".\n'
        )
        return BROKEN
    words = tuple(sys.argv[1:] if arguments is None else arguments)
    state = State(words=words)
    path = list(sys.path)
    try:
        code = run(list(words), state)
        if code == INTERRUPTED:  # some versions of the parser catch it themselves
            raise KeyboardInterrupt
        return code
    except KeyboardInterrupt:
        sys.stderr.write("varshift: interrupted.\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN
    except Exception as error:  # the one place where every error of a verb ends
        if is_abort(error):
            sys.stderr.write("varshift: interrupted.\n")
            return INTERRUPTED
        print_error(error, verbose=state.verbose)
        return BROKEN
    finally:
        sys.path[:] = path
