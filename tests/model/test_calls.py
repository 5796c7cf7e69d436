"""One batch as a call: counted, cut, copied and moved, whatever its structure."""

import dataclasses
import types
from collections import OrderedDict, UserDict, defaultdict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from varshift.model import Reader, clone, map_tensors, move, read_call, tensors

B = 12
Pair = namedtuple("Pair", "x y")


def x():
    return torch.randn(B, 3, generator=torch.Generator().manual_seed(0))


def y():
    return torch.arange(B) % 5


@dataclasses.dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    y: torch.Tensor
    note: str = "kept"


@dataclasses.dataclass(slots=True)
class Slotted:
    x: torch.Tensor
    y: torch.Tensor


class Plain:
    """An object that writes to itself when it is moved, as many libraries' batches do."""

    def __init__(self):
        self.x, self.y, self.meta = x(), y(), {"ids": list(range(B)), "more": [x()]}

    def to(self, device):
        self.x = self.x.to(device)
        return self


class Attributes(dict):
    """A dict whose entries are its attributes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.__dict__ = self


class Wrapper(UserDict):
    """A mapping around another one, with an attribute of its own."""

    n_sequences = 2


class Graph:
    """Batched graphs as libraries make them."""

    def __init__(self, sizes=(5, 4, 6, 3), edges=7, index=True, counted=True, extra=None):
        generator = torch.Generator().manual_seed(1)
        nodes = sum(sizes)
        self.x = torch.randn(nodes, 3, generator=generator)
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        pieces = [
            start + torch.randint(0, size, (2, edges), generator=generator)
            for start, size in zip(starts, sizes, strict=True)
        ]
        self.edge_index = torch.cat(pieces, 1)
        self.edge_attr = torch.randn(edges * len(sizes), 2, generator=generator)
        if index:
            self.batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        if counted:
            self.num_graphs = len(sizes)
        self.y = torch.arange(len(sizes)) % 2
        if extra is not None:
            self.extra = extra

    def to(self, device):
        return self


class Takes(nn.Module):
    def forward(self, data):
        return data


def packed():
    return pack_sequence([torch.randn(length, 3) for length in (2, 5, 3, 4)], enforce_sorted=False)


def nested():
    return torch.nested.nested_tensor([torch.randn(length, 3) for length in (2, 5, 3)], layout=torch.jagged)


BATCHES = {
    "tensor": (x, B),
    "pair": (lambda: (x(), y()), B),
    "list": (lambda: [x(), y()], B),
    "named tuple": (lambda: Pair(x(), y()), B),
    "dict": (lambda: {"x": x(), "y": y(), "ids": ["a"] * B}, B),
    "ordered": (lambda: OrderedDict(x=x(), y=y()), B),
    "default": (lambda: defaultdict(list, x=x(), y=y()), B),
    "user dict": (lambda: UserDict(x=x(), y=y()), B),
    "wrapper": (lambda: Wrapper(x=x(), y=y()), B),
    "attribute dict": (lambda: Attributes(x=x(), y=y()), B),
    "proxy": (lambda: types.MappingProxyType({"x": x(), "y": y()}), B),
    "frozen data class": (lambda: Sample(x(), y()), B),
    "slotted data class": (lambda: Slotted(x(), y()), B),
    "plain object": (Plain, B),
    "namespace": (lambda: types.SimpleNamespace(x=x(), y=y()), B),
    "in a pair": (lambda: (Sample(x(), y()), y()), B),
    "lists of images": (
        lambda: ([torch.zeros(3, 8 + i, 9) for i in range(4)], [{"boxes": y()} for _ in range(4)]),
        4,
    ),
    "graphs": (Graph, 4),
    "graphs by their index": (lambda: Graph(counted=False), 4),
    "graphs with targets": (lambda: (Graph(counted=False), torch.arange(4)), 4),
    "graphs in a dict": (lambda: dict(vars(Graph(counted=False))), 4),
    "packed": (packed, 4),
    "packed with targets": (lambda: (packed(), torch.arange(4)), 4),
    "nested": (nested, 3),
}
NOT_CUT = {
    "graphs with a foreign tensor": (lambda: Graph(extra=torch.zeros(50, 2)), 4),
    "graphs with positions": (lambda: Graph(extra=torch.zeros(3, 9, dtype=torch.long)), 4),
    "rows and positions": (lambda: (x(), torch.arange(B).repeat(2, 3)), B),
    "object with another tensor": (lambda: types.SimpleNamespace(x=x(), weights=torch.zeros(7)), B),
}
ALL = BATCHES | NOT_CUT


@pytest.mark.parametrize(("make", "size"), BATCHES.values(), ids=BATCHES)
def test_number_of_samples(make, size):
    assert read_call(Takes(), make()).size == size


@pytest.mark.parametrize(("make", "size"), ALL.values(), ids=ALL)
def test_a_copy_has_the_type_the_values_and_nothing_else_in_common(make, size):
    batch = make()
    before = [tensor.clone() for tensor in tensors(batch)]
    copied = clone(batch)
    assert type(copied) is type(batch)
    assert len(before) == len(list(tensors(copied))) > 0
    for old, new, value in zip(tensors(batch), tensors(copied), before, strict=True):
        assert new is not old
        assert new.is_nested or torch.equal(new, value)
        if not new.is_nested:
            new.zero_()
    for old, value in zip(tensors(batch), before, strict=True):
        assert old.is_nested or torch.equal(old, value)


@pytest.mark.parametrize(("make", "size"), ALL.values(), ids=ALL)
def test_writing_to_a_copy_leaves_the_original_alone(make, size):
    batch = make()
    copied = clone(batch)
    held = list(map(id, tensors(batch)))
    for target in (copied, *(copied if isinstance(copied, (tuple, list)) else ())):
        if isinstance(target, dict | UserDict | list):
            target.clear()
        elif hasattr(target, "__dict__") and not isinstance(target, torch.Tensor):
            vars(target).clear()
    assert list(map(id, tensors(batch))) == held


@pytest.mark.parametrize(("make", "size"), BATCHES.values(), ids=BATCHES)
def test_the_first_samples_are_the_first_of_everything(make, size):
    call = read_call(Takes(), make())
    few = call.take(2)
    assert few is not None
    assert few.size == 2
    assert type(few.batch) is type(call.batch) or isinstance(few.batch, dict)
    assert call.take(size) is call
    again = read_call(Takes(), few.batch)
    assert again.size == 2


@pytest.mark.parametrize(("make", "size"), NOT_CUT.values(), ids=NOT_CUT)
def test_what_cannot_be_cut_for_certain_is_not_cut(make, size):
    call = read_call(Takes(), make())
    assert call.size > 1
    assert call.take(1) is None


def test_graphs_are_cut_between_graphs():
    whole = Graph()
    few = read_call(Takes(), whole).take(2).batch
    assert isinstance(few, Graph)
    assert few.num_graphs == 2
    assert torch.equal(few.x, whole.x[:9])
    assert torch.equal(few.batch, whole.batch[:9])
    assert torch.equal(few.edge_index, whole.edge_index[:, :14])
    assert torch.equal(few.edge_attr, whole.edge_attr[:14])
    assert torch.equal(few.y, whole.y[:2])
    assert whole.num_graphs == 4


def test_one_large_graph_counts_its_nodes():
    graph = Graph((18,), 30, index=False, counted=False)
    graph.y = torch.arange(18) % 3
    call = read_call(Takes(), graph)
    assert call.size == 18
    assert call.take(2) is None


def test_packed_sequences_are_cut_by_sequence():
    sequences = packed()
    few = read_call(Takes(), sequences).take(3).batch
    assert isinstance(few, PackedSequence)
    whole, lengths = pad_packed_sequence(sequences, batch_first=True)
    part, kept = pad_packed_sequence(few, batch_first=True)
    assert kept.tolist() == lengths[:3].tolist()
    assert torch.equal(part, whole[:3, : part.shape[1]])


def test_a_tensor_at_two_places_stays_one_in_a_copy():
    value = x()
    first, second = clone((value, {"again": value}))
    assert first is second["again"]
    assert first is not value


def test_an_object_that_holds_itself_is_copied_once():
    batch = Plain()
    batch.itself = batch
    copied = clone(batch)
    assert copied.itself is copied
    assert copied is not batch


@pytest.mark.parametrize(("make", "size"), ALL.values(), ids=ALL)
def test_batches_move_as_a_whole_and_the_original_stays(make, size):
    batch = make()
    if isinstance(batch, torch.Tensor) and batch.is_nested:
        pytest.skip("no nested tensors on the meta device")
    devices = [tensor.device.type for tensor in tensors(batch)]
    moved = move(batch, "meta")
    assert type(moved) is type(batch)
    assert [tensor.device.type for tensor in tensors(batch)] == devices
    assert move(batch, None) is batch


def test_an_object_moves_itself_in_a_copy():
    batch = Plain()
    moved = move((batch, y()), "meta")
    assert moved[0].x.is_meta
    assert moved[1].is_meta
    assert not moved[0].y.is_meta, "its own `to` decides"
    assert not batch.x.is_meta


def test_an_object_that_is_there_already_is_not_copied():
    batch = Plain()
    assert move(batch, "cpu") is batch


def test_a_frozen_object_is_mapped_into_a_copy():
    sample = Sample(x(), y())
    doubled = map_tensors(sample, lambda tensor: tensor * 2)
    assert isinstance(doubled, Sample)
    assert torch.equal(doubled.x, sample.x * 2)
    assert doubled.note == "kept"


def test_targets_of_an_object_are_its_own():
    graph = Graph()
    call = read_call(Takes(), graph)
    assert call.args == (graph,)
    assert call.targets is graph.y
    assert call.compared is graph, "a loss of the user's sees the batch as it came"


class Sequences(nn.Module):
    def forward(self, steps, states=None):
        return steps


@pytest.mark.parametrize(
    ("batch", "size", "axis"),
    [
        ((torch.randn(20, 6, 3), torch.arange(6)), 6, 1),
        ((torch.randn(6, 20, 3), torch.arange(6)), 6, 0),
        ((torch.randn(20, 6, 3), torch.zeros(20, 6)), 20, None),
        (torch.randn(20, 6, 3), 20, None),
        ((torch.randn(20, 3), torch.arange(20)), 20, 0),
        ((torch.zeros(20, 6, dtype=torch.long), torch.arange(6)), 6, 1),
        ((torch.zeros(20, 6, dtype=torch.long), torch.zeros(20, 6)), 20, None),
        ((torch.zeros(20, 6, dtype=torch.long), torch.arange(20)), 20, 0),
        (torch.randn(20, 3), 20, 0),
        ((torch.randn(4, 3, 8, 8), torch.arange(4)), 4, 0),
        ((torch.randn(4, 3, 8, 8), torch.arange(3)), 4, 0),
        ((torch.randn(9, 4, 3, 8, 8), torch.arange(4)), 4, 1),
    ],
)
def test_time_comes_first_where_the_targets_say_so(batch, size, axis):
    call = read_call(Sequences(), batch)
    assert (call.size, call.axis) == (size, axis)
    if axis == 1:
        few = call.take(2)
        assert few.args[0].shape == (batch[0].shape[0], 2, *batch[0].shape[2:])
        assert few.targets.shape == (2,)


def test_batches_of_one_structure_are_read_alike():
    reader = Reader(Sequences())
    steps = torch.randn(20, 6, 3)
    call = reader.read_as(reader.readings(steps)[0], steps, 1)
    reader.choose(call)
    assert reader.read(torch.randn(15, 4, 3)).size == 4
