"""Loaders that are built again with one setting changed."""

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from treatment import codes, digest, images, learnt, same, stack

import varshift as vs
from varshift.data import DistributedRandomReshuffleSampler, RandomReshuffleSampler, SingleShuffleSampler
from varshift.fixes import Refused, Surgery
from varshift.fixes._loader import DropLast, Reshuffle, dropping_last, reshuffling

DATA = TensorDataset(torch.arange(33.0)[:, None])


def gather(items):
    return torch.cat([item[0] for item in items])


def settle(_):
    return None


class OwnLoader(DataLoader):
    """A subclass with arguments of its own."""

    def __init__(self, extra, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


class Stream(IterableDataset):
    """Samples without an end that is known."""

    def __iter__(self):
        return iter(torch.arange(33.0)[:, None])


def sizes(loader):
    return [len(batch if isinstance(batch, torch.Tensor) else batch[0]) for batch in loader]


def order(loader):
    return torch.cat([batch if isinstance(batch, torch.Tensor) else batch[0] for batch in loader]).flatten()


def settings_of(loader):
    changed = ("drop_last", "sampler", "batch_sampler", "_iterator", "_DataLoader__initialized")
    return {name: value for name, value in vars(loader).items() if name not in changed}


@pytest.mark.parametrize("cure", [dropping_last, reshuffling])
def test_all_other_settings_are_kept(cure):
    loader = OwnLoader(
        "kept",
        DATA,
        8,
        num_workers=2,
        collate_fn=gather,
        worker_init_fn=settle,
        generator=torch.Generator().manual_seed(3),
        prefetch_factor=3,
        persistent_workers=True,
        timeout=5,
    )
    before = dict(vars(loader))
    other = cure(loader)
    assert type(other) is OwnLoader
    assert settings_of(other) == settings_of(loader)
    assert vars(loader) == before


def test_the_incomplete_last_batch_is_left_out():
    for shuffle in (False, True):
        loader = DataLoader(DATA, 8, shuffle=shuffle)
        assert sizes(loader)[-1] == 1
        other = dropping_last(loader)
        assert sizes(other) == [8] * 4
        assert len(other) == 4
        assert other.drop_last
        assert sizes(loader)[-1] == 1
    sampled = DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 8, drop_last=False))
    assert sizes(dropping_last(sampled)) == [8] * 4
    assert sizes(dropping_last(DataLoader(Stream(), 8))) == [8] * 4


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ([torch.ones(3, 1)], "is a list.*drop_last=True"),
        (None, "pass loader="),
        (DataLoader(DATA, 8, drop_last=True), "already"),
        (DataLoader(DATA, 64), "nothing would be left"),
        (DataLoader(DATA, batch_size=None), "the data set makes the batches"),
        (DataLoader(DATA, batch_sampler=[[0, 1], [2]]), "from a list"),
    ],
)
def test_what_cannot_drop_is_refused_with_the_reason(loader, reason):
    with pytest.raises(Refused, match=reason):
        dropping_last(loader)


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(DATA, 8),
        DataLoader(DATA, 8, sampler=SingleShuffleSampler(DATA, seed=0)),
        DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 8, drop_last=False)),
        DataLoader(DATA, 8, sampler=DistributedSampler(DATA, 1, 0)),
        DataLoader(DATA, batch_size=None),
    ],
)
def test_every_epoch_has_an_order_of_its_own(loader):
    before = order(loader)
    assert torch.equal(order(loader), before)
    other = reshuffling(loader)
    first, second = order(other), order(other)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort()[0], torch.arange(33.0))
    assert torch.equal(second.sort()[0], torch.arange(33.0))
    assert torch.equal(order(loader), before)
    if loader.batch_size is not None:
        assert sizes(other) == sizes(loader)


def test_processes_share_an_epoch_out():
    shares = [
        reshuffling(DataLoader(DATA, 8, sampler=DistributedSampler(DATA, 2, rank, seed=4))) for rank in (0, 1)
    ]
    assert all(isinstance(one.sampler, DistributedRandomReshuffleSampler) for one in shares)
    both = torch.cat([order(one) for one in shares])
    assert torch.equal(both.unique(), torch.arange(33.0))
    assert len(both) == 34


def test_the_generator_decides_the_order():
    loaders = [DataLoader(DATA, 8, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*(order(reshuffling(one)) for one in loaders))


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        ([torch.ones(3, 1)], "is a list.*shuffle=True"),
        (DataLoader(DATA, 8, shuffle=True), "shuffles in every epoch already"),
        (DataLoader(DATA, 8, sampler=RandomReshuffleSampler(DATA)), "already"),
        (DataLoader(Stream(), 8), "__iter__"),
        (
            DataLoader(DATA, 8, sampler=WeightedRandomSampler([1.0] * 33, 33)),
            "WeightedRandomSampler.*sampler=",
        ),
        (DataLoader(DATA, batch_sampler=[[0, 1], [2]]), "from a list"),
    ],
)
def test_what_cannot_shuffle_is_refused_with_the_line(loader, reason):
    with pytest.raises(Refused, match=reason):
        reshuffling(loader)


@pytest.mark.parametrize("edit", [DropLast(), Reshuffle()])
def test_undo_gives_the_loader_back(edit):
    loader = DataLoader(DATA, 8)
    surgery = Surgery(nn.Linear(1, 1), loader)
    (change,) = edit.apply(surgery)
    assert (str(change.site), change.method) == (":loader", "data")
    assert surgery.data is not loader
    surgery.undo()
    assert surgery.data is loader


def test_a_batch_of_one_is_no_longer_drawn():
    loader = images(257)
    network = learnt(lambda: stack(nn.BatchNorm2d(8)))
    weights = digest(network)
    cured = vs.fix(network, loader=loader, select=["VS301"])
    assert codes(cured.before) == ["VS301"]
    assert codes(cured.after) == []
    assert cured.loader.drop_last
    assert not loader.drop_last
    statistics = {name for name, _ in network.named_buffers()}  # the averages held that batch
    weights, after = (
        {name: value for name, value in state.items() if name not in statistics}
        for state in (weights, digest(cured.model))
    )
    assert same(after, weights)
    assert [change.cure for change in cured.changes] == ["drop-last", "recalibrate", "recalibrate"]


def test_a_cure_that_is_not_wanted_is_left_out():
    with pytest.raises(vs.VarshiftError, match="drop_last=False must be True"):
        vs.fix(stack(nn.BatchNorm2d(8)), loader=images(257), cures={"drop-last": {"drop_last": False}})


class Sorted(Dataset):
    """Samples in the order of their class."""

    def __init__(self):
        inputs, targets = images(256).dataset.tensors
        places = targets.argsort(stable=True)
        self.inputs, self.targets = inputs[places], targets[places]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, place):
        return self.inputs[place], self.targets[place]


def test_batches_of_one_class_are_mixed():
    loader = DataLoader(Sorted(), 32)
    network = learnt(lambda: stack(nn.BatchNorm2d(8)), loader, epochs=20)
    cured = vs.fix(network, loader=loader, select=["VS304"], unsafe=True)
    assert codes(cured.before) == ["VS304"]
    assert codes(cured.after) == []
    assert isinstance(cured.loader.sampler, RandomSampler)
    assert isinstance(loader.sampler, SequentialSampler)
