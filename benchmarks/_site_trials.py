"""What can be done to the noise sites of one network: all of them removed, and all of them replaced."""

from __future__ import annotations

import copy
import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

import varshift as vs
from _surveyed_network import Network
from varshift.flow import Flow, capture

_NO_DROPOUT = ("sampling", "permutation", "other", "rrelu")  # draws that are no noise on a signal


def site_row(network: Network) -> dict[str, Any]:
    """Builds a network, removes its noise, replaces it by uniform noise, and counts what a capture shows.

    Returns:
        The row as JSON values.
    """
    row: dict[str, Any] = {"name": network.name, "torch": torch.__version__}
    errors = []
    for size, build in network.attempts():
        torch.manual_seed(0)
        try:
            built = build()
            inputs = network.inputs(2, size)
            before = capture(built.model, _batch(inputs)).train
        except Exception as error:  # whatever a size is refused with
            errors.append(f"{size}: {type(error).__name__}: {str(error)[:120]}")
            continue
        if before is None:
            errors.append(f"{size}: no capture in training")
            continue
        row |= {"model": built.title, "size": size}
        return row | trials(built.model, _batch(inputs), before)
    return {**row, "unbuildable": "; ".join(errors) or "no attempt"}


def trials(model: nn.Module, batch: Any, before: Flow) -> dict[str, Any]:
    """The trials of one network that runs."""
    dropouts = [site for site in before.noises if site.kind not in _NO_DROPOUT]
    row: dict[str, Any] = {
        "sites": len(dropouts),
        "no_dropout": Counter(site.kind for site in before.noises if site.kind in _NO_DROPOUT),
    }
    if not dropouts:
        return row
    seconds = time.process_time()
    copy.deepcopy(model)
    capture(model, batch)
    row["unit_seconds"] = time.process_time() - seconds
    row["removed"] = _trial(model, batch, {"remove-noise": {}}, dropouts)
    row["swapped"] = _trial(model, batch, {"swap-noise": {"to": "uniform", "beta": 0.25}}, dropouts)
    return row


def _trial(model: nn.Module, batch: Any, cures: dict[str, Any], sites: list[Any]) -> dict[str, Any]:
    """One cure of all sites: how many it changed, by which methods, and why not the others."""
    seconds = time.process_time()
    try:
        cured = vs.fix(model, example_inputs=batch, cures=cures)
    except Exception as error:
        return {"done": 0, "error": f"{type(error).__name__}: {str(error)[:500]}"}
    seconds = time.process_time() - seconds
    after = capture(cured.model, batch).train
    remaining = {site.id for site in after.noises} if after is not None else {site.id for site in sites}
    left = [site for site in sites if site.id in remaining]
    if "swap-noise" in cures and after is not None:
        swapped = sum(site.kind == "uniform" for site in after.noises)
        left = left or sites[swapped:]  # gone, and nothing in its place
    result: dict[str, Any] = {
        "done": len(sites) - len(left),
        "methods": Counter(change.method for change in cured.changes),
        "seconds": seconds,
        "same_keys": cured.model.state_dict().keys() == model.state_dict().keys(),
        "same_in_eval": _same(model, cured.model, batch),
    }
    if left:
        result["left"] = [f"{site.id} ({site.source})" for site in left[:4]]
        result["reasons"] = [
            *(f"{code}: {reason}" for failure in cured.failures for code, reason in failure.tried),
            *cured.notes,
        ][:4]
    return result


def _same(model: nn.Module, other: nn.Module, batch: Any) -> bool | None:
    """Whether two networks compute the same in evaluation; None where the first is not its own equal."""
    results = []
    for network in (model, model, other):
        with torch.no_grad():
            results.append(_first(network.eval()(*(batch if isinstance(batch, tuple) else (batch,)))))
        network.train()
    if any(result is None for result in results) or not torch.equal(results[0], results[1]):
        return None
    return torch.equal(results[0], results[2])


def _first(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return torch.nan_to_num(value)
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((tensor for inner in values if (tensor := _first(inner)) is not None), None)


def _batch(inputs: tuple[Tensor, ...]) -> Any:
    return inputs[0] if len(inputs) == 1 else inputs
