"""VS202 and VS207 on hand-made evidence: staleness, shift, and telling the one from the other."""

from __future__ import annotations

import pytest

from varshift.rules import run_rules


def known(build, *layers, facts=None, train=None, **measured):
    facts = facts if facts is not None else [build.facts(layer.name) for layer in layers]
    return build.evidence(*facts, train=train, measurement=build.measurement(*layers, **measured))


def stale(build, name="bn", **values):
    """A norm whose statistics are off, in training and as deployed."""
    ratio = values.get("stale_ratio", 1.0)
    return build.layer(name, **{"ratio": ratio, "mean_offset": values.get("stale_mean", 0.0), **values})


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"stale_ratio": 1.2}, "warning"),
        ({"stale_ratio": 0.8}, "warning"),
        ({"stale_ratio": 2.0}, "error"),
        ({"stale_ratio": 0.4}, "error"),
        ({"stale_mean": 0.2}, "warning"),
        ({"stale_mean": 0.6}, "error"),
        ({"stale_ratio": 1.2, "stale_mean": 0.6}, "error"),
    ],
)
def test_statistics_that_training_does_not_produce_are_stale(build, values, severity):
    (finding,) = build.findings("VS202", known(build, stale(build, **values)))
    assert (finding.severity, finding.confidence, finding.where) == (severity, "measured", "bn")
    assert finding.cures[0].safety == "unsafe"  # without a loss nobody knows what other statistics would do
    for key, value in values.items():
        assert finding.evidence[key] == value


@pytest.mark.parametrize(
    "values",
    [
        {"stale_ratio": 1.05},
        {"stale_mean": 0.05},
        {"stale_ratio": 1.3, "stale_error": 0.08},
        {"stale_mean": 0.3, "stale_mean_error": 0.08},
        {"stale_ratio": None, "stale_mean": None},
        {"stale_ratio": float("nan")},
        {"reached": False, "stale_ratio": 3.0},
    ],
)
def test_what_lies_within_its_error_is_let_pass(build, values):
    assert build.findings("VS202", known(build, stale(build, **{"ratio": 1.3, **values}))) == ()


def test_the_noise_of_the_moving_average_itself_counts(build):
    layer = stale(build, stale_ratio=1.3, stale_error=0.05)
    assert len(build.findings("VS202", known(build, layer))) == 1
    forgetful = [build.facts(momentum=1.0)]
    assert build.findings("VS202", known(build, layer, facts=forgetful)) == ()


def test_a_cumulative_average_is_as_good_as_the_batches_it_counted(build):
    layer = stale(build, stale_ratio=1.3, stale_error=0.05)
    for counted, fires in ((1, False), (1000, True)):
        facts = [build.facts(momentum=None, batches_tracked=counted)]
        assert len(build.findings("VS202", known(build, layer, facts=facts))) == fires


@pytest.mark.parametrize(("samples", "ratio", "fires"), [(8, 3.0, True), (8, 1.8, False), (512, 1.3, True)])
def test_of_a_single_batch_only_what_exceeds_the_noise_of_its_samples_counts(build, samples, ratio, fires):
    layer = stale(build, stale_ratio=ratio, stale_error=None, stale_mean_error=None)
    assert len(build.findings("VS202", known(build, layer, batches=1, samples=samples))) == fires


def test_statistics_re_estimated_without_noise_are_not_stale(build):
    # training still has the noise, so it produces other statistics; the deployed network fits its own
    layer = build.layer(stale_ratio=2.0, stale_mean=0.3, ratio=1.01, mean_offset=0.02)
    assert build.findings("VS202", known(build, layer)) == ()


@pytest.mark.parametrize(("effective", "fires"), [(8.0, False), (40.0, True), (2.0, True)])
def test_small_batches_miss_the_variance_between_them_without_being_stale(build, effective, fires):
    layer = stale(build, stale_ratio=1.13, effective_batch=effective)
    assert len(build.findings("VS202", known(build, layer))) == fires


@pytest.mark.parametrize("values", [{"never_moved": True}, {"nonfinite": 1}, {"negative": 1}])
def test_statistics_of_another_rule_are_left_to_it(build, values):
    found = build.findings(
        "VS202", known(build, stale(build, stale_ratio=3.0), facts=[build.facts(**values)])
    )
    assert found == ()


@pytest.mark.parametrize(
    ("ratio", "offset", "fires"), [(3.0, 0.0, True), (0.5, 0.0, True), (1.0, 0.6, True), (1.3, 0.3, False)]
)
def test_a_frozen_norm_far_from_its_statistics_is_advice(build, ratio, offset, fires):
    layer = build.layer(ratio=ratio, mean_offset=offset, stale_ratio=ratio)
    found = build.findings("VS202", known(build, layer, facts=[build.facts(live=False)]))
    assert [one.severity for one in found] == ["advice"] * fires
    assert all("frozen" in one.message for one in found)


def three(build):
    """No norm is off beyond its error; the second is furthest off."""
    return (
        build.layer("stem"),
        build.layer("body", stale_ratio=1.05),
        build.layer("head", stale_mean=0.02),
    )


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"statistics": 0.15}, "error"),
        ({"statistics": 0.07}, "warning"),
        ({"statistics": 0.04}, None),
        ({"statistics": -0.15}, None),
        ({"statistics": 0.15, "stderr": 0.08}, None),
        ({"statistics": 0.15, "metric": "relative_l2"}, None),
        ({"statistics": 0.008, "level": 0.05}, None),
        ({"statistics": 0.008, "level": 0.05, "accuracy": None}, "error"),
        ({"statistics": 0.15, "variance_shift": -0.15}, None),
        ({"statistics": 0.15, "variance_shift": 0.5}, None),  # it goes with the shift
        ({"statistics": 0.15, "variance_shift": 0.3}, "error"),
    ],
)
def test_where_only_the_loss_shows_it_the_norm_furthest_off_is_named_once(build, values, severity):
    gap = build.losses(**values)
    found = build.findings("VS202", known(build, *three(build), gap=gap))
    assert [(one.where, one.severity) for one in found] == [("body", severity)] * bool(severity)
    for finding in found:
        assert finding.evidence["loss_step"] == pytest.approx(values["statistics"])
        assert (finding.cost, finding.step) == (pytest.approx(values["statistics"]), "statistics")
        assert [one.safety for one in finding.cures] == ["safe"]
        won = values["statistics"] + values.get("variance_shift", 0.0)
        assert finding.cures[0].measured["change"] == pytest.approx(-won)


def test_all_stale_norms_are_one_finding_the_worst_first_led_by_what_is_wrong(build):
    layers = [
        stale(build, "stem", stale_ratio=1.2),
        build.layer("body"),
        stale(build, "head", stale_mean=0.46),
    ]
    (finding,) = build.findings("VS202", known(build, *layers))
    assert [site.id.module for site in finding.sites] == ["head", "stem"]
    assert "a mean 0.46 standard deviations off" in finding.message
    assert "times the variance" not in finding.message


def test_statistics_that_never_moved_account_for_the_loss(build):
    facts = [build.facts(never_moved=True), build.facts("two")]
    layers = build.layer(), build.layer("two")
    gap = build.losses(statistics=0.5)
    assert build.findings("VS202", known(build, *layers, facts=facts, gap=gap)) == ()


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"variance_shift": 0.15}, "error"),
        ({"variance_shift": 0.07}, "warning"),
        ({"variance_shift": 0.03}, None),
        ({"variance_shift": 0.15, "statistics": -0.15}, None),  # re-estimated without noise already
        ({"variance_shift": 0.15, "statistics": -0.08}, "warning"),
    ],
)
def test_where_only_the_loss_shows_a_shift_the_norm_furthest_off_is_named_once(build, values, severity):
    layers = [build.layer("stem"), build.shifted("body", 0.95)]
    flow = build.flow([build.noise(reaches=("body",))], [build.norm("stem"), build.norm("body")])
    found = build.findings("VS207", known(build, *layers, train=flow, gap=build.losses(**values)))
    assert [(one.where, one.severity) for one in found] == [("body", severity)] * bool(severity)


@pytest.mark.parametrize(("code", "path"), [("VS101", "direct"), ("VS102", "weight"), ("VS102", "join")])
@pytest.mark.parametrize(
    ("values", "ratio", "severity"),
    [
        ({"variance_shift": 0.15}, 0.95, "error"),
        ({"variance_shift": 0.15}, 0.85, "error"),
        ({"variance_shift": 0.001}, 0.4, "advice"),
        ({"variance_shift": 0.001}, 0.95, None),
        ({"variance_shift": 0.008, "level": 0.02}, 0.6, "warning"),  # learnt by heart: the ratio tells
        ({"variance_shift": 0.008, "level": 0.02}, 0.95, None),
        ({"variance_shift": 0.0001, "level": 0.02}, 0.6, "advice"),
        ({"variance_shift": 0.15, "batches": 3}, 0.4, "error"),
        ({"variance_shift": 0.001, "batches": 3}, 0.4, "error"),
    ],
)
def test_a_placement_is_graded_by_what_its_shift_costs(build, code, path, values, ratio, severity):
    values = {"stderr": 0.0001, **values}
    flow = build.flow([build.feeding(path=path)], [build.norm()])
    batches = values.get("batches", 16)
    found = build.findings(
        code,
        known(build, build.shifted(ratio=ratio), train=flow, gap=build.losses(**values), batches=batches),
    )
    assert [one.severity for one in found] == [severity] * bool(severity)


def test_one_cause_is_said_once(build):
    layers = [build.shifted("bn", 0.5), build.shifted("later", 0.3)]
    site = build.feeding(reaches=("bn", "later"))
    flow = build.flow([site], [build.norm(), build.norm("later")])
    evidence = known(build, *layers, train=flow, gap=build.losses(variance_shift=0.3))
    assert [one.code for one in run_rules(evidence, select=["VS1", "VS2"])] == ["VS101"]
    assert [one.code for one in run_rules(evidence, select=["VS207"])] == ["VS207"]


@pytest.mark.parametrize(
    ("values", "safety"),
    [
        ({"variance_shift": 0.3}, "safe"),
        ({"variance_shift": 0.3, "stderr": 0.2}, None),
        ({"variance_shift": 0.3, "statistics": -0.4}, None),
        ({"variance_shift": 0.3, "batches": 3}, "safe"),
    ],
)
def test_recalibration_is_offered_as_far_as_it_was_measured_to_help(build, values, safety):
    evidence = known(build, build.shifted(), gap=build.losses(**values), batches=values.get("batches", 16))
    (finding,) = build.findings("VS207", evidence) or build.findings("VS202", evidence) or (None,)
    cures = [one.safety for one in finding.cures if one.code == "recalibrate"] if finding else []
    assert cures == ([safety] if safety else [])


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"ratio": 0.5, "fresh_ratio": 0.5}, "error"),
        ({"ratio": 0.8, "fresh_ratio": 0.8}, "warning"),
        ({"ratio": 1.7, "fresh_ratio": 1.7}, "error"),
        ({"ratio": 0.95, "fresh_ratio": 0.95}, None),
        ({"ratio": 0.5, "fresh_ratio": 1.0}, None),
        ({"ratio": 1.05, "fresh_ratio": 0.4, "local_ratio": 2.59}, None),
        ({"ratio": 0.5, "fresh_ratio": 0.5, "control_ratio": 0.5}, None),
        ({"ratio": 0.5, "fresh_ratio": 0.5, "reached": False}, None),
        ({"ratio": None}, None),
        ({"ratio": float("inf")}, None),
    ],
)
def test_a_shift_at_a_norm_is_what_exceeds_the_control_by_the_noise(build, values, severity):
    found = build.findings("VS207", known(build, build.layer(**values)))
    assert [(one.where, one.severity, one.confidence) for one in found] == [
        ("bn", severity, "measured")
    ] * bool(severity)


def test_a_shift_carries_its_figures_its_noise_and_its_share_of_the_gap(build):
    sites = [
        build.noise("early", reaches=("bn", "x")),
        build.noise("late", reaches=("x",)),
        build.noise("early", reaches=("bn",), ordinal=2),
    ]
    gap = build.gap((0.0, 0.1, 0.3, 0.1))
    layer = build.shifted(ratio=0.6, control_ratio=1.2, local_ratio=0.4, mean_offset=0.25)
    (finding,) = build.findings(
        "VS207", known(build, layer, train=build.flow(sites, [build.norm()]), gap=gap)
    )
    assert finding.evidence["noise"] == ["early:dropout", "early:dropout#2"]
    assert finding.evidence["noise_count"] == 2
    assert finding.evidence["excess"] == pytest.approx(0.5)
    assert finding.evidence["mean_offset"] == 0.25
    assert finding.evidence["gap_step"] == 0.3
    assert finding.evidence["gap_share"] == pytest.approx(0.6)
    assert str(finding.source) == "net.py:9"
    assert "0.6 times" in finding.message


def test_without_a_whole_gap_there_is_no_share(build):
    gap = build.gap((0.0, None, 0.3, 0.1))
    (finding,) = build.findings("VS207", known(build, build.shifted(), gap=gap))
    assert finding.evidence["gap_step"] == 0.3
    assert "gap_share" not in finding.evidence


def test_a_norm_that_does_not_learn_has_no_shift_to_report(build):
    assert build.findings("VS207", known(build, build.shifted(), facts=[build.facts(live=False)])) == ()


def test_without_data_nothing_is_measured(build):
    assert build.findings("VS202", build.evidence(build.facts())) == ()
    assert build.findings("VS207", build.evidence(build.facts())) == ()


@pytest.mark.parametrize("ratio", [1.2, 2.0])
@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"statistics": 0.0}, "advice"),
        ({"statistics": -0.01}, "advice"),
        ({"statistics": 0.07}, "warning"),
        ({"statistics": 0.3}, "error"),
    ],
)
def test_where_a_loss_was_measured_the_ratio_does_not_matter(build, ratio, values, severity):
    layers = stale(build, stale_ratio=ratio), stale(build, "two", stale_ratio=1.01)
    (finding,) = build.findings("VS202", known(build, *layers, gap=build.losses(**values)))
    assert (finding.where, finding.severity) == ("bn", severity)


@pytest.mark.parametrize("fault", [{"nonfinite": 1}, {"negative": 1}])
def test_broken_statistics_account_for_the_loss(build, fault):
    facts = [build.facts(**fault), build.facts("two")]
    gap = build.losses(statistics=0.5)
    assert (
        build.findings("VS202", known(build, build.layer(), build.layer("two"), facts=facts, gap=gap)) == ()
    )


def test_a_loss_of_batch_statistics_in_evaluation_is_not_blamed_on_running_ones(build):
    layers = build.layer(), build.layer("two")
    gap = build.losses(statistics=0.5)
    facts = {name: build.facts(name) for name in ("bn", "two")}
    measured = build.measurement(*layers, gap=gap)
    deployed = build.flow(norms=[build.norm(batch_statistics=True)], mode="eval")
    stuck = build.modes(stuck_training={"two": "BatchNorm2d"})
    noisy = build.modes(stuck_training={"drop": "Dropout"})
    for values, count in (({"eval": deployed}, 0), ({"modes": stuck}, 0), ({"modes": noisy}, 1)):
        evidence = build.evidence(*facts.values(), measurement=measured, **values)
        assert len(build.findings("VS202", evidence)) == count


@pytest.mark.parametrize(("batches", "fires"), [(3, False), (4, True)])
def test_few_batches_do_not_show_a_loss(build, batches, fires):
    gap = build.losses(statistics=0.5, batches=batches)
    assert len(build.findings("VS202", known(build, build.layer(), gap=gap, batches=batches))) == fires
