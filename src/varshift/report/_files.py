"""Writing a file so that it is either all there or as it was before."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from varshift._errors import VarshiftError


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes text in UTF-8 through a temporary file that replaces `path` when it is complete.

    Raises:
        VarshiftError: If the file cannot be written.
    """
    return write_atomically(path, lambda file: file.write_bytes(text.encode("utf-8")))


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Calls `write` with the path of a temporary file next to `path` and then puts it in the place of `path`.

    A link is followed, so that its target is replaced and not the link; a device or a pipe
    (``/dev/stdout``) is written to directly, for nothing can be put in its place.

    Raises:
        VarshiftError: If the file cannot be written; what was there before is then unharmed.
    """
    path = Path(path)
    check_writable(path)
    final = Path(os.path.realpath(path))
    try:
        if final.exists() and not final.is_file():
            write(final)
            return path
        handle, name = tempfile.mkstemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part")
        os.close(handle)
        try:
            write(Path(name))
            os.chmod(name, _mode(final))
            os.replace(name, final)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise VarshiftError(f"cannot write {str(path)!r}: {_reason(error)}.") from error
    return path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Makes sure, before long work, that a file can be written, and leaves no trace.

    Raises:
        VarshiftError: If it cannot, with the reason.
    """
    path = Path(path)
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise VarshiftError(f"cannot write {str(path)!r}: it is a folder; name a file in it.")
    if final.exists() and not os.access(final, os.W_OK):
        raise VarshiftError(f"cannot write {str(path)!r}: permission denied.")
    if final.exists() and not final.is_file():
        return
    if not final.parent.is_dir():
        raise VarshiftError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}.")
    try:
        with tempfile.TemporaryFile(dir=final.parent):
            pass
    except OSError as error:
        raise VarshiftError(f"cannot write {str(path)!r}: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _mode(path: Path) -> int:
    """Permissions of the file being replaced, or those a new file would get."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
