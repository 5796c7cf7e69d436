"""Finding an object by ``package.module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from varshift._errors import VarshiftError
from varshift.cli._errors import print_note, user_code_error


def resolve_object(text: str, option: str) -> Any:
    """The object that `text` names.

    The working directory comes first on the module path, and for a file its own folder, as when Python runs
    it; a file inside a package is imported as a part of that package, so that its relative imports work.

    Args:
        text: ``package.module:name`` or ``path/to/file.py:name``; the name may have dots.
        option: What to call it in errors, ``"--data"``.

    Raises:
        VarshiftError: If there is no such module, file or name; near misses are suggested.
        UserCodeError: If the module fails while it is imported.
    """
    module, place, name = resolve_module(text, option)
    return _attribute(module, name, place, option)


def resolve_module(text: str, option: str) -> tuple[ModuleType, str, str]:
    """The module that `text` names, imported, the text before its last colon, and the name after it.

    Raises:
        VarshiftError: As `resolve_object`.
        UserCodeError: As `resolve_object`.
    """
    place, name = _split(text, option)
    _put_first(os.getcwd())
    module = _import_file(place, option) if _is_file(place) else _import_module(place, option)
    return module, place, name


def check_place(text: str, option: str, *, modules: bool = True) -> None:
    """Makes sure, without importing anything, that `text` names an object in a file or module that is there.

    Args:
        text: ``package.module:name`` or ``path/to/file.py:name``.
        option: What to call it in errors.
        modules: Whether modules have to be there already.

    Raises:
        VarshiftError: As `resolve_object`; whether a file or package has what is named shows only later.
    """
    place, _ = _split(text, option)
    _put_first(os.getcwd())
    if _is_file(place):
        _existing_file(place, option)
        return
    _check_identifiers(place, option)
    first = place.partition(".")[0]
    if modules and first not in sys.modules and importlib.util.find_spec(first) is None:
        raise VarshiftError(f"{option}: {_no_module(first)}")


def _split(text: str, option: str) -> tuple[str, str]:
    """The text before the last colon and the name after it."""
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        example = f"{text or 'path/to/file.py'}:NAME" if _is_file(text) or not text else "package.module:NAME"
        raise VarshiftError(
            f"{option}: {text!r} does not say which object is meant: write {example!r} "
            "(a module or a file, a colon, and a name in it)."
        )
    return place, name


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


def _put_first(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def suggestion(wanted: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` for near misses, a full stop for none."""
    near = difflib.get_close_matches(wanted, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(item) for item in near)}?" if near else "."


def _import_module(name: str, option: str) -> ModuleType:
    _check_identifiers(name, option)
    try:
        return _guarded(lambda: importlib.import_module(name), f"{option}: importing {name}")
    except ModuleNotFoundError as error:
        raise VarshiftError(f"{option}: {_no_module(error.name or name)}") from None


def _check_identifiers(name: str, option: str) -> None:
    if not all(part.isidentifier() for part in name.split(".")):
        raise VarshiftError(f"{option}: {name!r} is neither a module's name nor a file that ends in .py.")


def _no_module(name: str) -> str:
    parent, _, last = name.rpartition(".")
    known = [module.name for module in pkgutil.iter_modules(_search_path(parent))]
    where = f"{parent!r} has no module {last!r}" if parent else f"there is no module {last!r}"
    return f"{where}{suggestion(last, known)}"


def _search_path(parent: str) -> list[str] | None:
    """Where the modules of a package lie; None is the module path itself."""
    if not parent:
        return None
    return list(getattr(sys.modules.get(parent), "__path__", ()))


def _existing_file(place: str, option: str) -> Path:
    path = Path(place).expanduser()
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        known = [str(folder / item.name) for item in folder.glob("*.py")]
        raise VarshiftError(f"{option}: there is no file {place!r}{suggestion(place, known)}")
    path = path.resolve()
    if path.suffix != ".py":
        raise VarshiftError(f"{option}: {place!r} is not a Python file: its name must end in .py.")
    return path


def _import_file(place: str, option: str) -> ModuleType:
    path = _existing_file(place, option)
    root, name = _package_of(path)
    doing = f"{option}: importing {place}"
    if "." in name:
        _put_first(str(root))
        try:
            return _guarded(lambda: importlib.import_module(name), doing)
        except ModuleNotFoundError as error:
            raise VarshiftError(f"{option}: {place!r} cannot be imported as {name}: {error}.") from error
    _put_first(str(root))
    loaded = [module for module in sys.modules.values() if _file_of(module) == path]
    return loaded[0] if loaded else _guarded(lambda: _load(path, name), doing)


def _package_of(path: Path) -> tuple[Path, str]:
    """The folder that a file is imported from, and the dotted name it then has."""
    parts = [] if path.stem == "__init__" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts) if all(part.isidentifier() for part in parts) else path.stem


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _load(path: Path, stem: str) -> ModuleType:
    """Executes a lone file under its own name, or under another where that name means something else."""
    name = stem
    if not name.isidentifier() or name in sys.modules or _means_something_else(name, path):
        name = f"_varshift_{''.join(c if c.isalnum() else '_' for c in stem)}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _means_something_else(name: str, path: Path) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and (spec.origin is None or Path(spec.origin).resolve() != path)


def _guarded(load: Callable[[], ModuleType], doing: str) -> ModuleType:
    """Imports something of the user's and says clearly how it failed.

    A module that is missing because the *target* names it is left to the caller as ModuleNotFoundError.
    """
    try:
        try:
            return load()
        except RuntimeError as error:
            if "torchvision::" not in str(error) or not _declare_torchvision_operators():
                raise
            print_note(
                "torchvision's compiled operators do not fit this torch; its models work without them."
            )
            return load()
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and not _raised_by_user_code(error):
            raise
        raise user_code_error(doing, error) from error


def _declare_torchvision_operators() -> bool:
    from varshift.integrations import declare_torchvision_operators

    return declare_torchvision_operators()


def _raised_by_user_code(error: BaseException) -> bool:
    """Whether any frame besides ours and the import machinery's took part."""
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != __file__ and not name.startswith("<frozen") and "importlib" not in name:
            return True
        trace = trace.tb_next
    return False


def _attribute(module: ModuleType, name: str, place: str, option: str) -> Any:
    value: Any = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            known = [item for item in dir(value) if not item.startswith("_")]
            owner = repr(place) if value is module else repr(name.rpartition(f".{part}")[0])
            raise VarshiftError(f"{option}: {owner} has no {part!r}{suggestion(part, known)}") from None
    return value
