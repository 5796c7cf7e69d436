"""Settings from ``[tool.varshift]`` in ``pyproject.toml``."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varshift._errors import VarshiftError

from ._finding import SEVERITIES, Severity
from ._registry import matching_rules, resolve_selection, split_selectors

_LISTS = ("select", "ignore", "extend-select", "extend-ignore")
_KEYS = (*_LISTS, "fail-on", "exit-zero", "intended")


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of the rules.

    Attributes:
        select: Codes, prefixes or ``"ALL"``; None for all rules.
        ignore: Likewise, to be switched off.
        extend_select: Added to whatever is selected, also to a selection given on the command line.
        extend_ignore: Added to whatever is ignored.
        fail_on: The mildest severity that makes the command line exit with 1.
        exit_zero: Exit with 0 even with findings.
        intended: Modules and sites whose noise is meant to act in evaluation too.
        path: The file the settings come from, None when there was none.
    """

    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    extend_ignore: tuple[str, ...] = ()
    fail_on: Severity = "warning"
    exit_zero: bool = False
    intended: tuple[str, ...] = ()
    path: Path | None = None

    def selection(
        self, select: Sequence[str] | str | None = None, ignore: Sequence[str] | str | None = None
    ) -> tuple[str, ...]:
        """The codes that are switched on; `select` and `ignore` replace the file's when they are given.

        Raises:
            VarshiftError: If a selector stands for no rule.
        """
        return resolve_selection(
            self.select if select is None else select,
            self.ignore if ignore is None else ignore,
            extend_select=self.extend_select,
            extend_ignore=self.extend_ignore,
        )


def load_config(start: str | Path | None = None) -> Config:
    """Reads ``[tool.varshift]`` from the nearest ``pyproject.toml`` that has this table.

    As in ruff, a ``pyproject.toml`` without the table is passed over and the search goes on upwards.

    Args:
        start: A file or folder to start from; the working directory by default.

    Returns:
        The settings; the defaults where no file has the table.

    Raises:
        VarshiftError: If a file cannot be read, a key is unknown, a value has the wrong type, or a selector
            stands for no rule.
    """
    place = Path.cwd() if start is None else Path(start)
    place = place.resolve()
    for folder in (place, *place.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            table = _table(path)
            if table is not None:
                return _config(table, path)
    return Config()


def _table(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise VarshiftError(f"{path} cannot be read: {error}.") from error
    tool = content.get("tool", {})
    table = tool.get("varshift") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise VarshiftError(f"{path}: tool.varshift must be a table, not {type(table).__name__}.")
    return table


def _config(table: dict[str, Any], path: Path) -> Config:
    for key in table:
        if key not in _KEYS:
            near = difflib.get_close_matches(key.replace("_", "-"), _KEYS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise VarshiftError(
                f"{path}: [tool.varshift] has an unknown key {key!r}.{hint} It knows {', '.join(_KEYS)}."
            )
    exit_zero = table.get("exit-zero", False)
    if not isinstance(exit_zero, bool):
        raise VarshiftError(f"{path}: exit-zero={exit_zero!r} in [tool.varshift] must be true or false.")
    fail_on = table.get("fail-on", "warning")
    if fail_on not in SEVERITIES:
        known = ", ".join(repr(severity) for severity in SEVERITIES)
        raise VarshiftError(f"{path}: fail-on={fail_on!r} in [tool.varshift] must be one of {known}.")
    lists = {key: _selectors(table[key], key, path) for key in _LISTS if key in table}
    return Config(
        select=lists.get("select"),
        ignore=lists.get("ignore", ()),
        extend_select=lists.get("extend-select", ()),
        extend_ignore=lists.get("extend-ignore", ()),
        fail_on=fail_on,
        exit_zero=exit_zero,
        intended=_names(table.get("intended", []), path),
        path=path,
    )


def _names(value: object, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise VarshiftError(
            f"{path}: intended={value!r} in [tool.varshift] must be a list of names of modules or sites: "
            '["decoder.sample"].'
        )
    return tuple(value)


def _selectors(value: object, key: str, path: Path) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise VarshiftError(
            f'{path}: {key}={value!r} in [tool.varshift] must be a list of codes or prefixes: ["VS1"].'
        )
    selectors = split_selectors(value)
    for selector in selectors:
        matching_rules(selector, argument=f"{path}: {key} in [tool.varshift]")
    return selectors
