import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from varshift import VarshiftError
from varshift._sites import SiteId
from varshift.report import FORMATS, Framework, LayerRow, ModelInfo, Report, build_report, report_schema
from varshift.report._codec import encode
from varshift.rules import Evidence

VALIDATOR = Draft202012Validator(report_schema())


def written(report):
    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(report.to_json(), parse_constant=refuse)
    VALIDATOR.validate(content)
    assert content == report.to_dict()
    assert Report.from_json(report.to_json()) == report
    return content


def test_the_schema_is_itself_valid_and_forbids_what_it_does_not_name(sick):
    Draft202012Validator.check_schema(report_schema())
    content = sick.to_dict()
    parts = (content, content["model"], content["layers"][0], content["findings"][0], content["gap"])
    for part in (*parts, content["findings"][0]["sites"][0], content["findings"][0]["cures"][0]):
        part["surprise"] = 1
        assert not VALIDATOR.is_valid(content)
        del part["surprise"]
    assert VALIDATOR.is_valid(content)


def test_a_report_with_everything_fits_the_schema(sick):
    content = written(sick)
    assert content["schema"] == "varshift.report/2"
    assert content["framework"] == {"name": "torch", "version": torch.__version__}
    assert content["model"] == {
        "target": "nets.residual:build",
        "parameters": 1_234_567,
        "norms": 31,
        "noises": 1,
    }
    assert content["data"] == {
        "batches": 16,
        "samples": 1024,
        "repeat_difference": None,
        "batch_mate_difference": None,
    }
    first = content["layers"][0]
    assert first["class"] == "BatchNorm2d"
    assert first["id"] == "body.0.norm:batch_norm"
    assert first["source"] == {"file": "/nets/residual.py", "line": 1}
    assert (first["noise"], first["noise_count"]) == ("body.0.drop:dropout", 1)
    assert (first["measured"]["ratio"], first["predicted"]) == (0.5, None)
    assert content["findings"][0]["cures"][0] == {
        "code": "recalibrate",
        "name": "recalibrate the running statistics with the noise off",
        "safety": "safe",
    }
    assert sum(step["delta"] for step in content["gap"]["steps"]) == pytest.approx(0.5948 - 0.2134)
    assert content["gap"]["accuracy"]["eval"] == 0.7


def test_a_report_without_data_fits_the_schema_and_keeps_measured_figures_null(make):
    content = written(make.report(norms=["a", "b"], noises=[make.noise(reaches=("b",))]))
    assert content["data"] is None
    assert content["gap"] is None
    assert [row["reached"] for row in content["layers"]] == [True, True]
    assert all(row["measured"] is row["predicted"] is None for row in content["layers"])
    assert content["layers"][1]["noise"] == "body.0.drop:dropout"
    assert content["noises"][0]["reaches"] == [[1, 2]]


def test_nothing_that_is_not_finite_reaches_the_file(make):
    gap = make.gap((0.2, 0.2, 0.2, 0.2, math.inf, math.nan), (math.nan, None, 0.0, math.inf, 0.1))
    evidence = {"a": math.nan, "b": [np.float32(2.5), np.int64(3), {"c": -math.inf}], 4: np.arange(2)}
    report = make.report(
        {"a": math.inf, "b": math.nan, "c": -0.5}, [make.finding(evidence=evidence)], gap=gap
    )
    content = written(report)
    assert [row["measured"]["ratio"] for row in content["layers"]] == [None, None, -0.5]
    assert [row.shift for row in report.layers] == [None, None, None]
    assert content["findings"][0]["evidence"] == {"a": None, "b": [2.5, 3, {"c": None}], "4": [0, 1]}
    assert content["gap"]["states"]["eval"] is None
    distances = dict.fromkeys(("train", "eval"), math.inf)
    gap = make.gap(
        (0.3, 0.1, 0.1, 0.0, 0.12, 0.13), metric="relative_l2", kl=distances, accuracy={"eval": math.nan}
    )
    report = make.report({"a": 0.8}, gap=gap)
    assert written(report)["gap"]["kl"] == {"train": None, "eval": None}
    assert report.gap.accuracy == {"eval": None}
    for name in FORMATS:
        FORMATS[name].render(report) if name != "rich" else list(FORMATS[name].render(report, width=90))


def test_a_figure_of_an_odd_type_does_not_cost_the_report(make):
    facts = replace(
        make.facts("a"), eps=math.nan, channels=np.int64(3), batches_tracked=2.5, largest=np.float32(2)
    )
    report = build_report(
        target="x",
        parameters=np.int64(7),
        evidence=Evidence(norms={"a": facts}),
        capture_method="hooks",
        findings=[make.finding(evidence={"figure": torch.tensor(2.0), "names": ("a", "b")})],
    )
    (row,) = report.layers
    assert (row.channels, type(row.channels)) == (3, int)
    assert (row.statistics.eps, row.statistics.largest, row.statistics.batches_tracked) == (None, 2.0, 2.5)
    assert report.findings[0].evidence == {"figure": 2.0, "names": ["a", "b"]}
    assert json.loads(report.to_json())["layers"][0]["statistics"]["eps"] is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.bool_(True), True),
        (np.float64("nan"), None),
        (torch.tensor([1.0, float("inf")]), [1.0, None]),
        ((1, {2}), [1, [2]]),
        (torch.float16, "torch.float16"),
        (torch.Size([2, 3]), [2, 3]),
        (True, True),
    ],
)
def test_values_of_other_libraries_become_plain(value, expected):
    result = encode(value)
    assert result == expected
    assert type(result) is type(expected)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
        max_leaves=20,
    )
)
def test_any_evidence_becomes_strict_json_that_reads_back_the_same(value):
    content = encode(value)
    assert json.loads(json.dumps(content, allow_nan=False)) == content


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_the_shift_is_the_ratio_folded_to_at_least_one(make_report_once, value):
    row = make_report_once({"a": value}).layers[0]
    assert row.shift == max(value, 1 / value)
    assert row.shift >= 1


@pytest.fixture(scope="session")
def make_report_once():
    from varshift.probe import LayerMeasurement, Measurement
    from varshift.report import build_report
    from varshift.rules import Evidence

    def make(ratios):
        layers = tuple(LayerMeasurement(name, True, 1.0, ratio=value) for name, value in ratios.items())
        evidence = Evidence(None, None, measurement=Measurement(layers, None, 1, 1))
        return build_report(
            target="x", parameters=0, evidence=evidence, capture_method="hooks", findings=[], limits=[]
        )

    return make


def test_layers_stand_in_order_of_execution_and_others_follow(make):
    from varshift.report import build_report
    from varshift.rules import Evidence

    evidence = Evidence(
        train=make.flow(["late", "early"]),
        eval=None,
        norms={name: make.facts(name, channels=7) for name in ("unused", "early", "late")},
        measurement=make.measurement({"early": 1.0, "late": 1.1, "unused": None}),
    )
    report = build_report(
        target="x", parameters=0, evidence=evidence, capture_method="recorded", findings=[], limits=["a", "a"]
    )
    assert [row.name for row in report.layers] == ["late", "early", "unused"]
    assert [row.reached for row in report.layers] == [True, True, False]
    assert report.layers[2].channels == 7
    assert report.limits == ("a",)
    written(report)


def test_a_report_without_any_capture_lists_the_norms_it_knows_of(make):
    from varshift.report import build_report
    from varshift.rules import Evidence

    evidence = Evidence(None, None, norms={"a": make.facts("a", cls="Mine")})
    report = build_report(target="x", parameters=3, evidence=evidence, capture_method="hooks", findings=[])
    assert [(row.name, row.cls, row.reached) for row in report.layers] == [("a", "Mine", False)]
    written(report)


def test_findings_are_sorted_and_grouped_by_severity(make):
    findings = [
        make.finding("VS104", severity="advice"),
        make.finding("VS207", severity="warning"),
        make.finding("VS101", severity="error"),
        make.finding("VS207", severity="error"),
    ]
    report = make.report({"body.0.norm": 0.5}, findings)
    assert [item.severity for item in report.findings] == ["error", "error", "warning", "advice"]
    assert list(report.findings_by_code) == ["VS101", "VS207", "VS104"]
    assert [item.severity for item in report.findings_by_code["VS207"]] == ["error", "warning"]
    assert (report.ok, report.worst) == (False, "error")
    assert report.layer("body.0.norm") is report.layers[0]
    assert report.layer(report.layers[0].id) is report.layers[0]
    assert report.layer(str(report.layers[0].id)) is report.layers[0]
    assert report.layer("nobody") is None


def test_a_clean_report_says_so(make):
    report = make.report({"a": 1.001})
    assert report.ok
    assert report.worst is None
    assert report.findings_by_code == {}


def test_reports_are_frozen_plain_data_that_pickles(sick):
    assert pickle.loads(pickle.dumps(sick)) == sick
    with pytest.raises(AttributeError):
        sick.varshift = "2"


def test_a_report_made_by_hand_prints_and_fits():
    row = LayerRow(SiteId("a", "batch_norm"), "BatchNorm1d", None, 3, True)
    report = Report("0", Framework("torch", "2"), "hooks", ModelInfo("x", 1, 1, 0), layers=(row,))
    written(report)
    assert "1 norm" in str(report)


def test_json_is_written_to_a_file_as_it_is_returned(sick, tmp_path):
    path = tmp_path / "report.json"
    text = sick.to_json(path)
    assert path.read_text(encoding="utf-8") == text
    assert text.endswith("}\n")
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("name", ["r.json", "r.txt", "r.html", "r.svg", "R.JSON"])
def test_save_chooses_the_format_by_the_ending(sick, tmp_path, name):
    path = sick.save(str(tmp_path / name))
    text = path.read_text(encoding="utf-8")
    start = {"json": "{", "txt": "varshift check", "html": "<!doctype html>", "svg": "<svg"}
    assert text.startswith(start[name.rpartition(".")[2].lower()])


def test_save_names_the_endings_it_knows(sick, tmp_path):
    with pytest.raises(VarshiftError, match=r"report\.docx.*\.json, \.txt, \.html, \.svg"):
        sick.save(tmp_path / "report.docx")
    assert list(tmp_path.iterdir()) == []
