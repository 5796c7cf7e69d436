"""What may be passed as the data of a check: a loader, or one example input."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import varshift as vs

X, Y = torch.randn(12, 3, 6, 6), torch.arange(12) % 4


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.norm = nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.drop(self.conv(x))).mean((2, 3))


class Two(One):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x) * mask


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.drop, self.norm = nn.GRU(3, 4, batch_first=True), nn.Dropout(0.5), nn.BatchNorm1d(4)

    def forward(self, rows: PackedSequence) -> Tensor:
        return self.norm(self.drop(self.rnn(rows)[1][0]))


def packed() -> PackedSequence:
    lengths = torch.tensor([5, 3, 2, 4])
    return pack_padded_sequence(torch.randn(4, 5, 3), lengths, batch_first=True, enforce_sorted=False)


def first_shape(report):
    return report.data, [row.reached for row in report.layers], len(report.noises)


@pytest.mark.parametrize(
    ("network", "data", "forward"),
    [
        (One(), X, None),
        (One(), (X,), None),
        (One(), {"x": X}, None),
        (One(), {"image": X}, None),
        (Two(), (X, torch.ones(12, 1)), None),
        (Two(), {"x": X, "mask": torch.ones(12, 1)}, None),
        (Packed(), packed(), None),
        (One(), (Y, X), lambda model, batch: model(batch[1])),
    ],
    ids=[
        "tensor",
        "tuple of one",
        "mapping",
        "mapping of one",
        "two inputs",
        "two by name",
        "packed rows",
        "own forward",
    ],
)
def test_inputs_alone_are_an_example(network, data, forward):
    report = vs.check(network, data, forward=forward)
    assert first_shape(report) == (None, [True], 1)
    assert report.to_json() == vs.check(network, example_inputs=data, forward=forward).to_json()


class Indexed:
    """A loader that is gone through by index, with tensors of its own."""

    def __init__(self) -> None:
        self.inputs = X

    def __getitem__(self, index: int) -> Tensor:
        return self.inputs[[index, -index]]  # ends with an IndexError, as sequences do


@pytest.mark.parametrize(
    "data",
    [[X, X], [(X, Y)], ((X, Y), (X, Y)), iter([(X, Y)]), Indexed()],
    ids=["of tensors", "of pairs", "tuple of pairs", "iterator", "indexed"],
)
def test_lists_and_iterables_are_loaders(data):
    assert vs.check(One(), data, select=["VS302"]).data is not None


@pytest.mark.parametrize(
    "data",
    [(X, Y), (X, X), (X, torch.zeros(12, 4)), {"x": X, "labels": Y}, {"image": X, "label": Y}, [X, Y]],
    ids=["inputs and classes", "two alike", "regression", "by name", "other names", "as a loader collates"],
)
def test_one_batch_with_targets_is_neither_and_the_error_says_what_to_write(data):
    with pytest.raises(vs.DataError, match=r"one batch.*\[batch\]"):
        vs.check(One(), data)


def test_the_batch_in_a_list_is_measured():
    assert vs.check(One(), [(X, Y)], select=["VS302"]).data.samples == 12


def test_an_example_is_given_once():
    with pytest.raises(vs.DataError, match="pass one of them"):
        vs.check(One(), X, example_inputs=X)
