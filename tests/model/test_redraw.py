"""Samples of several batches, put together again."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from varshift.model import Reader, partition, regroup


def calls(batches, model=None, **reading):
    reader = Reader(model or nn.Linear(3, 2), lambda model, batch: None)
    return [reader.read_as(reader.readings(batch)[0], batch, **reading) for batch in batches]


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 3).contiguous()


def test_inputs_and_targets_go_together_and_the_originals_stay():
    batches = [(rows(0, 1), torch.tensor([0, 1])), (rows(2, 3, 4), torch.tensor([2, 3, 4]))]
    whole = [tuple(item.clone() for item in batch) for batch in batches]
    call = regroup(calls(batches), [(1, 2), (0, 0), (1, 0)])
    assert call.size == 3
    assert call.args[0][:, 0].tolist() == [4, 0, 2] == call.targets.tolist()
    call.args[0].fill_(9)
    assert all(
        torch.equal(a, b)
        for one, two in zip(batches, whole, strict=True)
        for a, b in zip(one, two, strict=True)
    )


@dataclass
class Record:
    x: Tensor
    y: Tensor
    scale: Tensor


@pytest.mark.parametrize(
    "make",
    [
        lambda x, y: {"x": x, "nested": [y, {"again": y}], "scale": torch.ones(7)},
        lambda x, y: Record(x, y, torch.ones(7)),
        lambda x, y: [list(x), [{"label": label} for label in y]],
    ],
    ids=["mapping", "object", "lists"],
)
def test_any_structure_with_one_entry_per_sample(make):
    batches = [make(rows(0, 1), torch.tensor([0, 1])), make(rows(2, 3), torch.tensor([2, 3]))]
    batch = regroup(calls(batches), [(1, 1), (0, 1)]).batch
    if isinstance(batch, dict):
        assert (
            batch["x"][:, 0].tolist() == batch["nested"][0].tolist() == batch["nested"][1]["again"].tolist()
        )
        assert torch.equal(batch["scale"], torch.ones(7))
    elif isinstance(batch, Record):
        assert batch.x[:, 0].tolist() == batch.y.tolist() == [3, 1]
    else:
        assert [int(x[0]) for x in batch[0]] == [int(item["label"]) for item in batch[1]] == [3, 1]


def test_time_may_come_first():
    batches = [(torch.arange(8.0).view(4, 2, 1),), (torch.arange(8.0, 16.0).view(4, 2, 1),)]
    call = regroup(calls(batches, axis=1), [(1, 1), (0, 0)])
    assert call.batch[0].shape == (4, 2, 1)
    assert call.batch[0][0, :, 0].tolist() == [9, 0]


@pytest.mark.parametrize(
    "batches",
    [
        [(torch.ones(2, 3),), (torch.ones(2, 4),)],  # padded to the longest
        [(torch.ones(2, 3), torch.ones(7)), (torch.ones(2, 3), torch.zeros(7))],  # not the same for all
        [(pack_sequence([torch.ones(3), torch.ones(2)]),)] * 2,
        [{"x": torch.ones(4, 3), "edge_index": torch.zeros(2, 4, dtype=torch.long)}] * 2,
    ],
    ids=["lengths", "constants", "packed", "graphs"],
)
def test_what_cannot_be_put_together_is_none(batches):
    assert regroup(calls(batches), [(0, 0), (1, 0)]) is None


def test_a_partition_uses_every_sample_once():
    parts = partition([3, 2, 4], torch.Generator().manual_seed(0))
    assert [len(part) for part in parts] == [3, 2, 4]
    assert sorted(place for part in parts for place in part) == [
        (batch, row) for batch, size in enumerate([3, 2, 4]) for row in range(size)
    ]
