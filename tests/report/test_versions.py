"""Report files of both versions are read back, whatever is in them."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import varshift as vs
from varshift import VarshiftError
from varshift._sites import SiteId, Source
from varshift.report import FORMATS, Framework, Report, report_schema
from varshift.report._version1 import _CURES
from varshift.rules import CURES

# Written by varshift when it wrote version 1.
FIRST = sorted((Path(__file__).parent / "version1").glob("*.json"))


@pytest.mark.parametrize("path", FIRST, ids=lambda path: path.stem)
def test_a_file_of_version_1_prints_renders_and_goes_round_as_version_2(path):
    report = Report.from_json(path)
    old = json.loads(path.read_text(encoding="utf-8"))
    content = json.loads(report.to_json())
    Draft202012Validator(report_schema()).validate(content)
    assert Report.from_json(report.to_json()) == report
    assert report.model.target in str(report)
    for name in ("html", "svg", "text"):
        assert report.findings[0].code in FORMATS[name].render(report)
    assert [finding.message for finding in report.findings] == [item["message"] for item in old["findings"]]
    assert [finding.where for finding in report.findings] == [item["where"] for item in old["findings"]]
    assert [row.ratio for row in report.layers] == [row["ratio"] for row in old["layers"]]
    assert [row.shift for row in report.layers] == [row["shift"] for row in old["layers"]]
    assert [row.predicted_ratio for row in report.layers] == [row["predicted_ratio"] for row in old["layers"]]
    assert report.framework == Framework("torch", old["torch"])


@pytest.mark.parametrize("path", FIRST, ids=lambda path: path.stem)
def test_version_1_loses_no_norm_that_a_noise_site_reaches(path):
    report = Report.from_json(path)
    old = json.loads(path.read_text(encoding="utf-8"))
    for row, before in zip(report.noises, old["noises"], strict=True):
        assert [layer.name for layer in report.reached_by(row)] == before["reaches"]
    for layer, before in zip(report.layers, old["layers"], strict=True):
        names = dict.fromkeys(row.name for row in report.noises_before(layer))
        assert list(names) == before["noise"]


def test_two_noise_sites_of_one_module_get_two_names():
    report = Report.from_json(FIRST[[path.stem for path in FIRST].index("predicted")])
    assert [str(row.id) for row in report.noises] == [":dropout", ":dropout#2", ":dropout#3"]
    assert report.noises[0].source == Source("/nets/small.py", 18)
    # Two of the three are in one line of code, which is all that version 1 says about them.
    assert {finding.sites[0].id for finding in report.findings if finding.code == "VS102"} == {
        SiteId("", "dropout"),
        SiteId("", "dropout", 2),
    }


@pytest.mark.parametrize("path", FIRST, ids=lambda path: path.stem)
def test_every_cure_of_version_1_gets_its_code(path):
    codes = [cure.code for finding in Report.from_json(path).findings for cure in finding.cures]
    assert codes
    assert set(codes) <= set(CURES)


def test_the_codes_for_cures_of_version_1_are_those_of_the_table():
    assert set(_CURES.values()) <= set(CURES)


def test_a_report_is_read_from_a_path_a_text_and_a_file_name(sick, tmp_path):
    path = tmp_path / "report.json"
    text = sick.to_json(path)
    assert Report.from_json(path) == Report.from_json(str(path)) == Report.from_json(text) == sick


def test_figures_and_findings_of_a_real_check_come_back_bit_for_bit():
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    batches = [(torch.randn(16, 1, 8, 8), torch.randint(0, 3, (16,))) for _ in range(4)]
    for x, _ in batches * 10:
        net(x)
    report = vs.check(net, batches)
    assert report.findings
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.to_json() == report.to_json()
    assert str(again) == str(report)
    (row,) = again.layers
    assert row.measured.stale_ratio is not None
    assert row.measured.fresh_ratio is not None
    assert row.measured.effective_batch is not None
    assert row.predicted.confidence in ("high", "medium", "low")
    assert row.statistics.batches_tracked == 40
    assert again.data.repeat_difference == 0
    assert again.loader.sizes == (16,) * 4


def test_a_file_of_a_later_version_says_what_is_needed(sick):
    content = {**sick.to_dict(), "schema": "varshift.report/3"}
    with pytest.raises(VarshiftError, match=r"schema='varshift.report/3'.*later varshift"):
        Report.from_dict(content)


def test_keys_that_a_later_varshift_added_are_passed_over(sick):
    content = sick.to_dict()
    content["mood"] = "good"
    content["layers"][0]["measured"]["median"] = 1.0
    assert Report.from_dict(content) == sick


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["model"].pop("norms"), r"report\.model is incomplete.*norms"),
        (
            lambda content: content["layers"][3].update(channels="many"),
            r"layers\[3\]\.channels='many'",
        ),
        (
            lambda content: content["findings"][0].update(severity="dire"),
            r"findings\[0\]\.severity='dire'",
        ),
        (lambda content: content.update(limits="none"), r"report\.limits='none'.*a list"),
        (lambda content: content["noises"][0].update(reaches=[[1]]), r"reaches\[0\]=\[1\].*2 values"),
        (lambda content: content["layers"][0].update(id="nameless"), r"nameless"),
        (lambda content: content.update(model=None), r"report\.model=None"),
    ],
)
def test_a_file_that_does_not_fit_names_the_place(sick, change, message):
    content = sick.to_dict()
    change(content)
    with pytest.raises(VarshiftError, match=message):
        Report.from_dict(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "no JSON"), ("[1]", "a list"), ("nowhere.json", "no such file"), ('{"schema": 1}', "schema=1")],
)
def test_what_is_no_report_is_refused_in_one_sentence(text, message):
    with pytest.raises(VarshiftError, match=message):
        Report.from_json(text)


def test_a_damaged_file_of_version_1_is_refused():
    content = json.loads(FIRST[0].read_text(encoding="utf-8"))
    del content["layers"][0]["class"]
    with pytest.raises(VarshiftError, match=r"incomplete.*class"):
        Report.from_dict(content)
