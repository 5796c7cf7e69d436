"""Plain dataclasses as strict JSON and back. Their fields and annotations are the only definition.

Two entries of a field's metadata matter: ``"json"`` is its key where that is not its name, and a field that
is ``"sparse"`` is left out of the JSON where it has its default.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from varshift._errors import VarshiftError
from varshift._sites import SiteId

Decoder = Callable[[Any, str], Any]


def key_of(item: Field[Any]) -> str:
    """The key of a field in JSON: its name, unless its metadata say otherwise."""
    return item.metadata.get("json", item.name)


def default_of(item: Field[Any]) -> Any:
    """The default of a field, `MISSING` where it has none."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def is_sparse(item: Field[Any]) -> bool:
    """Whether a field is left out of the JSON where it has its default."""
    return bool(item.metadata.get("sparse"))


@cache
def hints(cls: type) -> dict[str, Any]:
    """The resolved annotations of a dataclass."""
    from varshift.probe import Gap  # a room that imports torch

    return get_type_hints(cls, localns={"Gap": Gap})


def encode(value: Any) -> Any:
    """A value made of strict-JSON values only.

    Dataclasses become objects, names of sites their text. Numbers of other libraries (anything with
    ``tolist``) become Python's, NaN and infinity become None, mappings get string keys, other collections
    become lists, and whatever else there is, its text.
    """
    if value is None or isinstance(value, (bool, str)):
        return str(value) if type(value) not in (bool, str, type(None)) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, SiteId):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _object(value)
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((encode(item) for item in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [encode(item) for item in value]
    convert = getattr(value, "tolist", None)  # numpy arrays and scalars, tensors
    return encode(convert()) if callable(convert) else str(value)


def settled(value: Any) -> Any:
    """A value as it is when it has been written and read back, with dataclasses as they are.

    Numbers of other libraries, NaN and infinity, and collections of other kinds end here. Nothing is refused:
    a figure of an odd type must not cost the report.
    """
    if isinstance(value, SiteId):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{item.name: _settled_field(value, item.name) for item in fields(value)})
    if isinstance(value, (tuple, list)):
        return tuple(settled(item) for item in value)
    return encode(value)


def _settled_field(holder: Any, name: str) -> Any:
    value, hint = getattr(holder, name), hints(type(holder))[name]
    item = get_args(hint)[1] if isinstance(value, Mapping) and get_origin(hint) is Mapping else None
    if get_origin(item) is tuple or is_dataclass(item):
        return {str(key): settled(item) for key, item in value.items()}  # as such fields are read back
    return settled(value)


def _object(value: Any) -> dict[str, Any]:
    content = {}
    for name, key, sparse in _keys(type(value)):
        item = getattr(value, name)
        if sparse is MISSING or item != sparse:
            content[key] = encode(item)
    return content


@cache
def _keys(cls: Any) -> tuple[tuple[str, str, Any], ...]:
    """Name, key, and the default for which it is left out, of each field."""
    return tuple(
        (item.name, key_of(item), default_of(item) if is_sparse(item) else MISSING) for item in fields(cls)
    )


def decode(hint: Any, value: Any, place: str = "report") -> Any:
    """The inverse of `encode` for a value that an annotation describes.

    Keys that the annotation does not know are passed over: a later varshift may have written them.

    Args:
        hint: A dataclass or another annotation.
        value: The JSON value.
        place: Where in the file the value is, for the error.

    Raises:
        VarshiftError: If the value does not fit the annotation, with the place in the file.
    """
    return _decoder(hint)(value, place)


@cache
def _decoder(hint: Any) -> Decoder:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value, place: value
    if origin in (Union, types.UnionType):
        return _optional(arguments)
    if origin is Literal:
        names = f"one of {', '.join(map(repr, arguments))}"
        return lambda value, place: value if value in arguments else _refuse(value, place, names)
    if origin is tuple:
        return _tuple(arguments)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(arguments[1])
    if hint is SiteId:
        return _site
    if is_dataclass(hint):
        return _instance(hint)
    return _PLAIN[hint]


def _optional(arguments: tuple[Any, ...]) -> Decoder:
    (hint,) = (argument for argument in arguments if argument is not type(None))
    inner = _decoder(hint)
    return lambda value, place: None if value is None else inner(value, place)


def _tuple(arguments: tuple[Any, ...]) -> Decoder:
    def run(value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            _refuse(value, place, "a list")
        return tuple(inner(item, f"{place}[{index}]") for index, item in enumerate(value))

    def pair(value: Any, place: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) != len(each):
            _refuse(value, place, f"a list of {len(each)} values")
        return tuple(one(item, place) for one, item in zip(each, value, strict=True))

    each = [_decoder(argument) for argument in arguments if argument is not ...]
    inner = each[0]
    return run if arguments[-1] is ... else pair


def _mapping(hint: Any) -> Decoder:
    inner = _decoder(hint)

    def run(value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            _refuse(value, place, "an object")
        return {key: inner(item, f"{place}.{key}") for key, item in value.items()}

    return run


def _site(value: Any, place: str) -> SiteId:
    return SiteId.parse(value if isinstance(value, str) else _refuse(value, place, "the name of a site"))


def _instance(cls: Any) -> Decoder:
    # Decoders are looked up on first use, for a dataclass may hold others of its own kind.
    each = [(item.name, key_of(item), hints(cls)[item.name]) for item in fields(cls)]

    def run(value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            _refuse(value, place, "an object")
        values = {
            name: _decoder(hint)(value[key], f"{place}.{key}") for name, key, hint in each if key in value
        }
        try:
            return cls(**values)
        except TypeError as error:
            raise VarshiftError(f"{place} is incomplete: {error}.") from None

    return run


def _number(value: Any, place: str) -> float | None:
    if value is None:  # it was not finite
        return None
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if fits else _refuse(value, place, "a number")


def _whole(value: Any, place: str) -> int:
    fits = isinstance(value, int) and not isinstance(value, bool)
    return value if fits else _refuse(value, place, "a whole number")


def _truth(value: Any, place: str) -> bool:
    return value if isinstance(value, bool) else _refuse(value, place, "true or false")


def _text(value: Any, place: str) -> str:
    return value if isinstance(value, str) else _refuse(value, place, "text")


_PLAIN: dict[Any, Decoder] = {float: _number, int: _whole, bool: _truth, str: _text}


def _refuse(value: Any, place: str, expected: str) -> Any:
    raise VarshiftError(f"{place}={value!r} does not fit: it must be {expected}.")
