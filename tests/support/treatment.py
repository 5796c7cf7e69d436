"""Cures carried out by hand: a check, the plan of one cure, its edits on the network."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

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


def images(samples: int = 256, **settings: Any) -> DataLoader[Any]:
    """Images of different contrast with a class that can be learnt."""
    generator = torch.Generator().manual_seed(0)
    contrast = 3 * torch.rand(samples, 1, 1, 1, generator=generator)
    inputs = (2 * torch.randn(samples, 3, 8, 8, generator=generator) + 1) * contrast
    targets = (inputs[:, 0].mean((1, 2)) > inputs[:, 1].mean((1, 2))).long()
    return DataLoader(TensorDataset(inputs, targets), **{"batch_size": 32, "shuffle": True, **settings})


def stack(norm: nn.Module, **settings: Any) -> nn.Sequential:
    """A small network with two norms, the first of which is given."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, **settings), norm, nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)),
    )


def learnt(build: Callable[[], nn.Module], loader: Any = None, epochs: int = 6) -> nn.Module:
    """A network after a short training, in training mode."""
    torch.manual_seed(0)
    network = build().train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(epochs):
        for inputs, targets in images() if loader is None else loader:
            optimizer.zero_grad()
            cross_entropy(network(inputs), targets).backward()
            optimizer.step()
    return network


def codes(report: vs.Report | None) -> list[str]:
    """Codes of the findings of a report."""
    return [finding.code for finding in report.findings] if report is not None else []


def digest(network: nn.Module) -> dict[str, Any]:
    """State and modes of a network, for a comparison."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    return {**state, "modes": [module.training for module in network.modules()]}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two digests are equal, bit for bit."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def saved(network: nn.Module) -> nn.Module:
    """The network as it is read from the file to which it was saved as a whole."""
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def copies(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A deep copy of a network, and one through a file."""
    return copy.deepcopy(network), saved(network)
