"""VS210 on hand-made evidence: weights that were trained on the stored statistics."""

from __future__ import annotations

import pytest

from varshift.rules import run_rules


def known(build, gap, facts=None, batches=16, **values):
    layers = (
        build.layer(
            "stem", **{"stale_ratio": 2.0, "stale_mean": 0.6, "ratio": 1.4, "mean_offset": 0.3, **values}
        ),
        build.layer("body"),
    )
    facts = facts or [build.facts("stem"), build.facts("body")]
    return build.evidence(*facts, measurement=build.measurement(*layers, gap=gap, batches=batches))


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"statistics": -0.5}, "error"),
        ({"statistics": -0.3, "variance_shift": 0.1}, "error"),
        ({"statistics": -0.07}, "warning"),
        ({"statistics": -0.03}, None),  # moving averages that are a little better than sixteen batches; mixup
        ({"statistics": -0.3, "stderr": 0.11}, None),
        ({"statistics": 0.3}, None),
        ({"statistics": -0.3, "variance_shift": 0.3}, None),  # re-estimated without noise
        ({"statistics": -0.3, "batches": 3}, None),
        ({"statistics": -0.3, "metric": "relative_l2"}, None),
    ],
)
def test_statistics_that_it_harms_to_replace(build, values, severity):
    found = build.findings("VS210", known(build, build.losses(**values), batches=values.get("batches", 16)))
    assert [one.severity for one in found] == [severity] * bool(severity)
    for finding in found:
        assert [site.id.module for site in finding.sites] == ["stem"]
        assert not any(one.code == "recalibrate" for one in finding.cures)
        assert finding.evidence["loss_recalibrated"] > finding.evidence["loss_eval"]
        assert "eval() is the good mode" in finding.message


def test_no_norm_that_is_off_no_finding(build):
    gap = build.losses(statistics=-0.5)
    assert build.findings("VS210", known(build, gap, stale_ratio=1.05, stale_mean=0.05)) == ()


def test_training_on_mixed_inputs_is_none_of_it(build):
    gap = build.losses(statistics=-0.3)
    assert build.findings("VS210", known(build, gap, stale_ratio=1.5, stale_mean=0.06)) == ()
    for figures in ({"stale_ratio": 1.5, "stale_mean": 0.3}, {"stale_ratio": 4.0, "stale_mean": 0.0}):
        assert len(build.findings("VS210", known(build, gap, **figures))) == 1


def test_norms_that_are_held_have_their_statistics_on_purpose(build):
    facts = [build.facts("stem", live=False), build.facts("body")]
    assert build.findings("VS210", known(build, build.losses(statistics=-0.5), facts)) == ()


def test_nothing_else_speaks_of_these_norms_and_nobody_is_told_to_recalibrate(build):
    found = run_rules(known(build, build.losses(statistics=-0.5)), select=["VS1", "VS2", "VS302"])
    assert [one.code for one in found] == ["VS210"]
