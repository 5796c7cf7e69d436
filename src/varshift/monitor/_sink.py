"""Where figures of a watched training go: any tracker or writer, told by the methods that it has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from varshift._errors import VarshiftError

Sink = Callable[[dict[str, float], int], Any]

_STEP = "varshift/step"


def as_sink(target: Any) -> Sink:
    """A function of figures by name and step number that hands them to a tracker.

    Known by what it has, in this order:

    - ``log_metrics(dict, step=)``: MLflow, the loggers of Lightning, Comet, Composer;
    - ``add_scalar(name, value, step)``: TensorBoard's ``SummaryWriter``;
    - ``track(value, name=, step=)``: a run of Aim;
    - ``log(dict)``: a run of Weights & Biases, trackio, accelerate. The step is one of the figures, and the
      axis of the others where the tracker can be told: these have one count of steps for all that is logged,
      which is the user's;
    - a logger of Python's ``logging`` gets a line of level info;
    - a plain function is called with figures and step.

    Raises:
        VarshiftError: If it has none of these.
    """
    if isinstance(target, logging.Logger):
        return lambda figures, step: target.info("step %d: %s", step, _line(figures))
    if callable(getattr(target, "log_metrics", None)):
        return lambda figures, step: target.log_metrics(figures, step=step)
    if callable(getattr(target, "add_scalar", None)):
        return lambda figures, step: _each(target.add_scalar, figures, step)
    if callable(getattr(target, "track", None)):
        return lambda figures, step: _each_named(target.track, figures, step)
    if callable(getattr(target, "log", None)):
        return _OwnAxis(target)
    if callable(target):
        return lambda figures, step: target(figures, step)
    raise VarshiftError(
        f"sink is a {type(target).__name__}: pass a function of figures and step, or an object with "
        "log_metrics, add_scalar, track or log."
    )


def as_alert(target: Any) -> Callable[[str, str], Any] | None:
    """A function of title and text that has a tracker tell its user; None where it has no ``alert``."""
    alert = getattr(target, "alert", None)
    return (lambda title, text: alert(title=title, text=text)) if callable(alert) else None


def plain_names(names: Sequence[str]) -> dict[str, str]:
    """By name, one of letters, digits and ``_ - . /`` only, which every tracker takes; all are different."""
    plain: dict[str, str] = {}
    for name in names:
        letters = (letter if letter.isalnum() or letter in "_-./" else "_" for letter in name)
        own = base = "".join(letters) or "model"
        number = 1
        while own in plain.values():
            number += 1
            own = f"{base}_{number}"
        plain[name] = own
    return plain


class _OwnAxis:
    """Logs figures with their step as one of them.

    Args:
        target: What has ``log(dict)``.
    """

    def __init__(self, target: Any) -> None:
        self._target = target
        self._defined = False

    def __call__(self, figures: dict[str, float], step: int) -> None:
        define = getattr(self._target, "define_metric", None)
        if not self._defined and callable(define):
            define(_STEP)
            define("varshift/*", step_metric=_STEP)
        self._defined = True
        self._target.log({**figures, _STEP: step})


def _each(add: Callable[..., Any], figures: dict[str, float], step: int) -> None:
    for name, value in figures.items():
        add(name, value, step)


def _each_named(track: Callable[..., Any], figures: dict[str, float], step: int) -> None:
    for name, value in figures.items():
        track(value, name=name, step=step)


def _line(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
