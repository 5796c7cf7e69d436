"""What a check runs for which rules: passes and kinds of evidence are counted on a network, code by code."""

from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs
from varshift.evidence import KINDS, NEEDS, PROVIDERS, Evidence, Gathering, Subject, kind_of
from varshift.rules import Rule, all_rules, examine, get_rule, plan, register
from varshift.rules._causes import EXPLAINS

BATCHES = 5
STATES = 3  # train, recalibrated and eval: without noise the others are the same


class Counted(nn.Module):
    """A network of two norms with dropout at a given place, which counts how often it runs on real values."""

    runs: ClassVar[Counter[int]] = Counter()

    def __init__(self, noise: str = "nowhere") -> None:
        super().__init__()
        dropout = nn.Dropout(0.5)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.before = dropout if noise == "before a norm" else nn.Identity()
        self.last, self.end = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Flatten(), dropout if noise == "at the end" else nn.Identity(), nn.Linear(8, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        self.runs[len(x)] += 1
        x = self.last(self.before(self.norm(self.conv(x)).relu()))
        return self.head(self.pool(self.end(x)))


def network(noise: str = "nowhere") -> Counted:
    torch.manual_seed(0)
    net = Counted(noise)
    with torch.no_grad():
        for _ in range(60):
            net(torch.randn(32, 3, 8, 8))
    Counted.runs.clear()
    return net.eval()


def dataset(samples: int = 32 * BATCHES) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 3, 8, 8, generator=generator)
    return TensorDataset(inputs, torch.randint(4, (samples,), generator=generator))


def loader(samples: int = 32 * BATCHES) -> DataLoader:
    return DataLoader(dataset(samples), 32)


@pytest.fixture
def captures(monkeypatch) -> list[int]:
    """Sizes of the batches that networks were captured with."""
    from varshift.evidence import _capture

    sizes, capture = [], _capture.capture_in_place

    def counting(model, batch, **settings):
        sizes.append(settings["samples"])
        return capture(model, batch, **settings)

    monkeypatch.setattr(_capture, "capture_in_place", counting)
    return sizes


def gathered(code: str, net: nn.Module, **inputs: object) -> set[str]:
    gathering = Gathering(Subject(net, **inputs))
    examine(gathering, [code])
    return {run.name for run in gathering.runs() if run.ran}


# Of a healthy network with a plain DataLoader: VS1xx and VS301 find nothing that could be improved.
MODULES, CAPTURE = {"modules"}, {"capture"}
WITH_LOADER = {
    "VS101": MODULES | CAPTURE,
    "VS102": MODULES | CAPTURE,
    "VS103": CAPTURE,
    "VS104": CAPTURE,
    "VS105": CAPTURE,
    "VS106": CAPTURE | {"trials"},
    "VS107": CAPTURE,
    "VS201": MODULES | CAPTURE | {"measurement"},
    "VS202": MODULES | CAPTURE | {"measurement"},
    "VS203": MODULES | CAPTURE | {"measurement"},
    "VS204": MODULES,
    "VS205": MODULES | CAPTURE | {"measurement"},
    "VS206": MODULES,
    "VS207": MODULES | CAPTURE | {"measurement"},
    "VS208": CAPTURE | {"measurement"},
    "VS209": MODULES | CAPTURE,
    "VS210": MODULES | CAPTURE | {"measurement"},
    "VS211": MODULES | CAPTURE | {"measurement"},
    "VS301": MODULES | {"loader"},
    "VS302": MODULES | CAPTURE | {"measurement", "loader"},
    "VS303": MODULES | CAPTURE | {"measurement", "order"},
    "VS304": MODULES | CAPTURE | {"measurement", "order"},
    "VS306": MODULES | CAPTURE | {"measurement", "inputs"},
    "VS307": MODULES | CAPTURE | {"measurement", "inputs"},
    "VS305": MODULES | CAPTURE | {"measurement"},
    "VS401": MODULES | CAPTURE | {"trials"},
    "VS402": MODULES | CAPTURE | {"measurement"},
    "VS403": MODULES | CAPTURE | {"measurement", "norm_calls"},
    "VS404": MODULES | CAPTURE | {"measurement"},
    "VS405": CAPTURE | {"measurement"},
    "VS406": CAPTURE | {"trials"},
    "VS501": CAPTURE,
}


# Rules that need what is measured on data.
WITH_DATA = ("VS202", "VS210", "VS302", "VS303", "VS304", "VS306", "VS307", "VS403", "VS405", "VS406")


def test_the_table_has_every_rule():
    assert set(WITH_LOADER) == {rule.code for rule in all_rules()}


@pytest.mark.parametrize("code", WITH_LOADER)
def test_a_rule_makes_the_passes_of_what_it_needs_and_no_others(code, captures):
    net, kinds = network(), WITH_LOADER[code]
    assert gathered(code, net, loader=loader()) == kinds
    assert len(captures) == ("capture" in kinds)
    # Captures run on a few samples, the passes of a measurement on whole batches.
    # One more shows that the network computes the same in both modes.
    assert Counted.runs[32] == (STATES * BATCHES + 1 if "measurement" in kinds else 0)
    if not kinds & {"capture", "measurement"}:
        assert not Counted.runs


@pytest.mark.parametrize("code", WITH_LOADER)
def test_without_data_nothing_is_measured(code, captures):
    needs_data = code in WITH_DATA
    kinds = set() if needs_data else WITH_LOADER[code] - {"measurement", "loader", "trials"}
    net = network()
    seen = gathered(code, net, shape=(3, 8, 8))
    assert kinds <= seen <= kinds | MODULES | CAPTURE
    assert not Counted.runs[32]
    assert gathered(code, net) <= MODULES


@pytest.mark.parametrize(
    "inputs", [{}, {"shape": (3, 8, 8)}, {"loader": loader()}], ids=["none", "shape", "loader"]
)
def test_momentum_is_checked_without_a_pass_and_without_a_capture(inputs, captures):
    report = vs.check(network(), **inputs, select=["VS204"])
    assert not Counted.runs
    assert not captures
    assert report.limits == ()


def test_no_batch_is_drawn_that_nothing_needs():
    drawn = []

    class Watching(TensorDataset):
        def __getitem__(self, index):
            drawn.append(index)
            return super().__getitem__(index)

    batches = DataLoader(Watching(*dataset().tensors), 32)
    net = network()
    for code, count in (("VS204", 0), ("VS301", 0), ("VS107", 32 * BATCHES), ("VS202", 32 * BATCHES)):
        drawn.clear()
        vs.check(net, batches, select=[code])
        assert len(drawn) == count, code


def test_a_loader_that_does_not_know_its_batches_is_gone_through_once():
    starts = []

    class Odd:
        def __iter__(self):
            starts.append(1)
            yield from loader(32 * 3 + 1)

    net = network("before a norm")
    report = vs.check(net, Odd(), select=["VS102", "VS301"])
    assert {finding.code for finding in report.findings} == {"VS102", "VS301"}
    assert all(finding.confidence != "suspected" for finding in report.findings)
    assert len(starts) == 1


def test_what_noise_does_is_measured_once_noise_was_found(captures):
    net = network("before a norm")
    assert gathered("VS101", net, loader=loader()) == MODULES | CAPTURE
    assert gathered("VS102", net, loader=loader()) == MODULES | CAPTURE | {"measurement", "prediction"}
    net = network("at the end")
    assert gathered("VS102", net, loader=loader()) <= MODULES | CAPTURE | {"prediction"}


def test_a_batch_of_one_is_located_once_it_was_found():
    assert gathered("VS301", network(), loader=loader(65)) == MODULES | CAPTURE | {"loader", "single"}


@pytest.mark.parametrize("noise", ["nowhere", "before a norm", "at the end"])
@pytest.mark.parametrize("kind", ["loader", "shape"])
def test_a_rule_finds_alone_what_it_finds_among_all_unless_another_explains_it(noise, kind):
    net = network(noise)
    net.norm.momentum = 0.99
    net.end.running_var.mul_(4)
    inputs = {"loader": loader(32 * 2 + 1)} if kind == "loader" else {"shape": (3, 8, 8)}
    whole = vs.check(net, **inputs)
    assert whole.findings
    for rule in all_rules():
        alone = vs.check(net, **inputs, select=[rule.code]).findings
        among = [finding for finding in whole.findings if finding.code == rule.code]
        explained = any(rule.code in line.others and line.code in whole.findings_by_code for line in EXPLAINS)
        if explained and not among:
            continue
        # Only a capture knows the line where a module is called.
        assert [str(f.sites[0].id) for f in alone] == [str(f.sites[0].id) for f in among]
        for one, other in zip(alone, among, strict=True):
            assert (one.severity, one.confidence, one.message) == (
                other.severity,
                other.confidence,
                other.message,
            )
            assert one.evidence == other.evidence


def reasons(**inputs: object) -> dict[str, str]:
    gathering = Gathering(Subject(network(), **inputs))
    _, runs = examine(gathering, [rule.code for rule in all_rules() if rule.code != "VS206"])
    assert [run.code for run in runs] == [rule.code for rule in all_rules()]
    assert [run.name for run in gathering.runs()] == list(KINDS)
    assert all(run.ran == (not run.reason) for run in (*runs, *gathering.runs()))
    return {run.code: run.reason for run in runs} | {run.name: run.reason for run in gathering.runs()}


def test_of_every_rule_and_evidence_it_is_said_whether_it_ran_and_why_not():
    whole = reasons(loader=loader())
    assert whole.pop("VS206") == "not selected"
    assert whole.pop("prediction") == "noise reaches no norm that has learned its statistics"
    assert whole.pop("noise_bias") == "no noise acts in training"
    assert whole.pop("VS205") == "needs reference (no other network was given)"
    assert whole.pop("reference") == "no other network was given"
    assert whole.pop("single") == "no rule that was asked for needs it"
    assert whole.pop("VS307") == "needs deployment (no deployment data were given)"
    assert whole.pop("deployment") == "no deployment data were given"
    assert whole.pop("VS305") == "needs step (no training step was given)"
    assert whole.pop("VS404") == "needs history (no watched training was given)"
    assert whole.pop("step") == "no training step was given"
    assert whole.pop("VS501") == "needs optimizer (no optimiser was given)"
    assert whole.pop("optimizer") == "no optimiser was given"
    assert whole.pop("history") == "no watched training was given"
    assert not any(whole.values())
    without = reasons(shape=(3, 8, 8))
    assert without["VS202"] == "needs measurement (no data were given)"
    assert without["VS301"] == "needs loader (no data were given)"
    assert without["VS106"] == without["VS101"] == without["capture"] == ""
    bare = reasons()
    assert bare["VS101"] == "needs capture (no inputs were given)"
    assert bare["VS106"] == "needs capture (no inputs were given) or trials (no data were given)"
    assert bare["VS207"] == "needs measurement (no data were given) or prediction (no inputs were given)"
    assert bare["VS204"] == bare["VS401"] == bare["modules"] == ""


class RefusesTraining(Counted):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("not today")
        return super().forward(x)


def test_a_mode_that_could_not_be_captured_skips_the_rules_that_look_at_it():
    gathering = Gathering(Subject(RefusesTraining().eval(), shape=(3, 8, 8)))
    _, runs = examine(gathering, ["VS101", "VS106", "VS401"])
    assert {run.code: run.reason for run in runs if run.code in ("VS101", "VS106", "VS401")} == {
        "VS101": "needs capture (the network could not be captured in train mode)",
        "VS106": "",
        "VS401": "",
    }
    assert any("not today" in limit for limit in gathering.limits)


def test_every_kind_of_evidence_has_one_provider_and_every_need_a_kind():
    assert sorted(provider.kind for provider in PROVIDERS) == sorted(KINDS)
    assert {kind_of(need) for need in NEEDS} == set(KINDS)
    assert not any(Evidence().has(need) for need in NEEDS)
    made = []
    for provider in PROVIDERS:  # each runs after those that it is made from
        assert set(provider.needs) <= set(made)
        made.append(provider.kind)


def test_a_rule_that_needs_what_nobody_makes_is_refused():
    class Dreamer(Rule):
        code, name = "VS199", "dreamer"
        needs = ("weather",)

        def applies(self, evidence):
            yield from ()

    with pytest.raises(vs.VarshiftError, match="VS199 needs 'weather': evidence is one of modules, loader"):
        register(Dreamer)


def test_a_plan_is_made_from_what_rules_say():
    wanted = plan([get_rule("VS101"), get_rule("VS301")])
    assert wanted.first == {"modules", "capture", "loader"}
    assert wanted.later == {"measurement", "capture", "single"}


def test_the_page_on_what_a_check_runs_is_that_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith(("| `", "| VS"))]
    by_kind = {provider.kind: provider for provider in PROVIDERS}
    expected = [f"| `{k}` | {p.makes} | {p.inputs} | {p.cost} |" for k in KINDS for p in [by_kind[k]]]
    for rule in all_rules():
        needs = ", ".join(filter(None, (named(rule.needs), named(rule.needs_one_of, " or "))))
        expected.append(f"| {rule.code} | {needs} | {named(rule.uses)} | {named(rule.improves_with)} |")
    assert lines == expected


def named(needs, separator=", "):
    return separator.join(f"`{need}`" for need in needs)
