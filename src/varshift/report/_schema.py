"""The JSON schema of the report file, derived from the dataclasses.

``python -m varshift.report`` writes the file that is shipped with the package.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import resources
from typing import Any, Literal, Union, get_args, get_origin

from varshift._sites import SiteId
from varshift.report._codec import default_of, encode, hints, is_sparse, key_of

# A figure that is not finite is null.
_PLAIN: dict[Any, Any] = {str: "string", int: "integer", float: ["number", "null"], bool: "boolean"}
_SITE = {
    "description": "Name of a place: module:kind or module:kind#number.",
    "pattern": ":[^:#]+(#[0-9]+)?$",
}


def report_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of ``varshift.report/2``; every report that is written fits it."""
    text = resources.files("varshift.report").joinpath("_schema.json").read_text(encoding="utf-8")
    return json.loads(text)


def derived_schema(cls: type, version: str) -> dict[str, Any]:
    """The schema of a dataclass whose first key names the version of the format."""
    definitions: dict[str, Any] = {}
    root = _object(cls, definitions)
    properties = {"schema": {"const": version}, **root["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": version,
        "title": version,
        **root,
        "properties": properties,
        "required": ["schema", *root["required"]],
        "$defs": definitions,
    }


def _object(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    described = _attributes(cls)
    properties, required = {}, []
    for item in fields(cls):
        described_type = _type(hints(cls)[item.name], definitions)
        text = described.get(item.name)
        entry = {"description": text, **described_type} if text else described_type
        if is_sparse(item):
            entry["default"] = encode(default_of(item))
        else:
            required.append(key_of(item))
        properties[key_of(item)] = entry
    return {
        "description": inspect.cleandoc(cls.__doc__ or "").splitlines()[0].replace("`", ""),
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return {}
    if origin in (Union, types.UnionType):
        (inner,) = (_type(argument, definitions) for argument in arguments if argument is not type(None))
        if isinstance(inner.get("type"), str) and "properties" not in inner:
            return {**inner, "type": [inner["type"], "null"]}
        return inner if hint == float | None else {"anyOf": [inner, {"type": "null"}]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple and arguments[-1] is ...:
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is tuple:
        items = [_type(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "items": False}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    if hint is SiteId:
        definitions.setdefault("SiteId", {**_SITE, "type": "string"})
        return {"$ref": "#/$defs/SiteId"}
    if is_dataclass(hint):
        name = hint.__name__ if isinstance(hint, type) else str(hint)
        if name not in definitions:
            definitions[name] = {}
            definitions[name] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{name}"}
    return {"type": _PLAIN[hint]}


def _attributes(cls: type) -> dict[str, str]:
    """What the docstring of a dataclass says about its fields, without markup."""
    _, _, text = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    entries = re.split(r"^ {4}(\w+): ", text, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(words.split("\n\n")[0].replace("`", "").split())
        for name, words in zip(entries[::2], entries[1::2], strict=True)
    }
