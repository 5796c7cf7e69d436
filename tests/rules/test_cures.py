"""Cures are data: a code that the table explains, a target, and options."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import varshift.rules
from varshift import VarshiftError
from varshift._sites import SiteId
from varshift.fixes import REMEDIES
from varshift.rules import CURES
from varshift.rules._cures import cure

RULES = sorted(Path(varshift.rules.__file__).parent.glob("*.py"))


def calls(name: str) -> list[ast.Call]:
    """All calls of a function in the files of the rules."""
    nodes = [node for path in RULES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [
        node
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def test_every_cure_has_a_code_of_the_table_and_every_code_is_used():
    codes = [call.args[0].value for call in calls("cure") if isinstance(call.args[0], ast.Constant)]
    assert len(codes) == len(calls("cure")) > 30
    assert set(codes) <= set(CURES)
    assert set(CURES) - set(codes) <= set(REMEDIES)  # what no rule proposes can be asked for
    assert len(calls("Cure")) == 1  # the one in `cure`: no rule makes a cure past the table


def test_a_code_is_short_and_its_sentence_is_one():
    for code, sentence in CURES.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+){0,2}", code)
        assert re.fullmatch(r"[A-Z][^.]+\.", sentence)


def test_a_code_that_no_table_explains_is_refused():
    with pytest.raises(VarshiftError, match=r"code='pray'.*recalibrate"):
        cure("pray", "hope for the best", "unsafe")


def test_cures_of_a_noise_site_name_it_and_those_of_the_statistics_concern_all(build):
    flow = build.flow([build.feeding(ordinal=2)], [build.norm()])
    (finding,) = build.findings("VS101", build.evidence(build.facts(), train=flow))
    assert finding.sites[0].id == SiteId("drop", "dropout", 2)
    assert [(item.code, item.target, dict(item.options)) for item in finding.cures] == [
        ("recalibrate", None, {"noise": False}),
        ("move-noise", SiteId("drop", "dropout", 2), {"to": "head"}),
        ("lower-rate", SiteId("drop", "dropout", 2), {}),
        ("swap-noise", SiteId("drop", "dropout", 2), {"to": "uniform"}),
    ]


def test_a_momentum_comes_with_the_value_that_cures_it(build):
    (finding,) = build.findings("VS204", build.evidence(build.facts(momentum=0.99)))
    (remedy,) = finding.cures
    assert (remedy.code, remedy.target) == ("set-momentum", SiteId("bn", "batch_norm"))
    assert remedy.options["momentum"] == pytest.approx(0.01)


def test_a_norm_is_called_by_one_name_with_and_without_a_capture(build):
    known = build.facts(momentum=0.99)
    (alone,) = build.findings("VS204", build.evidence(known))
    (captured,) = build.findings("VS204", build.evidence(known, train=build.flow(norms=[build.norm()])))
    assert alone.sites[0].id == captured.sites[0].id


def test_a_signal_that_is_not_finite_lists_every_norm_that_sees_it(build):
    names = ("stem", "body", "head")
    layers = [build.layer(name, real_var=None if name != "stem" else 1.0) for name in names]
    facts = [build.facts(name) for name in names]
    known = build.evidence(*facts, measurement=build.measurement(*layers))
    (finding,) = build.findings("VS203", known)
    assert [site.id.module for site in finding.sites] == ["body", "head"]
    assert (finding.where, finding.cls, finding.source) == ("body", "BatchNorm2d", None)


def test_a_predicted_shift_has_one_confidence_and_the_prediction_its_own(build):
    from varshift.moments import LayerPrediction, Prediction

    layer = LayerPrediction("bn", "BatchNorm2d", None, 0.5, 0.5, 0.0, 0.5, {}, "high", ("drop",))
    known = build.evidence(build.facts(), prediction=Prediction((layer,), {"drop": 0.5}, "anchored"))
    (finding,) = build.findings("VS207", known)
    assert finding.confidence == "predicted"
    assert finding.evidence["prediction_confidence"] == "high"
    assert "confidence" not in finding.evidence


def test_the_page_of_the_report_file_lists_every_kind_of_cure():
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.+) \|$", page, flags=re.MULTILINE)
    assert dict(rows) == {code: sentence[0].lower() + sentence[1:-1] for code, sentence in CURES.items()}
