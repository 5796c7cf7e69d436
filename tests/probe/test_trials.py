"""Trials on a few samples in eval mode: alone, with other mates, with more padding, and once more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varshift.model import Reader, shadowed
from varshift.probe import Trials, try_samples


def trials(network: nn.Module, batches: list, **settings) -> Trials:
    reader = Reader(network, settings.get("forward"))
    with shadowed(network) as shadow, shadow, shadow:
        return try_samples(shadow, [reader.read(batch) for batch in batches], **settings)


def rows(count: int = 5, size: int = 16, width: int = 6) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, width, generator=draw) + 1, torch.randint(3, (size,), generator=draw))
        for _ in range(count)
    ]


def network(*middle: nn.Module, out: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), *middle, nn.Linear(6, out))


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class SkipsOne(nn.Module):
    """Normalises more than one row; one row passes by."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return x if len(x) == 1 else self.norm(x)


class Attends(nn.Module):
    """Attention with the samples where it expects the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]


@pytest.mark.parametrize(
    ("middle", "alone", "mates", "module", "only"),
    [
        (Centred(), True, True, "1", 0),
        (SkipsOne(), True, False, "1.norm", 1),
        (Attends(), True, True, "1.attention", 0),
        (nn.LayerNorm(6), False, False, None, 0),
        (nn.BatchNorm1d(6), False, False, None, 0),
        (nn.GroupNorm(2, 6), False, False, None, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_what_changes_a_prediction_and_where(middle, alone, mates, module, only):
    found = trials(network(middle), rows())
    changes = {change.kind: change for change in found.changes}
    assert (changes["alone"].matters, changes["mates"].matters) == (alone, mates)
    parting = changes["alone"].parting
    assert (parting.module if parting else None) == module
    assert parting is None or (parting.only, parting.source is not None) == (only, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_half_precision_is_no_dependence(dtype):
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.ReLU())]).to(dtype)
    found = trials(net, [torch.randn(16, 64).to(dtype) for _ in range(2)])
    assert found.changes
    assert not any(change.matters for change in found.changes)


def test_outputs_without_samples_are_not_compared():
    class Contrast(nn.Module):
        def __init__(self, loss: bool) -> None:
            super().__init__()
            self.linear, self.loss = nn.Linear(6, 4), loss

        def forward(self, x: Tensor) -> Tensor:
            h = F.normalize(self.linear(x), dim=1)
            similarity = h @ h.T
            return F.cross_entropy(similarity, torch.arange(len(x))) if self.loss else similarity

    for loss in (True, False):
        found = trials(Contrast(loss), [x for x, _ in rows()])
        assert not any(change.matters for change in found.changes)
        assert not found.repeats.differs


def test_time_first_and_samples_joined_with_steps():
    class Joined(nn.Module):
        def __init__(self, bad: bool) -> None:
            super().__init__()
            self.linear, self.bad = nn.Linear(6, 6), bad

        def forward(self, x: Tensor) -> Tensor:  # (time, samples, features)
            h = self.linear(x.flatten(0, 1))
            return (h - h.mean(0) if self.bad else h).view_as(x)

    batches = [(torch.randn(5, 16, 6), torch.zeros(16)) for _ in range(2)]
    for bad in (True, False):
        found = trials(Joined(bad), batches)
        assert [change.matters for change in found.changes] == [bad, bad]


class Tagger(nn.Module):
    """A mean over steps, over all of them or over those of the sample."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked, self.inner, self.out = masked, nn.Conv1d(4, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = F.relu(self.inner(x)) * (mask[:, None] if self.masked else 1)
        return self.out(h.sum(2) / mask.sum(1, keepdim=True) if self.masked else h.mean(2))


def sequences(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    return torch.randn(len(lengths), 4, max(lengths)) * mask[:, None], mask


@pytest.mark.parametrize("masked", [True, False])
def test_padding_in_a_mean_is_named_with_its_line(masked):
    torch.manual_seed(0)
    found = trials(Tagger(masked).eval(), [sequences((3, 9, 5, 12)), sequences((4, 7, 8, 6))])
    change = found.change("padding")
    assert change.declared
    assert change.matters is not masked
    assert (change.parting is None) == masked
    assert masked or change.parting.op == "mean"


class Tokens(nn.Module):
    """Embeds tokens and averages them, without asking which are padding or with."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked, self.table, self.out = masked, nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        return self.out(h.sum(1) / (tokens != 0).sum(1, keepdim=True) if self.masked else h.mean(1))


@pytest.mark.parametrize("masked", [True, False])
def test_padding_without_lengths_is_known_from_batches_of_other_lengths(masked):
    def batch(lengths):
        longest = max(lengths)
        return torch.stack([F.pad(torch.randint(1, 20, (n,)), (0, longest - n)) for n in lengths])

    torch.manual_seed(0)
    batches = [batch((3, 9, 5, 12)), batch((4, 7, 8, 6))]
    change = trials(Tokens(masked), batches).change("padding")
    assert not change.declared
    assert change.matters is not masked
    assert trials(Tokens(masked), batches[:1] * 2).change("padding") is None  # all batches of one length


def test_images_with_dark_edges_are_not_cut():
    images = torch.rand(8, 1, 10, 10)
    images[:, :, 7:] = 0
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert trials(net, [(images, torch.randint(1, 9, (8,))) for _ in range(3)]).change("padding") is None


class Noisy(nn.Module):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.generator = torch.Generator().manual_seed(1)
        self.dice = np.random.default_rng(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.source == "torch":
            return x + torch.randn_like(x)
        if self.source == "generator":
            return x + torch.randn(x.shape, generator=self.generator)
        return x + torch.from_numpy(self.dice.standard_normal(x.shape)).float()


@pytest.mark.parametrize("source", ["torch", "generator", "numpy"])
def test_randomness_differs_from_one_state_and_is_no_drift(source):
    repeats = trials(network(Noisy(source)), rows()).repeats
    assert repeats.differs
    assert repeats.random_at.module == "1"
    assert not repeats.drift
    assert repeats.spread.batches == 4
    assert repeats.spread.cost > 0


def test_the_cost_of_noise_is_that_of_its_variance():
    class Regression(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.5 * torch.randn_like(x)

    torch.manual_seed(0)
    batches = [(x, x + 0.1) for x in torch.randn(4, 64, 50)]
    spread = trials(nn.Sequential(Regression()), batches).repeats.spread
    assert spread.cost == pytest.approx(0.25, rel=0.1)


def test_state_that_a_run_writes_is_a_drift_and_no_randomness():
    class Learning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = 0.0  # a plain number

        def forward(self, x: Tensor) -> Tensor:
            self.level = 0.5 * self.level + float(x.mean())
            return x - self.level

    repeats = trials(network(Learning()), rows()).repeats
    assert not repeats.differs
    assert repeats.drift > 0.01
    assert repeats.written == ("1.level",)
    assert repeats.drift_at.module == "1"


def test_a_batch_of_one_and_a_model_that_insists_on_its_size_are_limits_and_no_errors():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.view(16, 6))

    assert trials(network(), rows(size=1)).changes == ()
    found = trials(Fixed(), rows())
    assert found.changes == ()
    assert any("fails on a few samples" in limit for limit in found.limits)
