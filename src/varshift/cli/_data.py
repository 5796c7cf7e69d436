"""From ``--data`` and ``--deploy`` to batches, from ``--forward`` and ``--loss`` to functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from varshift._errors import DataError, VarshiftError
from varshift.cli._errors import user_code_error
from varshift.cli._models import check_signature
from varshift.cli._objects import resolve_object


def resolve_loader(
    text: str, batches: int | None, option: str = "--data", arguments: Mapping[str, Any] | None = None
) -> Iterable[Any]:
    """The batches that an option names: a loader, a list of batches, or a callable that returns one.

    ``pkg.data:get_loaders[0]`` names an item of what is there or is returned.

    A callable that returns an iterator (a generator function) is called again for every pass. An iterator
    that can be gone through only once is read as far as it is needed.

    Args:
        text: What the option names.
        batches: How many batches of an iterator are read.
        option: What to call it in errors.
        arguments: Keyword arguments for the callable.

    Raises:
        DataError: If what it names is not an iterable of batches.
        UserCodeError: If the user's code fails.
    """
    name, key = _item(text)
    found, arguments = resolve_object(name, option), arguments or {}
    if not callable(found) or _is_loader(found):
        if arguments:
            raise VarshiftError(f"--data-arg: {name!r} is no function and takes no arguments.")
        return _checked(_pick(found, key, text, option), text, batches, option)
    check_signature(found, arguments, name, option)

    def make() -> Any:
        try:
            return _pick(found(**arguments), key, text, option)
        except VarshiftError:
            raise
        except (Exception, SystemExit) as error:
            raise user_code_error(f"{option}: calling {text}", error) from error

    made = make()
    if isinstance(made, Iterator):
        return _Again(made, make)
    return _checked(made, text, batches, option)


def arguments_for(text: str, data: str | None, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of ``--data-arg``, for an option that names the same callable as ``--data``."""
    return arguments if data is not None and _item(text)[0] == _item(data)[0] else {}


def resolve_function(text: str | None, option: str) -> Callable[..., Any] | None:
    """The function that ``--forward`` or ``--loss`` names, None without one.

    Raises:
        VarshiftError: If it is not callable.
    """
    if text is None:
        return None
    found = resolve_object(text, option)
    if not callable(found):
        raise VarshiftError(f"{option}: {text!r} is a {type(found).__name__}, not a function.")
    return found


def _item(text: str) -> tuple[str, int | str | None]:
    """Splits ``pkg.data:loaders[0]``, or with the name of an item, into the name and the item."""
    match = re.fullmatch(r"(.+:[\w.]+)(?:\(\))?\[([^\[\]]+)\]", text)
    if match is None:
        return text, None
    key = match[2].strip("'\"")
    return match[1], int(key) if key.lstrip("-").isdecimal() else key


def _pick(found: Any, key: int | str | None, text: str, option: str) -> Any:
    if key is None:
        return found
    try:
        return found[key]
    except (LookupError, TypeError) as error:
        raise DataError(
            f"{option}: {text!r} names an item of a {type(found).__name__} that it does not have: {error}."
        ) from None


class _Again:
    """An iterable that asks for a new iterator on every pass; the first one is at hand already."""

    def __init__(self, first: Iterator[Any], make: Callable[[], Any]) -> None:
        self._first: Iterator[Any] | None = first
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        first, self._first = self._first, None
        return self._make() if first is None else first


def _is_loader(found: Any) -> bool:
    """Whether something that can be called is meant as batches all the same: it iterates, and is no class."""
    return hasattr(found, "__iter__") and not isinstance(found, type)


def _checked(found: Any, text: str, batches: int | None, option: str) -> Iterable[Any]:
    import torch
    from torch.utils.data import Dataset, IterableDataset

    from varshift.model import loader_of

    found = loader_of(found, argument=f"{option}: {text}", trains=option == "--data")
    remedy = "Expected a DataLoader, a list of batches, or a function that returns one of these."
    if isinstance(found, torch.Tensor):
        raise DataError(f"{option}: {text!r} is a tensor. {remedy} For one batch, put it into a list.")
    if isinstance(found, (Mapping, str, bytes)) or found is None:
        raise DataError(
            f"{option}: {text!r} is {'None' if found is None else f'a {type(found).__name__}'}. {remedy}"
        )
    if isinstance(found, Dataset) and not isinstance(found, IterableDataset):
        raise DataError(
            f"{option}: {text!r} is a data set ({type(found).__name__}), which has samples and not batches: "
            "wrap it, as in DataLoader(data, batch_size=64)."
        )
    if isinstance(found, tuple) and found and all(isinstance(item, torch.Tensor) for item in found):
        raise DataError(f"{option}: {text!r} is a tuple of tensors, which looks like one batch. {remedy}")
    if isinstance(found, Iterator):
        return list(itertools.islice(found, batches))
    if not isinstance(found, Iterable) and not hasattr(found, "__getitem__"):
        raise DataError(
            f"{option}: {text!r} is a {type(found).__name__} and cannot be iterated over. {remedy}"
        )
    return found
