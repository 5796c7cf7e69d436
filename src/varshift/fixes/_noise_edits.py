"""Edits of noise that need no change of code: another module in its place, another value of an attribute."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from varshift._sites import SiteId, Source
from varshift.fixes._edit import Change, Edit, edit
from varshift.fixes._noise_action import NoiseAction
from varshift.fixes._surgery import Refused, Surgery

_PLAIN = (bool, int, float, str, type(None))


@edit("swap-noise-module")
@dataclass(frozen=True, slots=True)
class SwapNoiseModule(Edit):
    """Puts another module in the place of one that does nothing but make noise, on all of its paths.

    Attributes:
        path: Its first path.
        cls: Its class name.
        action: What becomes of it.
        sites: The noise sites that it makes: one for every place that calls it.
        dimensions: Number of dimensions of its input.
        carried: Attributes that parents read from it, such as ``p``, and what they are to be; its other
            numbers, flags and texts are taken over as they are.
        source: The line of the call.
    """

    path: str
    cls: str
    action: NoiseAction
    sites: tuple[SiteId, ...]
    dimensions: int = 4
    carried: tuple[tuple[str, float], ...] = ()
    source: Source | None = None

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Swaps the module."""
        old = surgery.module(self.path, self.cls)
        new = self.action.module(self.dimensions)
        taken = {**plain_attributes(old), **dict(self.carried)}
        for name, value in taken.items():
            if name not in vars(new):
                setattr(new, name, value)
        before = _description(old)
        surgery.swap(old, new)
        why = several(self.sites, "the module")
        return tuple(
            Change(site, before, self.action.text, "module", self.source, why=why) for site in self.sites
        )


@edit("set-attribute")
@dataclass(frozen=True, slots=True)
class SetAttribute(Edit):
    """Sets a number or a flag that a module holds.

    Attributes:
        path: Path of the module.
        attribute: Name of the attribute; one with dots is an attribute of an object that it holds,
            ``"config.attention_dropout"``.
        before: Its value when the edit was planned: a number, a flag or None.
        after: Its value from now on.
        sites: The places that it drives.
        source: The line that reads it.
    """

    path: str
    attribute: str
    before: Any
    after: Any
    sites: tuple[SiteId, ...] = ()
    source: Source | None = None

    def apply(self, surgery: Surgery) -> tuple[Change, ...]:
        """Sets it, on the object that holds it."""
        module = surgery.module(self.path)
        place = f"{self.path}.{self.attribute}" if self.path else self.attribute
        try:
            owner, name = holder_of(module, self.attribute)
            value = getattr(owner, name)
        except AttributeError:
            raise Refused(f"the model has no attribute '{place}'.") from None
        if not _alike(value, self.before):
            raise Refused(f"'{place}' is {value!r}, and was {self.before!r} in the plan.")
        try:
            surgery.set(owner, name, self.after)
        except (AttributeError, TypeError, ValueError) as error:
            raise Refused(f"'{place}' cannot be set: {error}") from error
        sites = self.sites or (SiteId(self.path, "module"),)
        texts = f"{name}={self.before!r}", f"{name}={self.after!r}"
        why = several(self.sites, f"'{place}'")
        return tuple(Change(site, *texts, "attribute", self.source, why=why) for site in sites)


def holder_of(module: nn.Module, attribute: str) -> tuple[Any, str]:
    """The object that holds an attribute with dots, and the name of the attribute there.

    Raises:
        AttributeError: If there is no such object.
    """
    *holders, name = attribute.split(".")
    return functools.reduce(getattr, holders, module), name


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The numbers, flags and texts that a module holds besides its mode."""
    return {
        name: value
        for name, value in vars(module).items()
        if name != "training" and not name.startswith("_") and isinstance(value, _PLAIN)
    }


def several(sites: tuple[SiteId, ...], unit: str) -> str:
    """Says that some places can only be changed together; empty for a single one."""
    if len(sites) < 2:
        return ""
    return f"{unit} acts at {len(sites)} places, which change together: {', '.join(map(str, sites))}"


def _description(module: nn.Module) -> str:
    """A module as its user would write it; its class name where its own description of it fails."""
    try:
        return repr(module)
    except Exception:  # of the module's author, who expected other values
        return type(module).__name__


def _alike(value: Any, before: Any) -> bool:
    if isinstance(value, (int, float)) and isinstance(before, (int, float)):
        return math.isclose(value, before, rel_tol=1e-9, abs_tol=1e-12)
    return value is before
