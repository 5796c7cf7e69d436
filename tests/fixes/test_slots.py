"""Where noise may go: slots in a captured network, and the modules and calls at which they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from skip_block import Skip
from torch import Tensor, nn

from varshift.fixes import Refused
from varshift.fixes._addresses import Addresses
from varshift.fixes._slots import Slots
from varshift.flow import NoiseSite, capture


def slots_of(model: nn.Module, *shape: int) -> Slots:
    flow = capture(model, torch.randn(4, *shape)).train
    assert flow is not None
    return Slots(flow)


def noise(slots: Slots, name: str | None = None) -> NoiseSite:
    return next(site for site in slots.flow.noises if name is None or site.name == name)


def addresses(slots: Slots, places, prefer="before") -> list[tuple[str, str]]:
    """Path and side of every address; of a call also the function that makes it."""
    found = Addresses(slots.flow, slots.ways).find(places, prefer)
    return [(f"{a.path}|{a.calls[-1].function}" if a.calls else a.path, a.side) for a in found]


class Body(nn.Module):
    """Weight, norm, activation; then what a test puts there."""

    def __init__(self, *head: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.drop(self.conv(x)))).mean((2, 3)))


class TestHead:
    def test_in_front_of_the_last_weight(self):
        slots = slots_of(Body(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), 3, 8, 8)
        assert addresses(slots, slots.head()) == [("head.2", "before")]

    def test_a_norm_after_the_weight_leaves_it_no_place(self):
        slots = slots_of(Body(nn.Linear(8, 4), nn.BatchNorm1d(4)), 3, 8, 8)
        with pytest.raises(Refused, match="no weight layer follows the last norm"):
            slots.head()

    def test_parallel_weights_are_not_passed_by_every_way(self):
        class Gated(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.value, self.gate = nn.Linear(8, 4), nn.Linear(8, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.value(x) * torch.sigmoid(self.gate(x))

        first = nn.Linear(8, 8)
        slots = slots_of(Body(first, Gated()), 3, 8, 8)
        assert addresses(slots, slots.head()) == [("head.0", "before")]

    def test_a_mean_of_several_classifiers(self):
        class Mean(nn.Module):
            def __init__(self, *, past: bool) -> None:
                super().__init__()
                self.a, self.b, self.past = nn.Linear(8, 8), nn.Linear(8, 8), past

            def forward(self, x: Tensor) -> Tensor:
                scores = (self.a(x) + self.b(x)) / 2
                return scores + x if self.past else scores

        slots = slots_of(Body(Mean(past=False)), 3, 8, 8)
        assert addresses(slots, slots.head()) == [("head.0.a", "before"), ("head.0.b", "before")]
        slots = slots_of(Body(Mean(past=True)), 3, 8, 8)
        with pytest.raises(Refused, match="no weight layer follows"):
            slots.head()

    def test_every_output_has_its_own(self):
        class Heads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(8, 2), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

            def forward(self, x: Tensor) -> dict[str, Tensor]:
                return {"a": self.a(x), "b": self.b(x), "features": x}

        slots = slots_of(Body(Heads()), 3, 8, 8)
        assert addresses(slots, slots.head()) == [("head.0.a", "before"), ("head.0.b.2", "before")]

    def test_a_module_that_runs_elsewhere_as_well_is_reached_by_its_call(self):
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 8)

            def forward(self, x: Tensor) -> Tensor:
                h = F.relu(self.fc(x))
                return self.fc(h)

        slots = slots_of(Body(Twice()), 3, 8, 8)
        assert addresses(slots, slots.head()) == [("head.0|" + Twice.forward.__qualname__, "before")]

    def test_a_loop_leaves_no_place_for_its_last_turn_only(self):
        class Loop(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(8, 8)

            def forward(self, x: Tensor) -> Tensor:
                for _ in range(3):
                    x = F.relu(self.fc(x))
                return x

        slots = slots_of(Body(Loop()), 3, 8, 8)
        with pytest.raises(Refused, match="no module and no call"):
            addresses(slots, slots.head())

    def test_functional_weights(self):
        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(2, 8))
                self.scale = nn.Parameter(torch.ones(()))

            def forward(self, x: Tensor, factor: float = 2.0) -> Tensor:
                return F.linear(x * factor, self.weight) * self.scale + x.sum()

        slots = slots_of(Body(Functional()), 3, 8, 8)
        with pytest.raises(Refused, match="no weight layer"):  # the sum goes past the weight
            slots.head()

    def test_linear(self):
        slots = slots_of(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1)), 8)
        assert addresses(slots, slots.linear()) == [("3", "before")]
        slots = slots_of(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.Softplus()), 8)
        with pytest.raises(Refused, match=r"softplus in '3'.*Average the outputs"):
            slots.linear()


class Block(nn.Module):
    """norm, ReLU, weight, norm, ReLU, weight, with noise in front of the second norm; a gate where asked."""

    def __init__(self, *, ends_in_norm: bool = False, gate: bool = False) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(8) if ends_in_norm else nn.Identity()
        self.fc = nn.Conv2d(8, 8, 1) if gate else None
        self.noise = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.noise(self.conv1(F.relu(self.norm1(x))))
        h = self.norm3(self.conv2(F.relu(self.norm2(h))))
        if self.fc is not None:
            h = h * torch.sigmoid(self.fc(h.mean((2, 3), keepdim=True)))
        return x + h


class TestBranchSlot:
    @pytest.mark.parametrize("gate", [False, True])
    def test_in_front_of_the_last_weight_that_all_of_the_branch_passes(self, gate):
        slots = slots_of(nn.Sequential(nn.Conv2d(3, 8, 3), Block(gate=gate)), 3, 8, 8)
        slot = slots.branch_slot(noise(slots))
        assert addresses(slots, [slot]) == [("1.conv2", "before")]

    @pytest.mark.parametrize("gate", [False, True])
    def test_a_branch_that_ends_in_a_norm_has_none(self, gate):
        slots = slots_of(nn.Sequential(nn.Conv2d(3, 8, 3), Block(ends_in_norm=True, gate=gate)), 3, 8, 8)
        with pytest.raises(Refused, match=r"has no weight that all of it passes after its last norm.*'head'"):
            slots.branch_slot(noise(slots))

    def test_outside_a_branch(self):
        slots = slots_of(Body(nn.Linear(8, 2)), 3, 8, 8)
        with pytest.raises(Refused, match="not in a residual branch"):
            slots.branch_slot(noise(slots))


class TestPooling:
    def test_in_front_of_a_module(self):
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 2))
        slots = slots_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head), 3, 8, 8)
        slot = slots.before_pooling(noise(slots))
        assert addresses(slots, [slot]) == [("2", "before")]

    def test_in_front_of_a_call(self):
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

            def forward(self, x: Tensor) -> Tensor:
                x = F.relu(self.conv(x)).mean((2, 3))
                return self.fc(F.dropout(x, 0.5, self.training))

        slots = slots_of(Net(), 3, 8, 8)
        slot = slots.before_pooling(noise(slots))
        assert slots.flow.nodes[slot.readers[0]].op == "mean"
        assert addresses(slots, [slot]) == [("|" + Net.forward.__qualname__, "before")]

    def test_pooled_values_that_others_read(self):
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.fc, self.other = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), nn.Linear(8, 2)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                x = F.relu(self.conv(x)).mean((2, 3))
                return self.fc(F.dropout(x, 0.5, self.training)), self.other(x)

        slots = slots_of(Net(), 3, 8, 8)
        with pytest.raises(Refused, match=r"linear in 'other'.*reads the pooled values as well"):
            slots.before_pooling(noise(slots))

    def test_after_a_max_pool(self):
        layers = (nn.Conv2d(3, 8, 3), nn.Dropout(0.2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 2, 1))
        slots = slots_of(nn.Sequential(*layers), 3, 8, 8)
        places = slots.after_pooling(noise(slots))
        assert addresses(slots, places, "after") == [("3", "after")]
        with pytest.raises(Refused, match="no global average pooling"):
            slots.before_pooling(noise(slots))


@pytest.mark.parametrize("wrong", ["identity", "everything"])
def test_the_end_of_the_branch_that_a_drop_path_is_meant_for(wrong):
    slots = slots_of(nn.Sequential(nn.Linear(8, 8), Skip(wrong), nn.ReLU(), nn.Linear(8, 2)), 8)
    site = noise(slots)
    assert (site.kind, site.drops) == ("drop_path", wrong)
    assert addresses(slots, [slots.branch(site)], "after") == [("1.body.2", "after")]
