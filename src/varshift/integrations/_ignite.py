"""Ignite: an engine that trains steps a watch after each of its iterations."""

from __future__ import annotations

from typing import Any

from ignite.engine import Events

from varshift import VarshiftError, Watch


def attach(watch: Watch, host: Any) -> None:
    """Has an engine step a watch; for `Watch.attach`.

    Raises:
        VarshiftError: If the host is of Ignite, and no engine.
    """
    if not callable(getattr(host, "add_event_handler", None)):
        raise VarshiftError(f"host is a {type(host).__name__}: pass the Engine that trains.")
    host.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: watch.step())
