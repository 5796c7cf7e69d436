"""Three small runs give the losses that are stored: a change that should not alter numbers does not.

`benchmarks/loss_curves.py` writes them, with what rounding does to them (other instructions, threads and
layouts, weights moved in their last place) and what small changes do.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from varshift.trials import Workbench, decode

CURVES = sorted((Path(__file__).parents[2] / "assets").glob("curve-*.json"))

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="needs oneDNN: other convolutions round less well"
)


def deviation(trial, expected):
    found = trial.run(Workbench())["train_loss_history"]
    return max(abs(one - other) / other for one, other in zip(found, expected, strict=True))


def test_there_are_three():
    assert len(CURVES) == 3


@pytest.mark.parametrize("path", CURVES, ids=lambda path: path.stem)
def test_the_losses_are_those_that_are_stored(path):
    stored = json.loads(path.read_text())
    assert deviation(decode(stored["trial"]), stored["loss"]) < stored["tolerance"]


@pytest.mark.parametrize("path", CURVES, ids=lambda path: path.stem)
def test_another_weight_decay_would_show(path):
    stored = json.loads(path.read_text())
    trial = decode(stored["trial"])
    settings = replace(trial.settings, weight_decay=1.2 * trial.settings.weight_decay)
    assert deviation(replace(trial, settings=settings), stored["loss"]) > 2 * stored["tolerance"]


@pytest.mark.parametrize("path", CURVES, ids=lambda path: path.stem)
def test_the_tolerance_lies_between_rounding_and_change(path):
    stored = json.loads(path.read_text())
    assert 5 * max(stored["rounding"].values()) < stored["tolerance"]
    assert stored["tolerance"] < 0.3 * min(stored["changes"].values())
