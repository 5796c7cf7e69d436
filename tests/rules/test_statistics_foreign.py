"""VS205: averaged, copied, merged and federated networks with statistics that are not theirs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from state_digest import Digest, process_state
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs


class HandNorm(nn.Module):
    """A norm under names of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(width))
        self.register_buffer("power", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            with torch.no_grad():
                self.level.lerp_(mean, 0.1)
                self.power.lerp_(var, 0.1)
        else:
            mean, var = self.level, self.power
        return (x - mean) / (var + 1e-5).sqrt()


def dense(norm=nn.BatchNorm1d) -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 32), norm(32), nn.ReLU(), nn.Linear(32, 32), norm(32), nn.ReLU(), nn.Linear(32, 4)
    )


def by_hand() -> nn.Module:
    return dense(HandNorm)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.inner, self.second = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(self.stem(x.view(-1, 1, 2, 4))))
        x = x + F.relu(self.second(self.inner(x)))
        return self.head(x.mean((2, 3)))


ARCHITECTURES = [dense, by_hand, Residual]


def data(count: int = 768, classes: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (count,), generator=generator)
    if classes is not None:
        y = y % 2 + 2 * classes
    centres = 2 * torch.randn(4, 8, generator=generator)
    return centres[y] + 1.5 * torch.randn(count, 8, generator=generator) + 1, y


def loader(classes: int | None = None, size: int = 32) -> DataLoader:
    return DataLoader(TensorDataset(*data(classes=classes)), size, shuffle=True, drop_last=True)


def train(model: nn.Module, batches: DataLoader, epochs: int, after=None, rate: float = 5e-3) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model.train()(x), y).backward()
            optimizer.step()
            if after is not None:
                after(model)
    return model


def averaged(build, *, copies: bool) -> tuple[nn.Module, nn.Module]:
    """A moving average and the network that it follows."""
    torch.manual_seed(0)
    online = build()
    target = copy.deepcopy(online).eval()

    def follow(model: nn.Module) -> None:
        for mine, theirs in zip(target.parameters(), model.parameters(), strict=True):
            mine.data.lerp_(theirs.data, 0.1)
        for mine, theirs in zip(target.buffers(), model.buffers(), strict=True):
            if copies:
                mine.copy_(theirs)

    train(online, loader(), 6, follow)
    return target, online


def clients(build, count: int = 2) -> list[nn.Module]:
    torch.manual_seed(0)
    start = build()
    return [train(copy.deepcopy(start), loader(classes=number), 5) for number in range(count)]


def mean_of(models: list[nn.Module], *, buffers: bool) -> nn.Module:
    """The first model with the average of all parameters, and of all buffers if asked for."""
    result = copy.deepcopy(models[0])
    with torch.no_grad():
        names = [
            name for name, _ in (result.named_parameters() if not buffers else result.state_dict().items())
        ]
        states = [{**dict(model.named_parameters()), **dict(model.named_buffers())} for model in models]
        own = {**dict(result.named_parameters()), **dict(result.named_buffers())}
        for name in names:
            if own[name].is_floating_point():
                own[name].copy_(torch.stack([state[name] for state in states]).mean(0))
    return result


def of(report: vs.Report) -> vs.Finding | None:
    return next((finding for finding in report.findings if finding.code == "VS205"), None)


def norms(report: vs.Report) -> set[str]:
    return {layer.name for layer in report.layers}


@pytest.mark.parametrize("build", ARCHITECTURES)
def test_statistics_that_a_moving_average_left_behind_come_first_and_alone(build):
    target, online = averaged(build, copies=False)
    report = vs.check(target, loader(), reference=online)
    first = report.findings[0]
    assert (first.code, first.severity, first.confidence) == ("VS205", "error", "certain")
    assert first.evidence["form"] == "defaults"
    assert {site.id.module for site in first.sites} == norms(report)
    assert not {"VS201", "VS202"} & {finding.code for finding in report.findings}
    assert first.step == "statistics"
    assert first.cures[0].code == "recalibrate"
    vs.recalibrate(target, loader())
    assert of(vs.check(target, loader(), reference=online)) is None


@pytest.mark.parametrize("build", ARCHITECTURES)
def test_a_moving_average_that_takes_its_buffers_along_is_let_pass(build):
    target, online = averaged(build, copies=True)
    found = of(vs.check(target, loader(), reference=online))
    assert found is None or found.severity == "advice"


@pytest.mark.parametrize("build", ARCHITECTURES)
def test_averaged_clients_with_the_statistics_of_one_of_them(build):
    parties = clients(build)
    model = mean_of(parties, buffers=False)
    for reference, form, confidence in (
        (parties[0], "equal", "certain"),
        (parties[1], "neither", "measured"),
        (parties, "equal", "certain"),
    ):
        report = vs.check(model, loader(), reference=reference)
        first = report.findings[0]
        assert (first.code, first.severity) == ("VS205", "error")
        assert (first.evidence["form"], first.confidence) == (form, confidence)
        assert "VS202" not in {finding.code for finding in report.findings}
    assert first.evidence["shares"] == [0.5, 0.5]


@pytest.mark.parametrize("build", [dense, Residual])
def test_an_average_of_variances_leaves_out_the_spread_of_the_means(build):
    parties = clients(build)
    model = mean_of(parties, buffers=True)
    finding = of(vs.check(model, reference=parties))
    assert finding is not None
    assert (finding.evidence["form"], finding.confidence) == ("averaged", "certain")
    name = finding.where
    means, variances = (
        torch.stack([getattr(party.get_submodule(name), f"running_{key}") for party in parties])
        for key in ("mean", "var")
    )
    pooled = variances.mean(0) + means.var(0, unbiased=False)
    expected = float(variances.mean() / pooled.mean())
    assert finding.evidence["pooled_ratio"] == pytest.approx(expected, rel=1e-4)
    finding = of(vs.check(model, loader(), reference=parties))
    assert finding is not None
    assert (finding.evidence["form"], finding.confidence) == ("averaged", "certain")
    alike = [train(copy.deepcopy(parties[0]), loader(), 2) for _ in range(2)]
    found = of(vs.check(mean_of(alike, buffers=True), loader(), reference=alike))
    assert found is None or found.severity == "advice"


def test_the_variance_that_is_left_of_merged_networks_is_that_of_the_signal_over_that_in_the_parents():
    parents = []
    for seed in range(2):  # from other starts: their units do not correspond, and the average cancels
        torch.manual_seed(seed)
        parents.append(train(dense(), loader(), 6))
    merged = mean_of(parents, buffers=True)
    finding = of(vs.check(merged, loader(), reference=parents))
    assert finding is not None
    inputs, _ = data()
    for site, kept in zip(finding.sites, finding.evidence["variance_kept"], strict=True):
        signals = [_input_of(model, site.id.module, inputs) for model in (merged, *parents)]
        variances = [float(signal.var(0).mean()) for signal in signals]
        assert kept == pytest.approx(variances[0] / (sum(variances[1:]) / 2), rel=0.25)
        assert kept < 0.8
    assert of(vs.check(parents[0], loader(), reference=parents[1])) is None


def _input_of(model: nn.Module, name: str, inputs: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model.eval()(inputs)
    handle.remove()
    return seen[0]


def test_torchs_own_average_before_and_after_its_statistics_were_updated():
    torch.manual_seed(0)
    model = dense()
    average = AveragedModel(model)
    train(model, loader(), 4, lambda now: average.update_parameters(now), rate=3e-2)
    report = vs.check(average, loader(), reference=model)
    assert report.findings[0].code == "VS205"
    assert report.findings[0].evidence["form"] == "equal"
    update_bn(loader(), average)
    assert of(vs.check(average, loader(), reference=model)) is None


def test_a_backbone_under_another_name_is_compared_and_one_that_is_the_same_let_pass():
    torch.manual_seed(0)
    whole = train(dense(), loader(), 5)
    body = nn.Sequential(*copy.deepcopy(whole)[:-1])
    model = nn.ModuleDict({"backbone": body, "head": nn.Linear(32, 4)})
    model = Headed(model["backbone"], model["head"])
    assert of(vs.check(model, loader(), reference=whole)) is None
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.reset_running_stats()
    finding = of(vs.check(model, loader(), reference=whole))
    assert finding is not None
    assert {site.id.module for site in finding.sites} == {"backbone.1", "backbone.4"}


class Headed(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def test_a_network_that_was_trained_by_itself_or_is_of_another_start_is_not_called_an_average():
    torch.manual_seed(0)
    model, other = train(dense(), loader(), 8), train(dense(), loader(), 8)
    model[1].running_var.mul_(4)  # stale for a reason of its own
    report = vs.check(model, loader(), reference=other)
    assert report.findings[0].code == "VS202"
    assert of(report) is None


def test_weights_that_were_trained_on_the_references_statistics_are_let_pass():
    torch.manual_seed(0)
    pretrained = train(dense(), loader(classes=0), 5)
    model = copy.deepcopy(pretrained)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(5):
        for x, y in loader():
            optimizer.zero_grad()
            F.cross_entropy(model.eval()(x), y).backward()
            optimizer.step()
    report = vs.check(model, loader(), reference=pretrained)
    found = of(report)
    assert found is None or (found.severity, found.cures) == ("advice", ())


def test_without_data_what_is_certain_is_said():
    target, online = averaged(dense, copies=False)
    finding = of(vs.check(target, reference=online))
    assert finding is not None
    assert (finding.confidence, finding.evidence["form"]) == ("certain", "defaults")
    target, online = averaged(dense, copies=True)
    finding = of(vs.check(target, reference=online))
    assert finding is not None
    assert (finding.severity, finding.evidence["form"]) == ("advice", "equal")


def test_models_references_and_random_states_stay_as_they_are():
    target, online = averaged(dense, copies=False)
    batches = loader()
    before, process = Digest(target=target, online=online, data=batches), process_state()
    vs.check(target, batches, reference=[online, copy.deepcopy(online)])
    assert before.differences(Digest(target=target, online=online, data=batches)) == []
    assert process_state() == process


def test_what_is_no_network_and_what_has_nothing_in_common_is_said():
    model = dense()
    with pytest.raises(vs.ModelError, match="reference is the model itself"):
        vs.check(model, reference=model)
    with pytest.raises(vs.ModelError, match=r"reference\[1\] is a dict"):
        vs.check(model, reference=[dense(), {}])
    report = vs.check(model, reference=nn.Linear(2, 2))
    assert any("The reference was not compared" in limit for limit in report.limits)
