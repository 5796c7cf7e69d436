"""Each rule on a real model that has its fault and on one that has it not, through the front door.

The statistics are learnt by plain forward passes in training mode: no optimiser is needed to go wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs

HERE = __file__
CLASSES = 4


def data(
    samples: int = 512,
    *,
    batch_size: int = 32,
    drop_last: bool = True,
    shape: tuple[int, ...] = (3, 8, 8),
    labels: bool = True,
) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(CLASSES, (samples,), generator=generator)
    prototypes = torch.randn(CLASSES, *shape, generator=generator)
    inputs = prototypes[targets] + torch.randn(samples, *shape, generator=generator)
    set_ = TensorDataset(inputs, targets)
    collate = None if labels else (lambda rows: torch.stack([inputs for inputs, _ in rows]))
    return DataLoader(
        set_, batch_size, shuffle=True, drop_last=drop_last, generator=generator, collate_fn=collate
    )


def learnt(model: nn.Module, loader: DataLoader | None = None, passes: int = 5) -> nn.Module:
    """The model with the running statistics that its training mode produces."""
    model.train()
    with torch.no_grad():
        for _ in range(passes):
            for inputs, _ in loader or data():
                model(inputs)
    return model.eval()


def convolutions(*middle: nn.Module, head: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        *middle,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        head or nn.Linear(16, CLASSES),
    )


def norm(**values) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(16, **values)


class Block(nn.Module):
    """A residual block with noise on its branch, or, wrongly, on its shortcut."""

    def __init__(self, noise: nn.Module, *, on_shortcut: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.noise, self.on_shortcut = noise, on_shortcut

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv(F.relu(self.norm(x)))
        return self.noise(x) + branch if self.on_shortcut else x + self.noise(branch)


class DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        gate = x.new_empty(x.shape[0], *(1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * gate / keep


class FunctionalHead(nn.Module):
    def __init__(self, *, obeys: bool) -> None:
        super().__init__()
        self.linear, self.obeys = nn.Linear(16, CLASSES), obeys

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, self.training) if self.obeys else F.dropout(x, 0.5)
        return self.linear(x)


class Deaf(nn.Sequential):
    """A block whose modules never leave training mode."""

    def train(self, mode: bool = True) -> Deaf:
        return super().train(True)


class Contrast(nn.Module):
    """Centres its outputs over the batch: no norm, and still dependent on batch mates."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


def doubled(model: nn.Sequential) -> nn.Module:
    with torch.no_grad():
        model[0].weight.mul_(2)
    return model


def with_statistics(model: nn.Module, value: float) -> nn.Module:
    model[1].running_var.fill_(value)
    return model


def healthy() -> nn.Module:
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, CLASSES))
    return learnt(convolutions(norm(), nn.ReLU(), nn.Conv2d(16, 16, 3), norm(), nn.ReLU(), head=head))


def vs101() -> nn.Module:
    return learnt(convolutions(nn.Dropout(0.5), norm(), nn.ReLU()))


def vs102() -> nn.Module:
    return learnt(
        convolutions(norm(), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(16, 16, 3, padding=1), norm(), nn.ReLU())
    )


def vs102_weak() -> nn.Module:
    return learnt(
        convolutions(norm(), nn.ReLU(), nn.Dropout(0.01), nn.Conv2d(16, 16, 3, padding=1), norm(), nn.ReLU())
    )


def vs102_join() -> nn.Module:
    model = convolutions(Block(nn.Dropout(0.7)), norm(), nn.ReLU())
    with torch.no_grad():
        model[1].conv.weight.mul_(4)
    return learnt(model)


def vs105() -> nn.Module:
    return learnt(convolutions(nn.ReLU(), nn.Dropout(0.5), nn.MaxPool2d(2)))


def vs105_behind() -> nn.Module:
    return learnt(convolutions(nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5)))


def vs106() -> nn.Module:
    return learnt(convolutions(norm(), nn.ReLU(), head=FunctionalHead(obeys=False)))


def vs106_obeys() -> nn.Module:
    return learnt(convolutions(norm(), nn.ReLU(), head=FunctionalHead(obeys=True)))


def vs107() -> nn.Module:
    return learnt(convolutions(Block(DropPath(0.2), on_shortcut=True), norm(), nn.ReLU()))


def vs107_branch() -> nn.Module:
    return learnt(convolutions(Block(DropPath(0.01)), norm(), nn.ReLU()))


def vs201() -> nn.Module:
    model = learnt(convolutions(norm(), nn.ReLU(), nn.Conv2d(16, 16, 3), norm(), nn.ReLU()))
    model[4].reset_running_stats()
    return model


def vs202() -> nn.Module:
    return doubled(learnt(convolutions(norm(), nn.ReLU())))


def vs203() -> nn.Module:
    return with_statistics(learnt(convolutions(norm(), nn.ReLU())), float("nan"))


def vs204() -> nn.Module:
    return learnt(convolutions(norm(momentum=0.99), nn.ReLU()))


def vs204_cumulative() -> nn.Module:
    return learnt(convolutions(norm(momentum=None), nn.ReLU()))


def vs206() -> nn.Module:
    model = learnt(convolutions(norm(), nn.ReLU()))
    model[1].running_var = model[1].running_var.bfloat16()
    model[1].running_mean = model[1].running_mean.bfloat16()
    return model


def vectors() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES)
    )
    return learnt(net)


def vs401() -> nn.Module:
    return learnt(convolutions(Deaf(norm()), nn.ReLU()))


def vs401_untracked() -> nn.Module:
    return learnt(convolutions(norm(track_running_stats=False), nn.ReLU()))


def vs401_contrast() -> nn.Module:
    return learnt(convolutions(nn.ReLU(), head=nn.Sequential(nn.Linear(16, CLASSES), Contrast())))


@cache
def report(model: Callable[[], nn.Module], **loader) -> vs.Report:
    """Without targets: nobody trained these weights, so that a loss tells nothing and the ratios decide."""
    return vs.check(model(), data(**loader, labels=False), max_batches=8)


def codes(found: vs.Report) -> set[str]:
    return {finding.code for finding in found.findings}


def of(found: vs.Report, code: str) -> list[vs.Finding]:
    return [finding for finding in found.findings if finding.code == code]


@pytest.mark.parametrize(
    ("code", "where", "severity", "sick", "sound"),
    [
        ("VS101", "1", "error", vs101, healthy),
        ("VS102", "3", "error", vs102, vs102_weak),
        ("VS102", "1.noise", "error", vs102_join, vs107_branch),
        ("VS105", "2", "warning", vs105, vs105_behind),
        ("VS106", "5", "error", vs106, vs106_obeys),
        ("VS107", "1.noise", "error", vs107, vs107_branch),
        ("VS201", "4", "error", vs201, healthy),
        ("VS202", "1", "error", vs202, healthy),
        ("VS203", "1", "error", vs203, healthy),
        ("VS204", "1", "warning", vs204, vs204_cumulative),
        ("VS401", "1.0", "error", vs401, healthy),
        ("VS401", "1", "warning", vs401_untracked, healthy),
        ("VS401", "4.1", "error", vs401_contrast, vs105_behind),
    ],
)
def test_a_fault_is_found_where_it_is_and_only_there(code, where, severity, sick, sound):
    (finding, *_) = of(report(sick), code)
    assert (finding.where, finding.severity) == (where, severity)
    assert code not in codes(report(sound))


@pytest.mark.parametrize(
    "sound", [healthy, vs102_weak, vs105_behind, vs106_obeys, vs107_branch, vs204_cumulative]
)
def test_a_healthy_network_is_clean(sound):
    assert vs.check(sound(), data(), max_batches=8).findings == ()


def test_a_shift_is_said_by_the_rule_about_its_noise_and_alone_by_that_about_the_norm():
    assert codes(report(vs101)) == {"VS101"}
    (finding,) = vs.check(vs101(), data(labels=False), select=["VS207"], max_batches=8).findings
    assert (finding.where, finding.severity) == ("2", "error")


def test_a_source_line_is_that_of_the_functional_noise():
    (finding,) = of(report(vs106), "VS106")
    assert finding.source is not None
    assert finding.source.file == HERE
    lines = Path(HERE).read_text(encoding="utf-8").splitlines()
    assert "F.dropout(x, 0.5)" in lines[finding.source.line - 1]
    assert finding.evidence["repeat_difference"] > 0.01


def test_half_precision_statistics_are_seen_without_running_the_network():
    found = vs.check(vs206(), select=["VS206"])
    assert [one.where for one in found.findings] == ["1"]
    assert vs.check(healthy(), select=["VS206"]).findings == ()


def test_a_batch_of_one_stops_a_norm_of_vectors_and_only_warns_for_maps():
    odd = {"samples": 129, "batch_size": 32, "drop_last": False}
    (finding,) = of(report(vectors, **odd), "VS301")
    assert (finding.where, finding.severity) == ("2", "error")
    (finding,) = of(report(vs204_cumulative, **odd), "VS301")
    assert finding.severity == "warning"
    assert "VS301" not in codes(report(vectors, samples=128))


def test_small_batches_are_too_few_for_a_norm_of_vectors():
    small = vs.check(vectors(), data(samples=96, batch_size=4), max_batches=8)
    (finding,) = of(small, "VS302")
    # Certain, and no error: the network was not trained, and has nothing to lose.
    assert (finding.where, finding.severity, finding.confidence) == ("2", "warning", "certain")
    assert "VS302" not in codes(report(vectors, samples=256))


def test_recalibration_cures_what_it_claims_to():
    model, loader = vs101(), data(labels=False)
    sick = vs.check(model, loader, max_batches=8)
    assert codes(sick) == {"VS101"}
    vs.recalibrate(model, loader)
    assert vs.check(model, loader, max_batches=8).findings == ()


@pytest.mark.parametrize(
    ("noise", "rate", "severity"),
    [(nn.Dropout, 0.5, "warning"), (nn.Dropout2d, 0.2, "warning"), (nn.Dropout, 0.05, "advice")],
)
def test_without_data_the_placement_is_judged_by_its_bound(noise, rate, severity):
    (finding,) = vs.check(
        convolutions(noise(rate), norm(), nn.ReLU()), shape=(3, 8, 8), select=["VS101"]
    ).findings
    assert (finding.severity, finding.confidence) == (severity, "predicted")
    assert finding.evidence["predicted_ratio_bound"] == pytest.approx(1 - rate)


def test_the_bound_holds_where_it_is_measured():
    (finding,) = of(report(vs101), "VS101")
    assert finding.evidence["excess"] <= 0.5 * 1.05


def test_uniform_noise_is_judged_by_its_own_bound():
    class Uniform(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1 + torch.rand_like(x) * 2 - 1) if self.training else x

    (finding,) = vs.check(convolutions(Uniform(), norm()), shape=(3, 8, 8), select=["VS101"]).findings
    assert finding.evidence["kind"] == "uniform"
    assert finding.evidence["predicted_ratio_bound"] == pytest.approx(0.75)


def test_a_freshly_built_network_is_told_so_once():
    (finding,) = vs.check(convolutions(norm(), nn.ReLU(), norm()), shape=(3, 8, 8)).findings
    assert (finding.code, finding.severity) == ("VS201", "advice")


def test_a_module_that_was_passed_in_another_mode_than_its_model():
    model = healthy()
    model[1].train()
    assert [one.where for one in vs.check(model, select=["VS401"]).findings] == ["1"]
    model.train()
    model[1].eval()
    (finding,) = vs.check(model, select=["VS401"]).findings
    assert (finding.where, finding.severity) == ("1", "advice")
    model[1].requires_grad_(False)
    assert vs.check(model, select=["VS401"]).findings == ()
