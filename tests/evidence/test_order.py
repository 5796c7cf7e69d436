"""The composition of batches: what samplers say, purity, and batches redrawn on a real network."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, TensorDataset

from varshift.evidence import Gathering, Subject
from varshift.evidence._composition import epochs, shuffles

DATA = TensorDataset(torch.arange(24.0)[:, None], torch.arange(24) % 3)


class SameBatches(Sampler):
    """The same batches in every epoch, in a new order; it changes its own list in place."""

    def __init__(self, reorders=True):
        self.batches = [list(range(start, start + 4)) for start in range(0, 24, 4)]
        self.reorders, self.epoch = reorders, 0

    def __iter__(self):
        self.epoch += 1
        if self.reorders:
            self.batches.append(self.batches.pop(0))
        yield from self.batches


class Fresh(Sampler):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self):
        yield from torch.randperm(24, generator=self.generator).view(6, 4).tolist()


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (DataLoader(DATA, 4), (False, 1.0, False)),
        (DataLoader(DATA, 4, shuffle=True), (True, 0.0, True)),
        (DataLoader(DATA, batch_sampler=SameBatches()), (None, 1.0, True)),
        (DataLoader(DATA, batch_sampler=SameBatches(False)), (None, 1.0, False)),
        (DataLoader(DATA, batch_sampler=Fresh()), (None, 0.0, True)),
        (DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False)), (True, 0.0, True)),
        ([1, 2], (None, 1.0, False)),
        (iter([1]), (None, None, None)),
        (DataLoader(DATA, batch_size=None), (None, None, None)),
    ],
)
def test_what_two_epochs_of_a_loader_have_in_common(loader, expected):
    state = torch.get_rng_state()
    assert (shuffles(loader), *epochs(loader)) == expected
    assert torch.equal(state, torch.get_rng_state())


def test_a_sampler_of_the_users_stays_where_it_is():
    sampler, fresh = SameBatches(), Fresh()
    before, state = copy.deepcopy(sampler.batches), fresh.generator.get_state()
    epochs(DataLoader(DATA, batch_sampler=sampler))
    epochs(DataLoader(DATA, batch_sampler=fresh))
    assert (sampler.batches, sampler.epoch) == (before, 0)
    assert torch.equal(fresh.generator.get_state(), state)


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    for _ in range(60):
        net(torch.randn(32, 6))
    return net.eval()


def samples(count=480, classes=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=generator), torch.randint(classes, (count,), generator=generator)


def order_of(loader, **settings):
    gathering = Gathering(Subject(network(), loader=loader, **settings))
    gathering.gather({"order"})
    return gathering.evidence.order


def test_random_batches_are_as_pure_as_chance_has_it_and_nothing_is_redrawn():
    order = order_of(DataLoader(TensorDataset(*samples()), 32, shuffle=True))
    assert abs(order.labels.share - order.labels.chance) < 4 * order.labels.error
    assert order.labels.values == 3
    assert order.redrawn is None


@pytest.mark.parametrize("max_batches", [12, 4])
def test_a_sorted_data_set_is_seen_even_where_all_drawn_batches_are_of_one_class(max_batches):
    x, y = samples()
    loaded = []

    class Watching(TensorDataset):
        def __getitem__(self, index):
            loaded.append(index)
            return super().__getitem__(index)

    order = order_of(DataLoader(Watching(x, y.sort().values), 32), max_batches=max_batches)
    assert order.labels.share > 0.95
    assert order.labels.chance < 0.5
    assert order.labels.one_kind
    assert order.labels.in_data_set == (max_batches == 4)
    assert order.redrawn.source == "data set"
    assert order.redrawn.batches >= 4
    assert len(loaded) > 32 * max_batches


@pytest.mark.parametrize("kind", [torch.float32, torch.bool, "one-hot"])
def test_classes_of_any_type(kind):
    x, y = samples(classes=2)
    y = y.sort().values
    targets = nn.functional.one_hot(y).float() if kind == "one-hot" else y[:, None].to(kind)
    net, loss = network(), lambda out, target: out.sum()
    subject = Subject(net, loader=DataLoader(TensorDataset(x, targets), 32), loss=loss)
    gathering = Gathering(subject)
    gathering.gather({"order"})
    assert gathering.evidence.order.labels.one_kind


def test_fields_that_name_a_group_are_compared_too_and_lengths_are_not():
    x, _ = samples()
    group = torch.arange(480) // 32
    batches = [
        {
            "x": x[i],
            "recording": group[i],
            "length": group[i],
            "name": [f"r{n}" for n in group[i].tolist()],
            "id": i,
        }
        for i in torch.arange(480).split(32)
    ]
    order = order_of(batches, forward=lambda model, batch: model(batch["x"]).square().mean())
    assert {one.name for one in order.groups} == {"recording", "name"}
    assert all(one.share == 1 and one.chance < 0.3 for one in order.groups)
    assert order.listed
    assert order.labels is None
    assert order.redrawn.source == "batches"


def test_padded_batches_of_different_lengths_are_not_redrawn():
    lengths = torch.randint(4, 9, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = [(torch.randn(16, length, 6), torch.full((16,), i % 3)) for i, length in enumerate(lengths)]
    order = order_of(batches, forward=lambda model, batch: model(batch[0].mean(1)).square().mean())
    assert any(purity is not None and purity.one_kind for purity in (order.labels, *order.groups))
    assert order.redrawn is None
