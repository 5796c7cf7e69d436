"""The call that a report says would repeat it."""

import pytest
import torch
from torch import nn

import varshift as vs
from varshift._repeat import call_text

X = torch.randn(8, 4)


def by_name(model, batch):
    return model(batch["values"])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "varshift.check(model)"),
        ({"loader": [X]}, "varshift.check(model, loader)"),
        ({"shape": [(4,)], "seed": 3}, "varshift.check(model, shape=[(4,)], seed=3)"),
        ({"shape": X.shape[1:]}, "varshift.check(model, shape=(4,))"),
        ({"example_inputs": X}, "varshift.check(model, example_inputs=example_inputs)"),
        ({"select": ["VS1"], "ignore": ["VS102"]}, "varshift.check(model, select=['VS1'], ignore=['VS102'])"),
        ({"device": torch.device("cpu")}, "varshift.check(model, device='cpu')"),
        ({"target": "nets:build", "max_batches": 16}, "varshift.check(model, target='nets:build')"),
        ({"progress": print}, "varshift.check(model)"),
    ],
)
def test_what_is_not_by_default_is_written(arguments, text):
    assert vs.check(network(), **arguments).repeat == text


def test_functions_have_their_own_names_where_they_have_any():
    loader = [{"values": X}]
    text = vs.check(network(), loader, forward=by_name).repeat
    assert text == f"varshift.check(model, loader, forward={__name__}.by_name)"
    text = vs.check(network(), loader, forward=lambda model, batch: model(batch["values"])).repeat
    assert text == "varshift.check(model, loader, forward=forward)"


def test_the_call_repeats_the_check():
    model, loader = network(), [X, X + 1]
    report = vs.check(model, loader, seed=2, max_batches=1, select=["VS101"])
    again = eval(report.repeat, {"varshift": vs, "model": model, "loader": loader})
    assert again == report


def test_any_function_of_the_package_can_be_written():
    arguments = {"model": 1, "shape": (3,), "quick": False}

    def predict(model, shape=None, *, quick=True):
        raise NotImplementedError

    assert call_text(predict, arguments) == "varshift.predict(1, (3,), quick=False)"
