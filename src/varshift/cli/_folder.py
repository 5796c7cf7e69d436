"""A folder of files that is written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from varshift._errors import VarshiftError


def check_folder(folder: Path, option: str, *, force: bool) -> None:
    """Makes sure, before long work, that files can be written into a folder, and leaves no trace.

    Raises:
        VarshiftError: If the folder has files and `force` is false, or it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise VarshiftError(f"{option}: {str(folder)!r} is a file: name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise VarshiftError(
            f"{option}: {str(folder)!r} has files already: --force writes over those of an earlier fix."
        )
    final = folder.resolve()
    if not final.parent.is_dir():
        raise VarshiftError(f"{option}: there is no folder {str(folder.parent)!r}.")
    with _readable(folder, option):
        for place in (final.parent, final):
            if place.is_dir():
                with tempfile.TemporaryDirectory(dir=place):
                    pass


@contextlib.contextmanager
def whole_folder(folder: Path, option: str, names: Sequence[str]) -> Iterator[Path]:
    """A new folder next to `folder` whose files take their places there once the block has ended.

    An error inside the block, or Ctrl-C, leaves `folder` as it was. Of a folder that has files, those of
    `names` are replaced, or taken away where there is no new one; others stay.

    Raises:
        VarshiftError: If it cannot be written.
    """
    final = folder.resolve()
    with _readable(folder, option):
        draft = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        yield draft
        with _readable(folder, option):
            _take_place(draft, final, names)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _take_place(draft: Path, final: Path, names: Sequence[str]) -> None:
    if not final.exists():
        mask = os.umask(0)
        os.umask(mask)
        draft.chmod(0o777 & ~mask)
        draft.rename(final)
        return
    old = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.old."))
    moved: list[tuple[Path, Path]] = []
    try:
        for source, target in (
            *((final / name, old / name) for name in names if (final / name).exists()),
            *((draft / name, final / name) for name in names if (draft / name).exists()),
        ):
            moved.append((source, target))
            os.replace(source, target)
    except BaseException:
        for source, target in reversed(moved):
            with contextlib.suppress(OSError):
                os.replace(target, source)
        with contextlib.suppress(OSError):  # what could not be put back stays there
            old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _readable(folder: Path, option: str) -> Iterator[None]:
    """Turns an error of the file system into one of ours."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise VarshiftError(f"{option}: {str(folder)!r} cannot be written: {reason}.") from error
