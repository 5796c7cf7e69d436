"""How batches of all structures are split into inputs and targets."""

import dataclasses
import types
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

import varshift as vs
from varshift.model import batch_size, map_tensors, pick_samples, primary_output, read_call, take_samples

X, Y, Z = torch.zeros(6, 3), torch.ones(6, dtype=torch.long), torch.full((6, 2), 2.0)


class One(nn.Module):
    def forward(self, x, mask=None):
        return x


class Two(nn.Module):
    def forward(self, x, z, *, scale=1.0):
        return x


class Any(nn.Module):
    def forward(self, *xs):
        return xs


class Named(nn.Module):
    def forward(self, pixels, attention_mask=None, labels=None):
        return pixels


class Masked(nn.Module):
    def forward(self, ids, attention_mask=None, types=None, labels=None):
        return ids


class Parts(nn.Module):
    def forward(self, x, edge_index, batch=None):
        return x


class Open(nn.Module):
    def forward(self, **kwargs):
        return kwargs


Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


GRAPH = types.SimpleNamespace(x=X, edge_index=torch.zeros(2, 9, dtype=torch.long), batch=Y - 1, y=Y[:1])
RECORD = Record(X, Y)
MASK = torch.ones(6, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("model", "batch", "args", "kwargs", "target"),
    [
        (Masked(), (X, MASK, Y), [X, MASK], {}, Y),
        (Masked(), (X, Y), [X], {}, Y),
        (Masked(), (X, Y, torch.arange(6)), [X], {}, Y),
        (
            Parts(),
            GRAPH,
            [],
            {"x": GRAPH.x, "edge_index": GRAPH.edge_index, "batch": GRAPH.batch},
            GRAPH.y,
        ),
        (One(), RECORD, [], {"x": X}, Y),
        (Named(), RECORD, [RECORD], {}, Y),
        (One(), X, [X], {}, None),
        (One(), (X,), [X], {}, None),
        (One(), (X, Y), [X], {}, Y),
        (One(), [X, Y], [X], {}, Y),
        (One(), Pair(X, Y), [X], {}, Y),
        (One(), (X, Y, Z), [X], {}, Y),
        (Two(), (X, Z), [X, Z], {}, None),
        (Two(), (X, Z, Y), [X, Z], {}, Y),
        (Two(), ((X, Z), Y), [X, Z], {}, Y),
        (Two(), ([X, Z],), [X, Z], {}, None),
        (Any(), (X, Z, Y), [X, Z], {}, Y),
        (Any(), ((X, Z), Y), [X, Z], {}, Y),
        (Named(), {"pixels": X, "labels": Y}, [], {"pixels": X, "labels": Y}, Y),
        (
            Named(),
            {"pixels": X, "attention_mask": Z, "id": "a"},
            [],
            {"pixels": X, "attention_mask": Z},
            None,
        ),
        (Named(), UserDict({"pixels": X, "labels": Y}), [], {"pixels": X, "labels": Y}, Y),
        (Named(), ({"pixels": X}, Y), [], {"pixels": X}, Y),
        (One(), {"image": X, "label": Y}, [X], {}, Y),
        (One(), {"image": X, "label": Y, "path": ["a"]}, [X], {}, Y),
        (Open(), {"a": X, "y": Y}, [], {"a": X, "y": Y}, Y),
    ],
)
def test_split(model, batch, args, kwargs, target):
    call = read_call(model, batch)
    assert [id(value) for value in call.args] == [id(value) for value in args]
    assert {key: id(value) for key, value in call.kwargs.items()} == {
        key: id(value) for key, value in kwargs.items()
    }
    assert call.targets is target


def test_a_mapping_that_fits_nothing_is_the_input_itself():
    batch = {"left": X, "right": Z}
    call = read_call(One(), batch)
    assert call.args == (batch,)
    assert not call.kwargs
    assert call.targets is None


@pytest.mark.parametrize("batch", [(), {}, 3.0, "text", None])
def test_what_is_no_batch(batch):
    with pytest.raises(vs.DataError, match="batch is"):
        read_call(One(), batch)


def test_primary_output():
    class Output:
        logits = X

    for outputs in (
        X,
        (X, Z),
        [X],
        {"aux": Z, "out": X},
        {"logits": X, "loss": Y},
        Output(),
        {"deep": [(X,)]},
    ):
        assert primary_output(outputs) is X
    assert primary_output("nothing") is None


def test_take_samples_cuts_what_has_a_batch_dimension():
    cut = take_samples({"x": X, "classes": torch.arange(10), "meta": ["a"], "pair": Pair(X, Y)}, 2)
    assert cut["x"].shape == (2, 3)
    assert cut["classes"].shape == (10,)
    assert isinstance(cut["pair"], Pair)
    assert cut["pair"].y.shape == (2,)
    assert batch_size(cut) == 2


def test_map_tensors_keeps_the_structure():
    mapped = map_tensors({"a": [X, (Z, "text")], "b": UserDict({"c": Y})}, lambda tensor: tensor + 1)
    assert torch.equal(mapped["a"][0], X + 1)
    assert mapped["a"][1][1] == "text"
    assert isinstance(mapped["b"], UserDict)
    assert torch.equal(mapped["b"]["c"], Y + 1)


def test_samples_are_picked_in_any_order_and_several_times():
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    picked = pick_samples((x, {"y": y, "name": "a"}), [4, 0, 4])
    assert torch.equal(picked[0], x[[4, 0, 4]])
    assert torch.equal(picked[1]["y"], y[[4, 0, 4]])
    assert picked[1]["name"] == "a"
    steps = torch.arange(30.0).reshape(5, 6)[..., None]
    assert torch.equal(pick_samples(steps, [3, 1], size=6, axis=1), steps[:, [3, 1]])
    images = [torch.zeros(3, n) for n in range(1, 5)]
    assert [t.shape[1] for t in pick_samples((images, list("abcd")), [2, 0])[0]] == [3, 1]
    packed = nn.utils.rnn.pack_sequence([torch.ones(n, 1) * n for n in (4, 2, 3)], enforce_sorted=False)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(pick_samples(packed, [1, 2]), batch_first=True)
    assert lengths.tolist() == [2, 3]
    assert padded[1, 0, 0] == 3


def test_positions_and_graphs_are_not_picked_from_the_middle():
    rows, edges = torch.randn(6, 2), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    assert pick_samples((rows, edges), [4, 0], size=6) is None
    assert pick_samples((rows, torch.arange(6)), [1], size=6) is not None
