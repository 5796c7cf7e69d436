"""The front door, as a user of the Python API meets it."""

import json

import jsonschema
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import varshift as vs
from varshift.report import report_schema


class Net(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)
        self.p = p

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.dropout(self.conv2(x), self.p, self.training)
        return self.head(F.relu(self.norm2(x)).mean((2, 3)))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(32, 1, 10, 10, generator=generator), torch.randint(3, (32,), generator=generator))
        for _ in range(6)
    ]


@pytest.fixture
def sick(batches):
    torch.manual_seed(0)
    net = Net()
    vs.recalibrate(net, batches, noise=True)
    return net


def test_a_report_tells_where_how_much_and_why(sick, batches):
    report = vs.check(sick, batches)
    finding = next(found for found in report.findings if found.code == "VS101")
    assert finding.severity == "advice"  # the loss of weights that nobody trained does not suffer
    assert vs.check(sick, [x for x, _ in batches]).findings[0].severity == "error"
    assert finding.confidence == "measured"
    assert finding.where == ""  # functional dropout in the forward of the root module
    assert finding.cls == "Net"
    assert "F.dropout" in open_line(finding.source.file, finding.source.line)
    assert finding.evidence["norm"] == "norm2"
    assert finding.evidence["ratio"] < 0.55
    assert not any(found.code == "VS207" for found in report.findings)  # VS101 says it
    assert report.layer("norm1").ratio == pytest.approx(1, abs=0.02)
    assert str(report.layer("norm2").noise) == ":dropout"
    assert [row.name for row in report.noises_before(report.layer("norm2"))] == [""]
    assert report.data.batches == 6
    assert report.data.samples == 192
    assert report.capture == "recorded"


def open_line(file, number):
    with open(file) as source:
        return source.read().splitlines()[number - 1]


def test_recalibrating_cures_what_check_finds(sick, batches):
    assert vs.check(sick, batches).findings
    vs.recalibrate(sick, batches)
    assert not vs.check(sick, batches).findings


def test_every_kind_of_report_fits_the_schema(sick, batches):
    for report in (
        vs.check(sick, batches),
        vs.check(sick, [x for x, _ in batches]),
        vs.check(sick, shape=(1, 10, 10)),
        vs.check(sick, example_inputs=batches[0][0]),
        vs.check(sick),
    ):
        jsonschema.validate(json.loads(report.to_json()), report_schema())


def test_without_data_it_says_what_data_would_add(sick):
    report = vs.check(sick, shape=(1, 10, 10))
    assert report.data is None
    assert report.gap is None
    assert [finding.confidence for finding in report.findings if finding.code == "VS101"] == ["predicted"]
    assert any("No data were given" in limit for limit in report.limits)
    assert report.layer("norm2").ratio is None


def test_with_nothing_but_the_model_it_reads_the_modules(sick):
    sick.norm1.momentum = 0.99
    report = vs.check(sick)
    assert [finding.code for finding in report.findings] == ["VS204"]
    assert any("not captured" in limit for limit in report.limits)


def test_nothing_of_the_model_changes(sick, batches):
    for training in (True, False):
        sick.train(training)
        sick.norm1.train(not training)
        before = {key: value.clone() for key, value in sick.state_dict().items()}
        flags = [module.training for module in sick.modules()]
        state = torch.get_rng_state()
        vs.check(sick, batches)
        assert all(torch.equal(value, before[key]) for key, value in sick.state_dict().items())
        assert [module.training for module in sick.modules()] == flags
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in sick.modules())


def test_same_seed_same_report(sick, batches):
    assert vs.check(sick, batches, seed=1).to_json() == vs.check(sick, batches, seed=1).to_json()


def test_several_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(3, 6)
            self.drop, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(6)

        def forward(self, x, y):
            return self.norm(self.drop(self.a(x) + self.b(y)))

    report = vs.check(Two(), shape=[(4,), (3,)])
    assert [(noise.name, noise.path, noise.nearest and noise.nearest.module) for noise in report.noises] == [
        ("drop", "direct", "norm")
    ]
    data = [((torch.randn(8, 4), torch.randn(8, 3)), torch.randn(8, 6)) for _ in range(4)]
    assert vs.check(Two(), data).data.batches == 4


def test_wrappers_do_not_matter(sick, batches):
    plain = vs.check(sick, batches)
    for wrapped in (nn.DataParallel(sick), torch.compile(sick, backend="eager")):
        report = vs.check(wrapped, batches)
        assert [layer.name for layer in report.layers] == [layer.name for layer in plain.layers]
        assert [layer.ratio for layer in report.layers] == [layer.ratio for layer in plain.layers]


def test_own_forward_and_loss(sick, batches):
    data = [{"scan": x, "diagnosis": y} for x, y in batches]
    report = vs.check(
        sick,
        data,
        forward=lambda model, batch: model(batch["scan"]),
        loss=lambda outputs, batch: F.cross_entropy(outputs, batch["diagnosis"]),
    )
    assert report.gap.states == pytest.approx(vs.check(sick, batches).gap.states)
    assert set(report.findings_by_code) == {"VS101"}


def test_progress_is_reported(sick, batches):
    steps = []
    vs.check(sick, batches, progress=lambda stage, done, total: steps.append((stage, done, total)))
    assert steps[0][0].startswith("capturing")
    done, total = steps[-1][1:]
    assert done == total == 31  # five states of six batches, and one batch without noise in train mode


def test_weights_that_are_not_finite_are_a_finding_not_a_crash(sick, batches):
    with torch.no_grad():
        sick.conv2.weight[0, 0, 0, 0] = torch.nan
    report = vs.check(sick, batches)
    (finding,) = [found for found in report.findings if found.code == "VS203"]
    assert (finding.where, finding.severity) == ("norm2", "error")
    assert report.layer("norm2").real_var is None
    assert report.gap.states["eval"] is None
    jsonschema.validate(json.loads(report.to_json()), report_schema())
    assert "The loss is not finite, neither in training nor in evaluation." in " ".join(str(report).split())


def test_the_page_of_a_recalibrated_network_says_that_it_fits(sick, batches):
    vs.recalibrate(sick, batches)
    text = " ".join(str(vs.check(sick, batches)).split())
    assert "No finding explains" not in text
    assert "Nothing found" in text


def test_select_and_ignore(sick, batches):
    assert {f.code for f in vs.check(sick, batches, select=["VS2"]).findings} == {"VS207"}
    assert "VS207" not in {f.code for f in vs.check(sick, batches, ignore=["VS207"]).findings}
    with pytest.raises(vs.VarshiftError, match="VS999"):
        vs.check(sick, batches, select=["VS999"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loader": []}, "no batches"),
        ({"loader": [(torch.full((4, 1, 10, 10), torch.nan), torch.zeros(4, dtype=torch.long))]}, "batch 0"),
        ({"loader": [("words", "only")]}, "without any tensor"),
        ({"loader": [(torch.zeros(4, 1, 10, 10), torch.full((4,), 7))]}, "3 outputs"),
        ({"shape": (2, 10, 10)}, r"2, 10, 10"),
    ],
)
def test_bad_input_is_one_clear_error(sick, arguments, message):
    before = {key: value.clone() for key, value in sick.state_dict().items()}
    with pytest.raises((vs.DataError, vs.ModelError), match=message):
        vs.check(sick, **arguments)
    assert all(torch.equal(value, before[key]) for key, value in sick.state_dict().items())


def test_what_is_not_a_module_is_refused(batches):
    with pytest.raises(vs.ModelError, match=r"expected a torch\.nn\.Module"):
        vs.check(lambda x: x, batches)


def test_core_needs_neither_rich_nor_typer(sick):
    import subprocess
    import sys

    code = (
        "import sys\n"
        "for name in ('rich', 'typer', 'jinja2', 'timm', 'torchvision', 'sklearn', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "import torch, varshift as vs\n"
        "net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(.5), torch.nn.BatchNorm1d(4))\n"
        "report = vs.check(net, [torch.randn(16, 4) for _ in range(4)])\n"
        "vs.recalibrate(net, [torch.randn(16, 4)])\n"
        "assert 'VS201' in str(report), str(report)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def learned_net(p=0.5):
    """A network whose norms have learned their statistics with the noise on."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(p), nn.BatchNorm2d(8), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    with torch.no_grad():
        for _ in range(150):
            net(torch.randn(32, 3, 10, 10))
    return net


def test_without_data_the_shift_is_predicted():
    report = vs.check(learned_net(), shape=(3, 10, 10), select=["VS207"])
    assert report.layer("3").ratio is None
    assert report.layer("3").predicted_ratio < 0.5
    (finding,) = report.findings
    assert {site.id.module for site in finding.sites} == {"3", "6"}
    assert (finding.severity, finding.confidence) == ("warning", "predicted")
    assert finding.evidence["predicted_ratio"] == report.layer(finding.where).predicted_ratio
    whole = vs.check(learned_net(), shape=(3, 10, 10))
    assert [(one.code, one.severity) for one in whole.findings] == [("VS101", "warning")]
    assert "Norms, predicted" in str(report)


def test_with_data_the_prediction_stands_beside_the_measurement():
    net = learned_net()
    report = vs.check(net, [torch.randn(32, 3, 10, 10) for _ in range(8)])
    for name in ("3", "6"):
        row = report.layer(name)
        assert row.predicted_ratio == pytest.approx(row.ratio, rel=0.1)
    assert all(f.confidence == "measured" for f in report.findings if f.code == "VS207")


@pytest.mark.parametrize("fresh", [False, True], ids=["no noise", "no statistics"])
def test_nothing_is_predicted_without_noise_or_without_statistics(fresh):
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)) if fresh else learned_net(0.0)
    report = vs.check(net, shape=(4,) if fresh else (3, 10, 10))
    assert all(row.predicted_ratio is None for row in report.layers)
    assert not any(finding.code == "VS207" for finding in report.findings)


@pytest.fixture
def failing_prediction(monkeypatch):
    def fail(*args):
        raise ArithmeticError("no luck")

    monkeypatch.setattr("varshift.evidence._prediction.predict_captured", fail)


@pytest.mark.usefixtures("failing_prediction", "lenient")
def test_a_prediction_that_fails_is_a_limit_and_no_error():
    report = vs.check(learned_net(), shape=(3, 10, 10))
    assert any("no luck" in limit for limit in report.limits)


@pytest.mark.usefixtures("failing_prediction")
def test_in_the_tests_it_is_an_error():
    with pytest.raises(ArithmeticError, match="no luck"):
        vs.check(learned_net(), shape=(3, 10, 10))
