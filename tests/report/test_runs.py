"""The page says which rules it rests on: what was not looked at is not found to be well."""

import pytest

from varshift.evidence import NOT_NEEDED, EvidenceRun
from varshift.rules import NOT_SELECTED, RuleRun

CLEAR = "the network computes at deployment what it learned"


def text_of(report, **options):
    from varshift.report import FORMATS

    return " ".join(FORMATS["text"].render(report, width=100, **options).split())


def test_all_is_well_only_where_all_rules_ran(make):
    rules = [RuleRun("VS101", True), RuleRun("VS207", True)]
    gap = make.gap((0.5,) * 6)
    assert CLEAR in text_of(make.report({"a": 1.0}, rules=rules, gap=gap))
    unasked = RuleRun("VS307", False, "needs inputs (no deployment loader was given)")
    text = text_of(make.report({"a": 1.0}, rules=[*rules, unasked], gap=gap))
    assert CLEAR in text
    assert "VS307" not in text
    text = text_of(make.report({"a": 1.0}, rules=[*rules, RuleRun("VS302", False, NOT_SELECTED)], gap=gap))
    assert CLEAR not in text
    assert "Nothing found by the 2 rules that ran, VS101 and VS207." in text
    assert "VS302" not in text
    failed = RuleRun("VS302", False, "needs luck (none)")
    text = text_of(make.report({"a": 1.0}, rules=[*rules, failed], gap=gap))
    assert CLEAR not in text
    assert "Nothing found by the 2 rules that ran; VS302 could not." in text
    assert "VS302 did not run: needs luck (none)." in text


def test_rules_that_did_not_run_for_one_reason_share_a_line(make):
    rules = [RuleRun(code, False, "needs measurement (no data were given)") for code in ("VS202", "VS302")]
    report = make.report(norms=["a"], rules=rules)
    assert "did not run" not in text_of(report)
    assert "No data was given, so nothing was measured" in text_of(report)
    assert "VS202 and VS302 did not run: needs measurement (no data were given)." in text_of(
        report, full=True
    )


def test_what_no_rule_needed_is_not_said_to_be_missing(make):
    rules = [RuleRun("VS204", True), RuleRun("VS101", False, NOT_SELECTED)]
    names = ("loader", "capture", "prediction", "measurement")
    provided = [EvidenceRun("modules", True), *(EvidenceRun(name, False, NOT_NEEDED) for name in names)]
    text = text_of(make.report(norms=["a"], rules=rules, provided=provided, capture_method="hooks"))
    assert "Nothing found by the 1 rule that ran, VS204." in text
    assert "1 norm · nothing measured · not captured · torch" in text
    for wrong in ("noise site", "no data", "hooks", "vs.check(model, loader)"):
        assert wrong not in text


def test_the_page_ends_with_the_call_that_repeats_it(make):
    text = text_of(make.report({"a": 1.0}, repeat="varshift.check(model, loader, seed=3)"))
    assert text.endswith("varshift.check(model, loader, seed=3) repeats this check")


@pytest.mark.parametrize("select", [["VS204"], ["VS204", "VS206"]])
def test_a_check_of_some_rules_gives_no_clean_bill(select):
    from torch import nn

    import varshift as vs

    report = vs.check(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), select=select)
    assert {run.code for run in report.rules if run.ran} == set(select)
    assert [run.name for run in report.evidence if run.ran] == ["modules"]
    assert f"Nothing found by the {len(select)} rule" in str(report)
