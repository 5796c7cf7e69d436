"""Where figures of a watched training go: any tracker or writer, told by the methods that it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from varshift._errors import VarshiftError

Sink = Callable[[dict[str, float], int], Any]


def as_sink(target: Any) -> Sink:
    """A function of figures by name and step number that hands them to a tracker.

    Known by what it has, in this order: ``log_metrics(dict, step)``, ``add_scalar(name, value, step)``,
    ``track(value, name=, step=)``, ``log(dict)``; a plain function is called with figures and step.

    Raises:
        VarshiftError: If it has none of these.
    """
    if callable(getattr(target, "log_metrics", None)):
        return lambda figures, step: target.log_metrics(figures, step=step)
    if callable(getattr(target, "add_scalar", None)):
        return lambda figures, step: _each(target.add_scalar, figures, step)
    if callable(getattr(target, "track", None)):
        return lambda figures, step: _each_named(target.track, figures, step)
    if callable(getattr(target, "log", None)):
        return lambda figures, step: target.log({**figures, "varshift/step": step})
    if callable(target):
        return lambda figures, step: target(figures, step)
    raise VarshiftError(
        f"sink is a {type(target).__name__}: pass a function of figures and step, or an object with "
        "log_metrics, add_scalar, track or log."
    )


def _each(add: Callable[..., Any], figures: dict[str, float], step: int) -> None:
    for name, value in figures.items():
        add(name, value, step)


def _each_named(track: Callable[..., Any], figures: dict[str, float], step: int) -> None:
    for name, value in figures.items():
        track(value, name=name, step=step)
