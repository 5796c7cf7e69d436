"""Cures carried out by hand: a check, the plan of one cure, its edits on the network."""

from __future__ import annotations

from typing import Any

from torch import nn

import varshift as vs
from varshift.fixes import Change, Patient, Plan, Surgery, plan_cure
from varshift.flow import capture
from varshift.rules import Cure


def patient_of(network: nn.Module, example: Any, loader: Any = None) -> Patient:
    """A network with its check and its capture."""
    report = vs.check(network, loader) if loader is not None else vs.check(network, example_inputs=example)
    return Patient(network, report, capture(network, example), example, loader)


def treated(
    network: nn.Module, example: Any, cure: str, *, loader: Any = None, finding: Any = None, **options: Any
) -> tuple[Surgery, tuple[Change, ...]]:
    """Carries out one cure on a network, through its plan as a file.

    Args:
        network: The network, which is changed.
        example: Example inputs.
        cure: Code of the cure.
        loader: Batches, for cures of data.
        finding: The finding to cure: its sites, its cure's options.
        options: Options of the cure; ``target`` names one site.

    Returns:
        The surgery, which can be undone, and what changed.
    """
    target = options.pop("target", None)
    patient = patient_of(network, example, loader)
    asked = Cure(cure, cure, "unsafe", target, options)
    if finding is not None:
        asked = next(one for one in finding.cures if one.code == cure)
    edits = plan_cure(patient, asked, finding)
    surgery = Surgery(network, loader)
    repeated = Plan.from_json(Plan(tuple(edits)).to_json()).edits
    return surgery, tuple(change for edit in repeated for change in edit.apply(surgery))
