"""What one recorded pass says of the state that it touched, and what it leaves alone."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from varshift.flow import Flow, capture, capture_in_place
from varshift.model import canonical_names


def train_flow(model: nn.Module, x: Tensor) -> Flow:
    flow = capture(model, x).train
    assert flow is not None
    return flow


class Writer(nn.Module):
    """Holds one tensor of each role and does one thing to them in train mode."""

    def __init__(self, write: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("kept", torch.zeros(3))
        self.plain = torch.zeros(3)
        self.listed = [torch.zeros(3)]
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.write(self, x)
        return self.layer(x) + self.kept + self.plain


def _swap(model: Any, x: Tensor) -> None:
    model.kept = x.detach().mean(0)


def _swap_plain(model: Any, x: Tensor) -> None:
    model.plain = x.detach().mean(0)


def _data(model: Any, x: Tensor) -> None:
    model.kept.data = x.detach().mean(0)


def _numpy(model: Any, _x: Tensor) -> None:
    model.kept.numpy()[0] = 1.0


def _numpy_weight(model: Any, _x: Tensor) -> None:
    model.layer.weight.detach().numpy()[0] = 1.0


def _item(model: Any, x: Tensor) -> None:
    model.kept[1:] = x.detach()[0, 1:]


def _out(model: Any, x: Tensor) -> None:
    torch.add(x.detach()[0], 1.0, out=model.kept)


def _new_buffer(model: Any, x: Tensor) -> None:
    model.register_buffer("fresh", x.detach())


WRITES = {
    "in place": (lambda m, x: m.kept.lerp_(x.detach().mean(0), 0.1), "kept"),
    "attribute in place": (lambda m, x: m.plain.copy_(x.detach()[0]), "plain"),
    "listed": (lambda m, x: m.listed[0].add_(1.0), "listed.0"),
    "through a view": (lambda m, x: m.kept.view(3, 1)[1:].zero_(), "kept"),
    "parameter": (lambda m, x: m.layer.weight.data.mul_(0.5), "layer.weight"),
    "new tensor": (_swap, "kept"),
    "new attribute tensor": (_swap_plain, "plain"),
    "data": (_data, "kept"),
    "NumPy": (_numpy, "kept"),
    "NumPy on a weight": (_numpy_weight, "layer.weight"),
    "item": (_item, "kept"),
    "out": (_out, "kept"),
    "new buffer": (_new_buffer, "fresh"),
}


@pytest.mark.parametrize("name", WRITES)
def test_whatever_a_forward_writes_is_named(name) -> None:
    write, expected = WRITES[name]
    model = Writer(write)
    if name == "parameter":
        model.layer.weight.requires_grad_(True)
    result = capture(model, torch.rand(4, 3))
    assert result.train is not None
    assert result.eval is not None
    assert result.train.written == (expected,)
    assert result.eval.written == ()
    assert not result.train.writes_input


NORMS = {
    "batch": (nn.BatchNorm1d(3), ["num_batches_tracked", "running_mean", "running_var"]),
    "instance": (
        nn.InstanceNorm1d(3, track_running_stats=True),
        ["running_mean", "running_var"],
    ),
    "untracked": (nn.InstanceNorm1d(3), []),
    "layer": (nn.LayerNorm(4), []),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_that_update_their_statistics_are_named_though_no_schema_says_so(name) -> None:
    norm, expected = NORMS[name]
    result = capture(nn.Sequential(norm), torch.rand(4, 3, 4))
    assert result.train is not None
    assert result.eval is not None
    assert result.train.written == tuple(f"0.{key}" for key in expected)
    assert result.eval.written == ()


def test_spectral_norm_writes_its_vectors() -> None:
    written = train_flow(nn.Sequential(spectral_norm(nn.Linear(3, 4))), torch.rand(4, 3)).written
    assert written == ("0.parametrizations.weight.0._u", "0.parametrizations.weight.0._v")


@pytest.mark.parametrize("write", [lambda x: x.mul_(2), lambda x: F.relu_(x[:, 1:])], ids=["whole", "view"])
def test_a_written_input_is_named_and_the_users_batch_is_as_it_was(write) -> None:
    class Careless(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            write(x)
            return x + 1

    batch = torch.randn(4, 3)
    before = batch.clone()
    result = capture(Careless(), batch)
    assert result.train is not None
    assert result.train.writes_input
    assert torch.equal(batch, before)


def test_every_tensor_is_announced_before_it_is_written() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True))
    before = {name: value.clone() for name, value in model.named_buffers()}
    names = {value.data_ptr(): name for name, value in model.named_buffers()}
    seen: dict[str, Tensor] = {}

    def note(tensor: Tensor) -> None:
        name = names.get(tensor.data_ptr())
        if name is not None:
            seen.setdefault(name, tensor.clone())

    capture_in_place(model, torch.rand(4, 3), before_write=note)
    assert seen.keys() == before.keys()
    assert all(torch.equal(seen[name], before[name]) for name in before)
    assert int(dict(model.named_buffers())["1.num_batches_tracked"]) == 1


def test_plain_tensor_attributes_are_nodes_with_a_name() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.inner.scale = torch.full((3,), 2.0)  # type: ignore[assignment]

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.inner.scale

    flow = train_flow(Scaled(), torch.rand(2, 3))
    (node,) = [node for node in flow.nodes if node.kind == "attribute"]
    assert node.target == "inner.scale"
    assert torch.equal(node.value, torch.full((3,), 2.0))


class Gradients(nn.Module):
    """Each of these needs autograd inside its forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.drop, self.norm = nn.Linear(3, 3), nn.Dropout(0.3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.drop(self.first(x)))
        if self.how == "grad":
            (slope,) = torch.autograd.grad(self.first(x).exp().sum(), self.first.weight, create_graph=True)
            return y + slope.sum()
        if self.how == "enable_grad":
            with torch.enable_grad():
                z = x.clone().requires_grad_()
                (slope,) = torch.autograd.grad(self.first(z).sum(), z)
            return y + slope
        if self.how == "register_hook":
            y.register_hook(lambda gradient: gradient)
        else:
            y.retain_grad()
        return y


@pytest.mark.parametrize("how", ["grad", "enable_grad", "register_hook", "retain_grad"])
def test_a_forward_that_needs_gradients_is_recorded_with_them(how) -> None:
    result = capture(Gradients(how), torch.rand(4, 3))
    assert result.train is not None
    assert result.eval is not None
    assert [(site.name, site.kind, site.rate, site.path) for site in result.train.noises] == [
        ("drop", "dropout", 0.3, "direct")
    ]
    assert result.eval.noises == ()
    assert result.method == "decomposed"
    assert any("computes gradients in train mode" in limit for limit in result.limits)


def test_the_branch_that_a_condition_takes_is_recorded() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cond(x.sum() > 0, lambda z: F.dropout(z, 0.3), lambda z: z - 1, (x,))
            return self.norm(y)

    (site,) = train_flow(Branching(), torch.rand(4, 3)).noises
    assert (site.name, site.kind, site.rate, site.nearest) == ("", "dropout", 0.3, "norm")


def test_operations_of_a_helper_that_is_handed_a_module_belong_to_its_caller() -> None:
    def residual(layer: nn.Module, x: Tensor) -> Tensor:
        return x + F.dropout(layer(x), 0.2)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return residual(self.layer, x)

    (site,) = train_flow(nn.Sequential(Block()), torch.rand(2, 3)).noises
    assert site.name == "0"


def test_generators_are_followed_to_whoever_resumes_them() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Any:
            yield F.dropout(x, 0.1)
            yield F.dropout(x, 0.2)

    class First(nn.Module):
        def forward(self, steps: Any) -> Tensor:
            return next(steps)

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.first = Steps(), First()

        def forward(self, x: Tensor) -> Tensor:
            steps = self.steps(x)
            return self.first(steps) + next(steps)

    sites = train_flow(Whole(), torch.rand(2, 3)).noises
    assert [(site.name, site.rate) for site in sites] == [("steps", 0.1), ("steps", 0.2)]


def test_no_tensor_of_the_pass_is_kept_alive() -> None:
    alive: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(20):
                x = x + 1
                alive.append(weakref.ref(x))
            counts.append(sum(reference() is not None for reference in alive))
            return x

    capture(Watched(), torch.rand(2, 3))
    gc.collect()
    assert max(counts) <= 4
    assert not [reference for reference in alive if reference() is not None]


def test_nothing_of_the_process_changes_while_a_pass_is_recorded() -> None:
    def state() -> dict[str, Any]:
        return {
            "streams": (id(sys.stdout), id(sys.stderr)),
            "filters": list(warnings.filters),
            "fast path": torch.backends.mha.get_fastpath_enabled(),
            "checks": torch.distributions.Distribution._validate_args,
            "threads": torch.get_num_threads(),
        }

    seen: list[dict[str, Any]] = []

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(
                target=lambda: seen.append({**state(), "grad": torch.is_grad_enabled()})
            )
            thread.start()
            thread.join()
            seen.append(state())
            return self.attention(x)

    before = state()
    capture(Looking(), torch.rand(2, 3, 8))
    assert len(seen) == 4
    for during in seen:
        assert during.pop("grad", True)
        assert during == before
    assert state() == before


def test_two_threads_record_at_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.BatchNorm1d(3), nn.Linear(3, 3))
    expected = [node.op for node in train_flow(model, torch.rand(4, 3)).nodes]
    found: list[list[str]] = []

    def run() -> None:
        for _ in range(5):
            found.append([node.op for node in train_flow(model, torch.rand(4, 3)).nodes])

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 15


def test_one_sample_is_used_where_two_do_not_run() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            if len(x) != 1:
                raise ValueError("one at a time")
            return F.dropout(self.layer(x), 0.1)

    flow = train_flow(Single(), torch.rand(4, 3))
    assert [site.rate for site in flow.noises] == [0.1]
    assert flow.nodes[-1].inputs


def test_names_of_a_shared_tensor_are_those_of_its_first_owner() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    model.append(model[0])
    assert canonical_names(model)["2"] == "0"
    assert train_flow(model, torch.rand(4, 3)).written == (
        "0.num_batches_tracked",
        "0.running_mean",
        "0.running_var",
    )
