"""Loaders and batches of unusual structure."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs
from varshift.model import batch_size, map_tensors, take_samples

X, Y = torch.randn(12, 3, 10, 10), torch.arange(12) % 5


@dataclasses.dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    y: torch.Tensor
    note: str = ""


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ((X, Y), r"this looks like one batch.*\[batch\]"),
        ([(X, Y), (X[:0], Y[:0])], "batch 1 is empty"),
        (TensorDataset(X, Y), "TensorDataset, which yields single samples.*DataLoader"),
    ],
)
@pytest.mark.parametrize("act", [vs.check, vs.recalibrate])
def test_loaders_that_cannot_be_meant_are_refused(net, act, loader, message):
    with pytest.raises(vs.DataError, match=message):
        act(net, loader)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (Sample(X, Y), 12),
        ([list(X), [{"label": y} for y in Y]], 12),
        ([[torch.zeros(3, 8, 9), torch.zeros(3, 7, 9)], ["a", "b"]], 2),
        ([[X, X], Y], 12),
        ([[X, torch.zeros(12, 2)], [Y, Y]], 12),
        (["a", {"x": X}], 12),
        (torch.tensor(3.0), 1),
        ([], 1),
    ],
)
def test_number_of_samples(batch, size):
    assert batch_size(batch) == size


def test_samples_are_taken_from_lists_and_dataclasses():
    images, targets = take_samples([list(X), [{"label": y} for y in Y]], 4)
    assert (len(images), len(targets), images[0].shape) == (4, 4, X[0].shape)
    sample = take_samples(Sample(X, Y, "kept"), 4)
    assert (len(sample.x), len(sample.y), sample.note) == (4, 4, "kept")


def test_dataclasses_are_mapped_into_a_copy():
    sample = Sample(X, Y)
    doubled = map_tensors(sample, lambda tensor: tensor * 2)
    assert isinstance(doubled, Sample)
    assert torch.equal(doubled.x, 2 * X)
    assert sample.x is X


def test_batches_of_lists_and_of_dataclasses_are_not_batches_of_one(net):
    lists = [([*X], [{"label": y} for y in Y])] * 3
    report = vs.check(net, lists, forward=lambda model, batch: model(torch.stack(batch[0])))
    assert report.data.samples == 36
    assert not [finding for finding in report.findings if finding.code == "VS301"]
    report = vs.check(net, [Sample(X, Y)] * 3, forward=lambda model, batch: model(batch.x))
    assert not [finding for finding in report.findings if finding.code == "VS301"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda model, batch: F.cross_entropy(model(batch[1]), batch[2]),
        lambda model, batch: (F.cross_entropy(out := model(batch[1]), batch[2]), out),
    ],
)
def test_forward_may_return_the_loss_itself(net, forward):
    loader = [(torch.arange(12), X, Y)] * 3
    gap = vs.check(net, loader, forward=forward).gap
    reference = vs.check(net, [(X, Y)] * 3).gap
    assert gap.metric == "loss"
    assert gap.states == pytest.approx(dict(reference.states))


@pytest.mark.parametrize("convert", [float, np.float32, torch.Tensor.numpy, lambda value: value[None]])
def test_a_loss_may_be_any_number(net, convert):
    report = vs.check(net, [(X, Y)] * 2, loss=lambda out, y: convert(F.cross_entropy(out, y)))
    assert report.gap.metric == "loss"


@pytest.mark.parametrize("value", [None, {}, torch.zeros(3), "x", np.zeros(2)])
def test_a_loss_that_is_no_number_is_refused(net, value):
    with pytest.raises(vs.ModelError, match="expected one number"):
        vs.check(net, [(X, Y)], loss=lambda out, y: value)


def test_endless_loaders_are_drawn_from_as_far_as_asked(net):
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield X, Y

    vs.check(net, endless(), max_batches=3)
    assert len(drawn) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_that_persist_serve_again(net, workers):
    loader = DataLoader(TensorDataset(X, Y), 4, num_workers=workers, persistent_workers=workers > 0)
    assert vs.recalibrate(net, loader, max_batches=2).batches == 2
    assert vs.recalibrate(net, loader).batches == 3
    assert len(list(loader)) == 3


def test_one_sample_is_enough_for_maps(net):
    assert vs.check(net, [(X[:1], Y[:1])]).gap.steps[0].stderr is None
