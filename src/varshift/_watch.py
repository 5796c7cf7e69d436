"""The front door of watching: one context around a training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from varshift._errors import ModelError, VarshiftError
from varshift.model import network_of
from varshift.monitor import Watch
from varshift.rules import Finding, resolve_selection


def watch(
    model: nn.Module,
    *,
    every: int = 1,
    optimizer: Optimizer | None = None,
    reference: nn.Module | Sequence[nn.Module] | None = None,
    sink: Any = None,
    on_finding: Callable[[Finding], Any] | None = None,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    strict: bool = False,
) -> Watch:
    """Watches a training for what makes a network good in ``train()`` and bad in ``eval()``, while it runs.

    After each `Watch.step` the running statistics, their counters, the training flags and the versions of
    the weights are read, and nothing else: no hook is added, no pass is run, nothing is written to the model.
    From the running mean before and after one update with momentum m the batch mean follows, ``(after -
    (1 - m) * before) / m``; from the counters follows how often the statistics are updated for one step of
    the optimiser. What is found comes once, as a `VarshiftWarning`.

    Args:
        model: The model that is trained; compiled models and data-parallel wrappers are unwrapped.
        every: Read the statistics at every n-th step only, and at the one before it.
        optimizer: What trains it: parameters that it does not hold are frozen, and how often it writes to a
            weight is known. It is only read.
        reference: An averaged copy of the model, a target network, a teacher, or several: whether its
            statistics come along is looked at. Or the network that the model is such a copy of: which of them
            follows is told from what the optimiser trains. It is only read.
        sink: Where figures go: a writer or tracker with ``log_metrics``, ``add_scalar``, ``track`` or
            ``log``, or a function of figures and step.
        on_finding: Called with each new finding instead of a warning.
        select: Codes or prefixes of the findings to look for.
        ignore: Codes or prefixes of those to leave out.
        strict: Whether what fails in the watch itself is raised; otherwise it ends the watch.

    Returns:
        The watch, a context.

    Raises:
        ModelError: If the model is none, or `reference` or `optimizer` is of another kind.
        VarshiftError: If a code is unknown, or `every` is no positive number.

    Example:
        >>> import torch
        >>> import varshift as vs
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with vs.watch(net, optimizer=optimizer) as watch:
        ...     for _ in range(4):
        ...         loss = net(torch.randn(16, 4)).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         watch.step()
        >>> watch.report.findings
        ()
    """
    network = network_of(model)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise VarshiftError(f"every={every!r} must be a whole number of steps, 1 or more.")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise ModelError(f"optimizer is a {type(optimizer).__name__}: pass a torch.optim.Optimizer.")
    several = list(reference) if isinstance(reference, (list, tuple)) else [reference]
    several = [one for one in several if one is not None]
    references = [network_of(one, argument="reference") for one in several]
    names = [type(one).__name__ for one in several]
    if len(names) > 1:
        names = [f"reference[{number}], {name}" for number, name in enumerate(names)]
    return Watch(
        network,
        every=every,
        optimizer=optimizer,
        references=references,
        reference_names=names,
        sink=sink,
        on_finding=on_finding,
        codes=resolve_selection(select, ignore),
        strict=strict,
    )
