"""Whether two epochs used the same batches: by ids and by contents, whatever the order."""

import dataclasses
import itertools
import math
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from varshift.data import (
    BatchFingerprint,
    DistributedRandomReshuffleSampler,
    DistributedSingleShuffleSampler,
    RandomReshuffleSampler,
    SingleShuffleSampler,
    batch_reuse,
)


def print_of(*batches):
    return BatchFingerprint.of(batches)


# ---------------------------------------------------------------------- the set of batches


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    randomness=st.randoms(use_true_random=False),
)
def test_only_the_partition_matters(sizes, randomness):
    numbers = iter(range(100))
    batches = [[next(numbers) for _ in range(size)] for size in sizes]
    shuffled = [randomness.sample(batch, len(batch)) for batch in randomness.sample(batches, len(batches))]
    first, second = print_of(*batches), print_of(*shuffled)
    assert first == second
    assert first.overlap(second) == 1.0
    assert (len(first), first.samples) == (len(sizes), sum(sizes))


def test_overlap_counts_common_batches():
    first = print_of([0, 1], [2, 3], [4, 5], [6, 7])
    assert first.overlap(print_of([1, 0], [2, 4], [3, 5], [7, 6])) == 0.5
    assert first.overlap(print_of([1, 0])) == 0.25
    assert print_of([1, 0]).overlap(first) == 0.25
    assert first.overlap(print_of([0, 2], [1, 3])) == 0.0
    assert print_of([0], [0], [1]).overlap(print_of([0], [1], [1])) == pytest.approx(2 / 3)


def test_repeated_samples_count():
    assert print_of([0, 0, 1]) != print_of([0, 1, 1])
    assert print_of([0, 0, 1]) != print_of([0, 1])
    assert print_of([0, 0, 1]) == print_of([0, 1, 0])


def test_a_merged_fingerprint_is_that_of_all_processes():
    first, second = print_of([0, 1]), print_of([2, 3], [4])
    first.merge(second)
    assert first == print_of([2, 3], [0, 1], [4])
    assert first.samples == 5


def test_memory_is_16_bytes_per_batch():
    small = print_of(*(torch.full((2, 3), float(i)) for i in range(50)))
    large = print_of(*(torch.full((64, 3000), float(i)) for i in range(50)))
    assert len(pickle.dumps(large)) == len(pickle.dumps(small))
    assert pickle.loads(pickle.dumps(large)) == large


@pytest.mark.parametrize("sizes", [(1,), (2,), (1, 1), (2, 2), (2, 2, 2), (3, 3), (2, 1), (3, 2), (4, 1, 1)])
def test_chance_is_the_mean_over_all_partitions(sizes):
    def cut(order):
        ends = itertools.accumulate(sizes)
        return print_of(*(order[end - size : end] for end, size in zip(ends, sizes, strict=True)))

    whole = cut(list(range(sum(sizes))))
    overlaps = [whole.overlap(cut(order)) for order in itertools.permutations(range(sum(sizes)))]
    assert whole.chance() == pytest.approx(math.fsum(overlaps) / len(overlaps))


def test_chance_tells_when_an_overlap_says_nothing():
    assert print_of([0], [1], [2]).chance() == pytest.approx(1)
    assert print_of([0, 1, 2]).chance() == pytest.approx(1)
    assert print_of(*torch.arange(1024).reshape(-1, 32)).chance() < 1e-50


# ---------------------------------------------------------------------- contents


@dataclasses.dataclass
class Pair:
    inputs: torch.Tensor
    targets: torch.Tensor


X = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6)


@pytest.mark.parametrize(
    "form",
    [
        lambda x, y: x,
        lambda x, y: [x, y],
        lambda x, y: ((x, x + 1), y),
        lambda x, y: {"image": x, "label": y},
        lambda x, y: [{"image": x}, y],
        lambda x, y: Pair(x, y),
        lambda x, y: [[x, y], x[:, 0, 0]],
        lambda x, y: {"x": x.numpy(), "name": [f"{float(row[0, 0])}" for row in x]},
        lambda x, y: [list(x), [{"boxes": row, "label": 1} for row in x]],
        lambda x, y: [{"image": row} for row in x],
        lambda x, y: torch.nested.as_nested_tensor(list(x), layout=torch.jagged),
        lambda x, y: x.flatten(1).to_sparse(),
        lambda x, y: torch.complex(x, x),
        lambda x, y: {"x": x, "epoch": torch.tensor(3), "note": "same for all", "nothing": None},
    ],
)
@pytest.mark.parametrize("samples", [2, 6])
def test_contents_tell_in_every_form(form, samples):
    order = torch.tensor(random.Random(3).sample(range(samples), samples))
    x, other = X[:samples], X[:samples].clone()
    y = torch.zeros(samples, dtype=torch.int64)
    other[-1, -1, -1] += 1e-6
    assert print_of(form(x, y)) == print_of(form(x[order], y))
    assert print_of(form(x, y)) != print_of(form(other, y))


@settings(deadline=None)
@given(
    values=st.lists(st.integers(0, 255), min_size=1, max_size=6),
    dtypes=st.lists(
        st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]), min_size=2, max_size=2
    ),
)
def test_whole_numbers_are_compared_by_value(values, dtypes):
    one, two = (torch.tensor(values).to(dtype) for dtype in dtypes)
    assert print_of(one) == print_of(two) == print_of(values) == print_of(np.array(values))


@settings(deadline=None)
@given(values=st.lists(st.floats(width=16, allow_infinity=True, allow_nan=True), min_size=1, max_size=6))
def test_floats_are_compared_by_value(values):
    wide = torch.tensor(values, dtype=torch.float64)
    prints = [print_of(wide.to(dtype)) for dtype in (torch.float16, torch.float32, torch.float64)]
    assert prints[0] == prints[1] == prints[2] == print_of(values)


def test_zero_has_no_sign_and_there_is_one_nan():
    assert print_of(torch.tensor([0.0])) == print_of(torch.tensor([-0.0]))
    odd = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert print_of(odd) == print_of(torch.tensor([float("nan")]))
    assert print_of(odd) != print_of(torch.tensor([0.0]))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.1])),
        (torch.tensor([2**40 + 1]), torch.tensor([2**40])),
        (torch.tensor([-1]), torch.tensor([255])),
        (torch.zeros(1, 2, 3), torch.zeros(1, 3, 2)),
        (torch.zeros(1, 2), torch.zeros(2, 1)),
        (["1"], [1]),
        (["a", "b"], ["ab", ""]),
        (
            [[torch.zeros(2), torch.ones(2)], torch.zeros(2)],
            [[torch.ones(2), torch.zeros(2)], torch.zeros(2)],
        ),
    ],
)
def test_different_values_differ(one, two):
    assert print_of(one) != print_of(two)


def test_strides_devices_and_gradients_do_not_matter():
    x = torch.randn(4, 3, 5, 5)
    assert print_of(x) == print_of(x.to(memory_format=torch.channels_last))
    assert print_of(x) == print_of(x.clone().requires_grad_())
    assert print_of(x[::2]) == print_of(x[::2].clone())
    assert print_of(torch.complex(x, x).conj()) == print_of(torch.complex(x, -x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_does_not_matter():
    x = torch.randn(4, 3)
    assert print_of([x, Y[:4]]) == print_of([x.cuda(), Y[:4].cuda()])


def test_empty_batches_and_rows():
    assert print_of(torch.zeros(0, 3)).samples == 0
    assert print_of(torch.zeros(2, 0)).samples == 2


def test_a_key_takes_the_ids_out_of_noisy_batches():
    def epoch():
        return [{"image": torch.randn(2, 3), "id": torch.tensor(ids)} for ids in ([0, 1], [2, 3])]

    key = lambda batch: batch["id"]  # noqa: E731
    assert BatchFingerprint.of(epoch(), key).overlap(BatchFingerprint.of(epoch(), key)) == 1.0
    assert BatchFingerprint.of(epoch()).overlap(BatchFingerprint.of(epoch())) == 0.0
    assert BatchFingerprint.of(epoch(), key) == print_of([0, 1], [2, 3])


def test_bad_fingerprints_are_named():
    with pytest.raises(ValueError, match="batch is a object without a tensor"):
        print_of(object())
    with pytest.raises(ValueError, match="without a tensor, an array or a list"):
        print_of(torch.tensor(3.0))
    with pytest.raises(ValueError, match="other has no batches"):
        print_of([1]).overlap(print_of())
    with pytest.raises(ValueError, match="this fingerprint has no batches"):
        print_of().overlap(print_of([1]))
    with pytest.raises(ValueError, match="this fingerprint has no batches"):
        print_of().chance()


# ---------------------------------------------------------------------- loaders

DATA = TensorDataset(torch.randn(64, 3, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 2)


class Reseeding(SequentialSampler):
    def __iter__(self):
        return iter(torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist())


class ShuffledBatches(BatchSampler):
    """Batches that are made once, in an order that changes."""

    def __iter__(self):
        batches = list(super().__iter__())
        return iter([batches[i] for i in torch.randperm(len(batches))])


FIXED = {
    "stored order": {"batch_size": 8},
    "single shuffle": {"batch_size": 8, "sampler": SingleShuffleSampler(64)},
    "a share without set_epoch": {"batch_size": 8, "sampler": DistributedSampler(DATA, 2, 1)},
    "a single-shuffle share": {"batch_size": 8, "sampler": DistributedSingleShuffleSampler(64, 2, 1)},
    "the same seed": {"batch_size": 8, "sampler": Reseeding(DATA)},
    "shuffled batches": {"batch_sampler": ShuffledBatches(SequentialSampler(DATA), 8, False)},
}
FRESH = {
    "shuffle": {"batch_size": 8, "shuffle": True},
    "shuffle from a generator": {"batch_size": 8, "shuffle": True, "generator": torch.Generator()},
    "replacement": {"batch_size": 8, "sampler": RandomSampler(DATA, replacement=True)},
    "reshuffling": {"batch_size": 8, "sampler": RandomReshuffleSampler(64), "drop_last": True},
    "a reshuffled share": {"batch_size": 8, "sampler": DistributedRandomReshuffleSampler(64, 2, 1)},
}


@pytest.mark.parametrize("by", ["ids", "contents"])
@pytest.mark.parametrize("case", [*FIXED, *FRESH])
def test_loaders_with_fixed_batches_are_told(case, by):
    loader = DataLoader(DATA, **(FIXED | FRESH)[case])
    reuse = batch_reuse(loader, by=by)
    assert reuse.overlap == (1.0 if case in FIXED else 0.0)
    assert reuse.chance < 1e-5
    assert reuse.by == by
    assert reuse.samples == (32 if "share" in case else 64)
    assert reuse.batches == reuse.samples // 8


def test_set_epoch_cures_a_share():
    class WithEpochs(DataLoader):
        epochs = 0

        def __iter__(self):
            self.sampler.set_epoch(self.epochs)
            self.epochs += 1
            return super().__iter__()

    loader = WithEpochs(DATA, batch_size=8, sampler=DistributedSampler(DATA, 2, 0))
    assert batch_reuse(loader, by="contents").overlap == 0.0


def test_ids_load_nothing_and_see_through_augmentation():
    class Augmented(Dataset):
        loaded = 0

        def __len__(self):
            return 64

        def __getitem__(self, index):
            self.loaded += 1
            return torch.randn(3)

    data = Augmented()
    loader = DataLoader(data, batch_size=8)
    assert batch_reuse(loader).overlap == 1.0
    assert data.loaded == 0
    assert batch_reuse(loader, by="contents").overlap == 0.0
    assert data.loaded == 128


def test_batches_that_the_data_set_made_are_compared_by_contents():
    class Cached(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return DATA.tensors[0][8 * index : 8 * index + 8]

    reuse = batch_reuse(DataLoader(Cached(), batch_size=None, shuffle=True))
    assert (reuse.overlap, reuse.by, reuse.batches, reuse.samples) == (1.0, "contents", 8, 64)


def test_streams_and_plain_lists():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.arange(32))

    assert batch_reuse(DataLoader(Stream(), batch_size=4)).by == "contents"
    assert batch_reuse(DataLoader(Stream(), batch_size=4)).overlap == 1.0
    batches = list(torch.arange(32).reshape(8, 4))
    assert batch_reuse(batches, key=lambda batch: batch % 8).overlap == 1.0


@pytest.mark.parametrize("by", ["ids", "contents"])
def test_looking_leaves_no_trace(by):
    generator = torch.Generator().manual_seed(4)
    sampler = RandomReshuffleSampler(64, seed=0)
    list(sampler)
    for arguments in ({"sampler": sampler}, {"shuffle": True, "generator": generator}, {"shuffle": True}):
        loader = DataLoader(DATA, batch_size=8, **arguments)

        def drawn(loader=loader):
            torch.manual_seed(7)
            return [batch[0] for batch in loader]

        places = generator.get_state(), sampler.state_dict()
        torch.manual_seed(3)
        before = torch.get_rng_state()
        batch_reuse(loader, by=by)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(generator.get_state(), places[0])
        assert sampler.state_dict() == places[1]
        want = drawn()
        generator.set_state(places[0])
        sampler.load_state_dict(places[1])
        batch_reuse(loader, by=by)
        assert all(torch.equal(one, two) for one, two in zip(want, drawn(), strict=True))


def test_looking_leaves_an_epoch_under_way():
    sampler, other = (RandomReshuffleSampler(64, seed=0) for _ in range(2))
    running = iter(sampler)
    begun = [next(running) for _ in range(5)]
    batch_reuse(DataLoader(DATA, batch_size=8, sampler=sampler))
    assert sampler.state_dict() == {"seed": 0, "epoch": 0, "position": 5, "samples": 64}
    assert begun + list(running) == list(other)
    assert list(sampler) == list(other)


def test_bad_loaders_are_named():
    with pytest.raises(ValueError, match="by='hash' must be"):
        batch_reuse([torch.zeros(2)], by="hash")
    with pytest.raises(ValueError, match="by='ids' needs a DataLoader"):
        batch_reuse([torch.zeros(2)], by="ids")
    with pytest.raises(ValueError, match="no batches in the first epoch"):
        batch_reuse([])
    with pytest.raises(ValueError, match="no batches in the second epoch"):
        batch_reuse(iter([torch.zeros(2)]))
