"""What can be done to the noise sites of one network: all of them removed, and all of them replaced."""

from __future__ import annotations

import copy
import time
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from _quick_init import QuickInit
from _surveyed_network import Network
from varshift import Cure
from varshift.fixes import Patient, Surgery, plan_cure, prove
from varshift.flow import Capture, NoiseSite, capture

_CURES = {
    "removed": Cure("remove-noise", "remove it", "safe"),
    "swapped": Cure("swap-noise", "uniform noise", "unsafe", None, {"to": "uniform", "beta": 0.25}),
}
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
            with QuickInit():
                built = build()
            inputs = network.inputs(2, size)
            start = time.process_time()
            before = capture(built.model, _batch(inputs))
            seconds = time.process_time() - start
        except Exception as error:  # whatever a size is refused with
            errors.append(f"{size}: {type(error).__name__}: {str(error)[:120]}")
            continue
        if before.train is None:
            errors.append(f"{size}: no capture in training")
            continue
        row |= {"model": built.title, "size": size}
        return row | trials(built.model, _batch(inputs), before, seconds)
    return {**row, "unbuildable": "; ".join(errors) or "no attempt"}


def trials(model: nn.Module, batch: Any, before: Capture, seconds: float) -> dict[str, Any]:
    """The trials of one network that runs, on one copy of it: what `varshift.fix` does, without a check.

    Args:
        model: The network.
        batch: What it runs on.
        before: Its capture.
        seconds: What that took.
    """
    noises = before.train.noises if before.train is not None else ()
    dropouts = [site for site in noises if site.kind not in _NO_DROPOUT]
    row: dict[str, Any] = {
        "sites": len(dropouts),
        "no_dropout": Counter(site.kind for site in noises if site.kind in _NO_DROPOUT),
    }
    if not dropouts:
        return row
    start = time.process_time()
    twin = copy.deepcopy(model)
    row["unit_seconds"] = seconds + time.process_time() - start
    patient = Patient(twin, None, before, batch, recapture=lambda network: capture(network, batch))
    outputs = _outputs(model, batch), _outputs(model, batch)
    for name, cure in _CURES.items():
        row[name] = _trial(patient, batch, cure, dropouts, outputs)
    return row


def _trial(
    patient: Patient, batch: Any, cure: Cure, sites: list[NoiseSite], outputs: tuple[Tensor | None, ...]
) -> dict[str, Any]:
    """One cure of all sites: how many it changed, by which methods, and why not the others."""
    start = time.process_time()
    patient.notes.clear()
    surgery = Surgery(patient.network)
    keys = list(patient.network.state_dict())
    try:
        edits = plan_cure(patient, cure, None)
        changes = [change for edit in edits for change in edit.apply(surgery)]
        after = capture(surgery.network, batch)
        proof = prove(patient.capture, after, {change.site for change in changes})
        seconds = time.process_time() - start
        same = _equal(outputs, _outputs(surgery.network, batch))
        same_keys = list(surgery.network.state_dict()) == keys
    except Exception as error:
        return {"done": 0, "error": f"{type(error).__name__}: {str(error)[:500]}"}
    finally:
        surgery.undo()
    new = Counter(site.name for site in after.train.noises if site.kind == "uniform") if after.train else {}
    remaining = {site.id for site in after.train.noises} if after.train else set()
    changed = {change.site for change in changes}
    left = [site for site in sites if site.id in remaining or site.id not in changed]
    if cure.code == "swap-noise" and sum(new.values()) < len(sites) - len(left):
        left = sites  # gone, and nothing in its place
    result: dict[str, Any] = {
        "done": len(sites) - len(left) if proof.exact else 0,
        "methods": Counter(change.method for change in changes),
        "seconds": seconds,
        "same_keys": same_keys,
        "same_in_eval": same,
    }
    if left or not proof.exact:
        result["left"] = [f"{site.id} ({site.source})" for site in left[:4]]
        result["reasons"] = [*proof.unexpected, *patient.notes][:4]
    return result


def _outputs(network: nn.Module, batch: Any) -> Tensor | None:
    """What a network computes in evaluation; a copy of it does, for some keep what they compute."""
    with torch.no_grad():
        return _first(copy.deepcopy(network).eval()(*(batch if isinstance(batch, tuple) else (batch,))))


def _equal(before: tuple[Tensor | None, ...], after: Tensor | None) -> bool | None:
    """Whether outputs are the same to the bit; None where those of the network itself are not."""
    one, other = before
    if one is None or other is None or not torch.equal(one, other):
        return None
    return after is not None and torch.equal(one, after)


def _first(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return torch.nan_to_num(value)
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((tensor for inner in values if (tensor := _first(inner)) is not None), None)


def _batch(inputs: tuple[Tensor, ...]) -> Any:
    return inputs[0] if len(inputs) == 1 else inputs
