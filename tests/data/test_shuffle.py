"""The order of the samples: what an epoch is, who shares it, and how to go on after an interruption."""

import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from varshift.data import (
    DistributedRandomReshuffleSampler,
    DistributedSingleShuffleSampler,
    RandomReshuffleSampler,
    SingleShuffleSampler,
)

ALONE = (SingleShuffleSampler, RandomReshuffleSampler)
SHARED = (DistributedSingleShuffleSampler, DistributedRandomReshuffleSampler)
ALL = ALONE + SHARED


def epochs(sampler, number):
    return [list(sampler) for _ in range(number)]


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None)
@given(samples=st.integers(1, 50), seed=st.integers(-(2**70), 2**70))
def test_every_epoch_holds_every_sample_once(kind, samples, seed):
    sampler = kind(samples, seed=seed)
    assert len(sampler) == samples
    for order in epochs(sampler, 3):
        assert sorted(order) == list(range(samples))


@pytest.mark.parametrize("kind", ALL)
def test_only_reshuffling_gives_a_new_order_in_a_new_epoch(kind):
    orders = {tuple(order) for order in epochs(kind(200, seed=0), 5)}
    assert len(orders) == (1 if "Single" in kind.__name__ else 5)
    assert tuple(range(200)) not in orders


@pytest.mark.parametrize("kind", ALL)
def test_the_seed_decides(kind):
    assert epochs(kind(100, seed=3), 2) == epochs(kind(100, seed=3), 2)
    assert epochs(kind(100, seed=3), 2) != epochs(kind(100, seed=4), 2)


def test_neighbouring_seeds_share_no_epochs():
    orders = [tuple(order) for seed in range(4) for order in epochs(RandomReshuffleSampler(30, seed=seed), 4)]
    assert len(set(orders)) == 16


@pytest.mark.parametrize("kind", ALONE)
def test_without_a_seed_torch_or_the_generator_decides(kind):
    def drawn(**arguments):
        return list(kind(100, **arguments))

    torch.manual_seed(5)
    first = drawn()
    assert drawn() != first
    torch.manual_seed(5)
    assert drawn() == first
    generator = torch.Generator().manual_seed(5)
    assert drawn(generator=generator) == first
    assert drawn(generator=generator) != first


@pytest.mark.parametrize("kind", ALL)
def test_an_order_leaves_torchs_generator_alone(kind):
    sampler = kind(10, seed=1)
    before = torch.get_rng_state()
    epochs(sampler, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_permutations_are_equally_likely():
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for order in epochs(RandomReshuffleSampler(3, seed=11), 6000):
        counts[tuple(order)] += 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert chi_square < 25.7  # 5 degrees of freedom, one in ten thousand


@pytest.mark.parametrize("kind", ALL)
def test_the_numbers_of_set_epoch_are_those_that_count_themselves(kind):
    by_itself, told = kind(40, seed=2), kind(40, seed=2)
    for epoch in range(4):
        told.set_epoch(epoch)
        assert list(told) == list(by_itself)
    told.set_epoch(1)
    again = kind(40, seed=2)
    assert list(told) == epochs(again, 2)[1]


@pytest.mark.parametrize("kind", ALL)
def test_several_iterators_are_epochs_of_their_own(kind):
    one, two = epochs(kind(30, seed=9), 2)
    sampler = kind(30, seed=9)
    both = list(zip(iter(sampler), iter(sampler), strict=True))
    assert [pair[0] for pair in both] == one
    assert [pair[1] for pair in both] == two


def test_iterators_that_nobody_uses_do_not_count():
    sampler = RandomReshuffleSampler(30, seed=9)
    unused = [iter(sampler) for _ in range(3)]
    assert list(sampler) == epochs(RandomReshuffleSampler(30, seed=9), 1)[0]
    assert len(unused) == 3


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_one_epoch_after_the_other(batch_size, workers):
    sampler = RandomReshuffleSampler(20, seed=4)
    loader = DataLoader(
        torch.arange(20),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    want = epochs(RandomReshuffleSampler(20, seed=4), 3)
    got = [torch.cat([batch.reshape(-1) for batch in loader]).tolist() for _ in range(3)]
    assert got == want
    assert len(loader) == (20 if batch_size is None else 5)


# ---------------------------------------------------------------------- shares


@settings(deadline=None)
@given(
    samples=st.integers(1, 40),
    replicas=st.integers(1, 9),
    drop_last=st.booleans(),
    epoch=st.integers(0, 5),
    kind=st.sampled_from(SHARED),
)
def test_shares_are_cut_as_torch_cuts_them(samples, replicas, drop_last, epoch, kind):
    if drop_last and samples < replicas:
        return
    whole = kind(samples, 1, 0, seed=7)
    whole.set_epoch(epoch)
    order = list(whole)
    for rank in range(replicas):
        mine = kind(samples, replicas, rank, seed=7, drop_last=drop_last)
        mine.set_epoch(epoch)
        share = list(mine)
        torchs = DistributedSampler(range(samples), replicas, rank, shuffle=False, drop_last=drop_last)
        assert share == [order[place] for place in torchs]
        assert len(share) == len(mine) == len(torchs)


def test_a_share_is_a_distributed_sampler_so_that_frameworks_keep_it():
    assert isinstance(DistributedRandomReshuffleSampler(4, 1, 0), DistributedSampler)


def test_a_process_alone_needs_no_group():
    sampler = DistributedRandomReshuffleSampler(4)
    assert (sampler.num_replicas, sampler.rank) == (1, 0)


# ---------------------------------------------------------------------- resumption


@pytest.mark.parametrize("kind", ALL)
@settings(deadline=None)
@given(drawn=st.integers(0, 45))
def test_a_state_goes_on_exactly(kind, drawn):
    sampler = kind(15, seed=6)
    endless = itertools.chain.from_iterable(iter(sampler) for _ in range(6))
    list(itertools.islice(endless, drawn))
    state = sampler.state_dict()
    copies = [kind(15, seed=0), pickle.loads(pickle.dumps(sampler)), copy.deepcopy(sampler)]
    copies[0].load_state_dict(state)
    want = list(itertools.islice(endless, 40))
    for other in copies:
        rest = itertools.chain.from_iterable(iter(other) for _ in range(6))
        assert list(itertools.islice(rest, 40)) == want


@pytest.mark.parametrize("kind", ALL)
def test_a_state_survives_the_end_of_an_epoch(kind):
    sampler = kind(8, seed=1)
    want = epochs(sampler, 3)[2]
    finished, last = kind(8), kind(8)
    other = kind(8, seed=1)
    epochs(other, 2)
    finished.load_state_dict(other.state_dict())
    assert list(finished) == want

    # All indices are drawn and the loop has not yet seen the end: the resumed epoch is over at once.
    other = kind(8, seed=1)
    list(other)
    list(itertools.islice(iter(other), 8))
    last.load_state_dict(other.state_dict())
    assert list(last) == []
    assert list(last) == want


@pytest.mark.parametrize("consumed", [0, 3, 10])
def test_workers_that_draw_ahead_do_not_move_the_place(consumed):
    sampler = RandomReshuffleSampler(10, seed=1)
    list(sampler)
    order = list(sampler)  # drawn ahead to the end
    resumed = RandomReshuffleSampler(10)
    resumed.load_state_dict(sampler.state_dict(consumed=consumed))
    assert list(resumed) == order[consumed:]
    assert list(resumed) == list(sampler)


def test_set_epoch_keeps_the_place_of_the_resumed_epoch_only():
    sampler = RandomReshuffleSampler(10, seed=1)
    list(sampler)
    order = list(sampler)
    state = sampler.state_dict(consumed=4)
    for epoch, want in ((1, order[4:]), (0, epochs(RandomReshuffleSampler(10, seed=1), 1)[0])):
        resumed = RandomReshuffleSampler(10)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert list(resumed) == want


def test_set_epoch_abandons_an_epoch():
    sampler = RandomReshuffleSampler(10, seed=1)
    list(itertools.islice(iter(sampler), 3))
    assert sampler.state_dict()["position"] == 3
    sampler.set_epoch(1)
    assert sampler.state_dict() == {"seed": 1, "epoch": 1, "position": 0, "samples": 10}


def test_the_state_of_one_rank_serves_all():
    first = DistributedRandomReshuffleSampler(10, 2, 0, seed=3)
    second = DistributedRandomReshuffleSampler(10, 2, 1, seed=3)
    shares = [list(first), list(second)]
    for rank in (0, 1):
        resumed = DistributedRandomReshuffleSampler(10, 2, rank)
        resumed.load_state_dict(first.state_dict(consumed=2))
        assert list(resumed) == shares[rank][2:]


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", ALL)
def test_empty_data_is_refused(kind):
    name = "dataset" if kind in SHARED else "data_source"
    for empty in ([], 0):
        with pytest.raises(ValueError, match=rf"{name} is an empty \w+: at least one sample"):
            kind(empty)
    with pytest.raises(ValueError, match=f"{name}=-1 must be a whole number of at least 0"):
        kind(-1)


@pytest.mark.parametrize("kind", ALL)
def test_data_without_a_length_are_refused(kind):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(ValueError, match="Stream without a length"):
        kind(Stream())


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"seed=0\.5 must be a whole number"):
        RandomReshuffleSampler(3, seed=0.5)
    with pytest.raises(ValueError, match=r"seed=1 and generator are both given"):
        RandomReshuffleSampler(3, seed=1, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"rank=2 must be below num_replicas=2"):
        DistributedRandomReshuffleSampler(3, 2, 2)
    with pytest.raises(ValueError, match=r"num_replicas=0 must be a whole number of at least 1"):
        DistributedRandomReshuffleSampler(3, 0, 0)
    with pytest.raises(ValueError, match=r"dataset has 3 samples for num_replicas=4"):
        DistributedRandomReshuffleSampler(3, 4, 0, drop_last=True)
    with pytest.raises(ValueError, match=r"epoch=-1 must be"):
        RandomReshuffleSampler(3).set_epoch(-1)


def test_foreign_states_are_refused():
    sampler = DistributedRandomReshuffleSampler(12, 2, 0)
    state = sampler.state_dict(consumed=3)
    with pytest.raises(ValueError, match="state_dict is of 12 samples and this sampler has 13"):
        RandomReshuffleSampler(13).load_state_dict(state)
    with pytest.raises(ValueError, match=r"lacks \['epoch', 'position', 'samples'\]"):
        RandomReshuffleSampler(13).load_state_dict({"seed": 1})
    with pytest.raises(ValueError, match="inside an epoch of 2 processes and there are 3"):
        DistributedRandomReshuffleSampler(12, 3, 0).load_state_dict(state)
    other = DistributedRandomReshuffleSampler(12, 3, 0, seed=9)
    other.load_state_dict({**state, "position": 0})
    assert list(other) == list(DistributedRandomReshuffleSampler(12, 3, 0))
