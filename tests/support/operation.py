"""A cure carried out on a copy of a network, and what two captures say about it."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from varshift.fixes import Patient, Proof, Surgery, plan_cure, prove
from varshift.flow import Capture, capture
from varshift.rules import Cure


@dataclass
class Operation:
    """What was done: the changed network, its changes, the edits and the proof."""

    network: nn.Module
    edits: tuple[Any, ...]
    changes: tuple[Any, ...]
    before: Capture
    after: Capture
    proof: Proof
    patient: Patient
    surgery: Surgery

    @property
    def noises(self):
        """Kind and rate of the noise in training, by module."""
        return [(site.name, site.kind, site.rate) for site in self.after.train.noises]


def operate(network, inputs, code, target=None, finding=None, settings=None, **options):
    """Carries out a cure by its name, and proves it."""
    twin = copy.deepcopy(network)
    before = capture(twin, inputs)
    patient = Patient(
        twin, None, before, inputs, settings=settings or {}, recapture=lambda m: capture(m, inputs)
    )
    edits = tuple(plan_cure(patient, Cure(code, code, "safe", target, options), finding))
    surgery = Surgery(twin)
    changes = tuple(change for edit in edits for change in edit.apply(surgery))
    after = capture(surgery.network, inputs)
    proof = prove(before, after, {change.site for change in changes})
    return Operation(surgery.network, edits, changes, before, after, proof, patient, surgery)


def same_in_eval(network, operation, inputs):
    """Whether the deployed network computes to the bit what it did."""
    network, changed = copy.deepcopy(network).eval(), copy.deepcopy(operation.network).eval()
    with torch.no_grad():
        return torch.equal(network(inputs), changed(inputs))
