"""The loader over whole sets: orders, augmentation, exact resumption, and the check that reads it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import varshift as vs
from varshift import DataError
from varshift.data import ActiveBias, ActiveBiasSampler, DistributedRandomReshuffleSampler, batch_reuse
from varshift_lab.data import Augmentation, EpochLoader, Images, digit_images, pad_crop_flip
from varshift_lab.data import _epoch_loader as module


def numbered(count=23, size=4):
    """Images whose first pixel is their number."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    pixels[:, 0, 0, 0] = torch.arange(count)
    return Images(pixels, torch.arange(count))


def epoch(loader):
    batches = list(loader)
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([labels for _, labels in batches])


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("augmentation", [None, pad_crop_flip(1, border="reflect", cutout=2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_the_augmented_epoch_in_the_order_of_the_sampler(augmentation, drop_last):
    images = numbered()
    loader = EpochLoader(images, 5, augmentation=augmentation, drop_last=drop_last, seed=4)
    reference = list(DistributedRandomReshuffleSampler(len(images), seed=4))
    batches = list(loader)
    assert len(batches) == len(loader) == (4 if drop_last else 5)
    assert [len(labels) for _, labels in batches] == [5] * 4 + [3] * (not drop_last)
    labels = torch.cat([labels for _, labels in batches])
    assert labels.tolist() == reference[: len(labels)]
    whole = (augmentation or Augmentation()).epoch(images, seed=4, epoch=0)
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), whole[labels])


def test_each_iterator_is_a_new_epoch_with_a_new_order_and_augmentation():
    loader = EpochLoader(numbered(), 5, augmentation=pad_crop_flip(1))
    (first, one), (second, two) = epoch(loader), epoch(loader)
    assert one.tolist() != two.tolist()
    assert sorted(one.tolist()) == sorted(two.tolist()) == list(range(23))
    assert not torch.equal(first[one.argsort()], second[two.argsort()])


def test_single_shuffle_keeps_its_batches_and_not_its_augmentation():
    loader = EpochLoader(numbered(), 5, order="single", augmentation=pad_crop_flip(1))
    (first, one), (second, two) = epoch(loader), epoch(loader)
    assert one.tolist() == two.tolist() != list(range(23))
    assert not torch.equal(first, second)
    assert batch_reuse(loader).overlap == 1
    assert batch_reuse(EpochLoader(numbered(), 5)).overlap == 0


def test_the_stored_order():
    images = numbered()
    loader = EpochLoader(images, 5, order="stored")
    for _ in range(2):
        inputs, labels = epoch(loader)
        assert labels.tolist() == list(range(23))
        assert torch.equal(inputs, images.normalised())


@pytest.mark.parametrize("ahead", [1, 4096, 1 << 30])
@pytest.mark.parametrize("order", ["reshuffle", "single", "stored"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_run_that_is_interrupted_anywhere_goes_on_exactly(monkeypatch, ahead, order, drop_last):
    monkeypatch.setattr(module, "_AHEAD", {"cpu": ahead, "other": ahead})

    def build(seed):
        return EpochLoader(
            numbered(), 5, order=order, augmentation=pad_crop_flip(1), drop_last=drop_last, seed=seed
        )

    loader, batches, states = build(7), [], []
    states.append(copy.deepcopy(loader.state_dict()))
    for _ in range(3):
        for batch in loader:
            batches.append(batch)
            states.append(pickle.loads(pickle.dumps(loader.state_dict())))
    for done, state in enumerate(states):
        resumed = build(0)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = []
        while len(rest) < len(batches) - done:
            rest += list(resumed)
        assert same(rest, batches[done:])


def test_the_place_is_that_of_the_last_batch_handed_out_after_a_break():
    loader, whole = (EpochLoader(numbered(), 5, seed=1) for _ in range(2))
    expected = list(whole)
    for place, _ in enumerate(loader):
        if place == 1:
            break
    resumed = EpochLoader(numbered(), 5, seed=1)
    resumed.load_state_dict(loader.state_dict())
    assert same(list(resumed), expected[2:])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_copies_go_on_like_the_original(copied):
    loader = EpochLoader(numbered(), 5, augmentation=pad_crop_flip(1))
    batches = iter(loader)
    next(batches)
    other = copied(loader)
    assert same(list(other), list(batches))
    assert same(list(other), list(loader))


def test_an_epoch_can_be_chosen():
    first, second = (EpochLoader(numbered(), 5, augmentation=pad_crop_flip(1)) for _ in range(2))
    epoch(first)
    second.set_epoch(1)
    assert same(list(first), list(second))


def test_several_iterators_are_epochs_of_their_own():
    loader, alone = (EpochLoader(numbered(), 5, augmentation=pad_crop_flip(1)) for _ in range(2))
    expected = list(alone) + list(alone)
    pairs = list(zip(loader, loader, strict=True))
    assert same([a for a, _ in pairs] + [b for _, b in pairs], expected)


def test_ranks_share_an_epoch_and_agree_on_the_augmentation_of_a_sample():
    images, augmentation = numbered(24), pad_crop_flip(1)
    alone = EpochLoader(images, 6, augmentation=augmentation, seed=2)
    inputs, labels = epoch(alone)
    for rank in (0, 1):
        sampler = DistributedRandomReshuffleSampler(24, num_replicas=2, rank=rank, seed=2)
        loader = EpochLoader(images, 3, order=sampler, augmentation=augmentation, seed=2)
        assert len(loader) == 4
        own, own_labels = epoch(loader)
        assert torch.equal(own, inputs[rank::2])
        assert torch.equal(own_labels, labels[rank::2])


def test_ids_come_as_from_an_indexed_data_set_and_feed_active_bias():
    images = numbered(12)
    bias = ActiveBias(12, score="difficulty", burn_in=0, smoothing=0.0)
    for _ in range(2):
        bias.record(torch.arange(12), probabilities=[0.5] * 3 + [1.0] * 9)
    loader = EpochLoader(images, 4, order=ActiveBiasSampler(bias), ids=True)
    for (inputs, labels), ids in loader:
        assert set(ids.tolist()) <= {0, 1, 2}
        assert torch.equal(labels, images.labels[ids])
        assert torch.equal(inputs, images.normalised()[ids])
        bias.record(ids, probabilities=[0.5] * len(ids))
    first = iter(loader)
    next(first)
    again = EpochLoader(images, 4, order=ActiveBiasSampler(bias), ids=True)
    again.load_state_dict(loader.state_dict())
    bias.record(torch.arange(12), probabilities=[0.1] * 12)
    assert [ids.tolist() for _, ids in again] == [ids.tolist() for _, ids in first]


def test_a_sampler_of_another_set_is_refused():
    with pytest.raises(DataError, match=r"order yields index .* there are 23 images"):
        list(EpochLoader(numbered(), 5, order=DistributedRandomReshuffleSampler(50)))


def test_types_and_layout():
    loader = EpochLoader(numbered(), 5, dtype=torch.bfloat16, channels_last=True)
    for inputs, _ in loader:
        assert inputs.dtype == torch.bfloat16
        assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert loader.dataset[3][1] == 3
    assert torch.equal(loader.dataset[3][0], loader.images.normalised()[3])


def build(dropout):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.Dropout(dropout),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 10),
    )


def test_check_and_recalibrate_take_it_for_a_loader():
    net, reference = build(0.5), build(0.5)
    loader, again = (
        EpochLoader(digit_images(), 64, augmentation=Augmentation(pad=1), drop_last=True) for _ in range(2)
    )
    for network in (net, reference):
        torch.manual_seed(1)
        for inputs, _ in again:
            network(inputs)
        again.set_epoch(0)
    assert "VS101" in vs.check(net, loader, max_batches=4).findings_by_code
    loader.set_epoch(0)
    vs.recalibrate(net, loader)
    vs.recalibrate(reference, list(again))
    assert torch.equal(net[2].running_var, reference[2].running_var)


def test_the_check_reads_the_last_batch_off_it():
    images = digit_images().take(slice(0, 65))
    kept = vs.check(build(0.0), EpochLoader(images, 64))
    dropped = vs.check(build(0.0), EpochLoader(images, 64, drop_last=True))
    assert "VS301" in kept.findings_by_code
    assert "VS301" not in dropped.findings_by_code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": 24, "drop_last": True}, "batch_size=24 leaves no full batch of 23 samples"),
        ({"batch_size": 4, "order": "random"}, "order='random' must be 'reshuffle'"),
        ({"batch_size": 4, "order": [1, 2]}, r"order=\[1, 2\] must be"),
        ({"batch_size": 4, "seed": 0.5}, r"seed=0\.5 must be a whole number"),
        ({"batch_size": 4, "dtype": torch.uint8}, "must be a floating-point type"),
        ({"batch_size": 4, "augmentation": Augmentation(pad=4, border="wrap")}, "pad=4 must be below the 4"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochLoader(numbered(), **arguments)


def test_an_empty_set_and_a_foreign_state_are_refused():
    with pytest.raises(ValueError, match="empty"):
        EpochLoader(numbered().take([]), 4)
    loader = EpochLoader(numbered(), 5)
    with pytest.raises(ValueError, match=r"state_dict lacks \['order', 'seed'\]"):
        loader.load_state_dict({})
    with pytest.raises(ValueError, match="state_dict is of 12 samples"):
        loader.load_state_dict(EpochLoader(numbered(12), 5).state_dict())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gets_the_same_batches_without_waiting_for_it():
    here = EpochLoader(numbered(), 5, augmentation=pad_crop_flip(1))
    there = EpochLoader(numbered(), 5, augmentation=pad_crop_flip(1), device="cuda")
    expected, batches = list(here), iter(there)
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found = [(inputs.cpu(), labels.cpu()) for inputs, labels in [first, *rest]]
    assert same(found, expected)
