"""VS202 and VS207 on hand-made evidence: staleness, shift, and telling the one from the other."""

from __future__ import annotations

import pytest


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
    assert finding.cures[0].safety == "safe"
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


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"deltas": (0, 0, 0, 0.1)}, "warning"),
        ({"deltas": (0, 0, 0, 0.04)}, "advice"),
        ({"deltas": (0, 0, 0, -0.1)}, None),
        ({"deltas": (0, 0, 0, 0.1), "stderr": 0.06}, None),
        ({"deltas": (0, 0, 0, 0.1), "stderr": None}, None),
        ({"deltas": (0, 0, 0, 0.004)}, None),
        ({"deltas": (0, 0, 0, None)}, None),
        ({"deltas": (0, 0, 0, 0.1), "metric": "relative_l2"}, None),
        ({"deltas": (0, 0, 0, 0.006)}, "advice"),
        ({"deltas": (0, 0, 0, 0.006), "accuracy": {"eval": 0.9}}, None),
        ({"deltas": (0, 0, 0, 0.012), "accuracy": {"eval": 0.9}}, "advice"),
    ],
)
def test_where_only_the_loss_shows_it_the_norm_furthest_off_is_named_once(build, values, severity):
    layers = [
        build.layer("stem"),
        build.layer("body", stale_ratio=1.08),
        build.layer("head", stale_mean=0.02),
    ]
    found = build.findings("VS202", known(build, *layers, gap=build.gap(**values)))
    assert [(one.where, one.severity) for one in found] == [("body", severity)] * bool(severity)
    for finding in found:
        assert finding.evidence["loss_step"] == values["deltas"][-1]


def test_the_loss_is_not_counted_twice(build):
    gap = build.gap((0, 0, 0, 0.1))
    (finding,) = build.findings(
        "VS202", known(build, stale(build, stale_ratio=2.0), build.layer("two"), gap=gap)
    )
    assert finding.where == "bn"
    assert "loss_step" not in finding.evidence
    facts = [build.facts(never_moved=True), build.facts("two")]
    assert (
        build.findings("VS202", known(build, build.layer(), build.layer("two"), facts=facts, gap=gap)) == ()
    )


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


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"deltas": (0, 0, 0, 0.0)}, "advice"),
        ({"deltas": (0, 0, 0, -0.1)}, "advice"),
        ({"deltas": (0, 0, 0, 0.004)}, "warning"),
        ({"deltas": (0, 0, 0, 0.0), "stderr": 0.01}, "warning"),
        ({"deltas": (0, 0, 0, 0.0), "stderr": None}, "warning"),
        ({"deltas": (0, 0, 0, None)}, "warning"),
        ({"deltas": (0, 0, 0, 0.0), "metric": "relative_l2"}, "warning"),
    ],
)
def test_where_the_loss_surely_does_not_suffer_a_warning_is_advice(build, values, severity):
    layers = stale(build, stale_ratio=1.2), stale(build, "two", stale_ratio=2.0)
    found = build.findings("VS202", known(build, *layers, gap=build.gap(**values)))
    assert {one.where: one.severity for one in found} == {"bn": severity, "two": "error"}


@pytest.mark.parametrize("fault", [{"nonfinite": 1}, {"negative": 1}])
def test_broken_statistics_account_for_the_loss(build, fault):
    facts = [build.facts(**fault), build.facts("two")]
    gap = build.gap((0, 0, 0, 0.1))
    assert (
        build.findings("VS202", known(build, build.layer(), build.layer("two"), facts=facts, gap=gap)) == ()
    )


def test_a_loss_of_batch_statistics_in_evaluation_is_not_blamed_on_running_ones(build):
    layers, gap = (build.layer(), build.layer("two")), build.gap((0, 0, 0, 0.1))
    facts = {name: build.facts(name) for name in ("bn", "two")}
    measured = build.measurement(*layers, gap=gap)
    deployed = build.flow(norms=[build.norm(batch_statistics=True)], mode="eval")
    stuck = build.modes(stuck_training={"two": "BatchNorm2d"})
    noisy = build.modes(stuck_training={"drop": "Dropout"})
    for values, count in (({"eval": deployed}, 0), ({"modes": stuck}, 0), ({"modes": noisy}, 1)):
        evidence = build.evidence(*facts.values(), measurement=measured, **values)
        assert len(build.findings("VS202", evidence)) == count


def test_few_batches_do_not_show_a_loss(build):
    gap = build.gap((0, 0, 0, 0.1))
    assert build.findings("VS202", known(build, build.layer(), gap=gap, batches=3)) == ()
    assert len(build.findings("VS202", known(build, build.layer(), gap=gap, batches=4))) == 1
