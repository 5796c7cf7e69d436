"""VS201, VS203, VS204 and VS206 on hand-made evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from varshift.rules import run_rules

NAMES = ("stem", "body", "head")


def fresh(build, **values):
    return [build.facts(name, never_moved=True, batches_tracked=0, **values) for name in NAMES]


def test_a_freshly_built_network_gets_one_piece_of_advice(build):
    flow = build.flow(norms=[build.norm(name) for name in NAMES])
    (finding,) = build.findings("VS201", build.evidence(*fresh(build), train=flow))
    assert (finding.severity, finding.confidence, finding.where) == ("advice", "certain", "stem")
    assert [str(site.id) for site in finding.sites] == [f"{name}:batch_norm" for name in NAMES]
    assert finding.evidence["count"] == 3
    assert finding.evidence["untrained"] is True
    assert str(finding.source) == "net.py:9"
    assert "forget to load the weights" in finding.message
    assert [one.code for one in finding.cures] == ["load-weights"]


@pytest.mark.parametrize("cost", [0.0, 0.5])
def test_forgotten_weights_are_said_once_and_nothing_else_is(build, cost):
    layers = [build.shifted(name, 0.2, stale_ratio=0.2) for name in NAMES]
    site = build.feeding("stem", reaches=NAMES, near={"stem": "direct"})
    known = build.evidence(
        *fresh(build, affine_moved=False),
        train=build.flow([site], [build.norm(name) for name in NAMES]),
        measurement=build.measurement(*layers, gap=build.losses(statistics=cost)),
    )
    found = run_rules(known, select=["VS1", "VS2"])
    assert [(one.code, one.severity) for one in found] == [("VS201", "error" if cost else "warning")]


def test_trained_weights_without_statistics_are_told_from_forgotten_ones(build):
    known = build.evidence(
        *fresh(build, affine_moved=True),
        measurement=build.measurement(
            *(build.layer(name, ratio=0.2) for name in NAMES), gap=build.losses(statistics=0.5)
        ),
    )
    (finding,) = build.findings("VS201", known)
    assert finding.severity == "error"
    assert finding.cost == pytest.approx(0.5)
    assert "forget" not in finding.message
    assert [one.code for one in finding.cures] == ["recalibrate", "load-weights"]
    assert finding.cures[0].measured["after"] == pytest.approx(1.0)


@pytest.mark.parametrize(("accuracy", "untrained"), [(0.9, False), (0.1, True), (None, False)])
def test_without_weights_in_the_norms_the_answers_tell_whether_it_was_trained(build, accuracy, untrained):
    rates = None if accuracy is None else {"recalibrated": accuracy}
    gap = build.losses(statistics=0.5, accuracy=rates)
    layers = [build.layer(name, ratio=0.2) for name in NAMES]
    known = build.evidence(*fresh(build, affine_moved=None), measurement=build.measurement(*layers, gap=gap))
    (finding,) = build.findings("VS201", known)
    assert finding.evidence["untrained"] is untrained
    assert ("recalibrate" in [one.code for one in finding.cures]) is not untrained


def test_norms_that_never_moved_are_one_finding_the_worst_first(build):
    layers = [
        build.layer("stem", ratio=1.2),
        build.layer("body", ratio=1.2, mean_offset=0.7),
        build.layer("head", ratio=1.2, mean_offset=0.1),
    ]
    known = build.evidence(*fresh(build, affine_moved=True), measurement=build.measurement(*layers))
    (finding,) = build.findings("VS201", known)
    assert [site.id.module for site in finding.sites] == ["body", "stem", "head"]
    assert finding.severity == "error"
    assert finding.evidence["mean_offset"] == 0.7
    assert "a mean 0.7 standard deviations off and 1.2 times the variance" in finding.message


@pytest.mark.parametrize(
    ("cost", "stderr", "severity"),
    [(0.3, 0.01, "error"), (0.07, 0.001, "warning"), (0.0, 0.001, "advice"), (0.12, 0.1, "advice")],
)
def test_what_they_cost_sets_the_severity(build, cost, stderr, severity):
    facts = [build.facts("stem"), build.facts("body", never_moved=True)]
    gap = build.losses(statistics=cost, stderr=stderr)
    layers = [build.layer("stem"), build.layer("body", ratio=0.2)]
    (finding,) = build.findings(
        "VS201", build.evidence(*facts, measurement=build.measurement(*layers, gap=gap))
    )
    assert (finding.where, finding.severity) == ("body", severity)
    assert [one.code for one in finding.cures] == (["recalibrate"] if cost > 2 * stderr else [])


def test_one_norm_that_never_moved_among_others_is_a_warning(build):
    known = build.evidence(build.facts("stem"), build.facts("body", never_moved=True))
    (finding,) = build.findings("VS201", known)
    assert (finding.where, finding.severity, finding.confidence) == ("body", "warning", "certain")
    assert finding.cures[0].safety == "safe"


def test_a_network_that_counted_batches_does_not_look_freshly_built(build):
    found = build.findings("VS201", build.evidence(build.facts(never_moved=True, batches_tracked=7)))
    assert [one.severity for one in found] == ["warning"]


@pytest.mark.parametrize("how", ["live", "batch_statistics"])
def test_a_frozen_identity_is_let_pass(build, how):
    facts = build.facts(never_moved=True, live=how != "live")
    flow = build.flow(norms=[build.norm(batch_statistics=how != "batch_statistics")])
    layers = build.measurement(build.layer(ratio=0.1))
    assert build.findings("VS201", build.evidence(facts, train=flow, measurement=layers)) == ()


@pytest.mark.parametrize(("in_train", "in_eval"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("never_moved", [True, False])
def test_a_norm_that_the_data_never_reach_costs_nothing_on_them(build, in_train, in_eval, never_moved):
    aux = [build.norm("aux")]
    known = build.evidence(
        build.facts("bn"),
        build.facts("aux", never_moved=never_moved),
        train=build.flow(norms=aux if in_train else ()),
        eval=build.flow(norms=aux if in_eval else (), mode="eval"),
        measurement=build.measurement(
            build.layer("bn"), build.layer("aux", reached=False, ratio=None, mean_offset=None)
        ),
    )
    (finding,) = build.findings("VS201", known)
    assert (finding.where, finding.severity, finding.confidence) == ("aux", "advice", "measured")
    assert finding.evidence["reached"] is False
    assert "never reach" in finding.message
    assert ("training alone" in finding.message) == (in_train and not in_eval)


def test_statistics_that_moved_and_are_reached_are_let_pass(build):
    known = build.evidence(build.facts(), measurement=build.measurement(build.layer()))
    assert build.findings("VS201", known) == ()


@pytest.mark.parametrize(
    ("values", "severity", "word"),
    [
        ({"nonfinite": 1}, "error", "NaN or infinite"),
        ({"negative": 2}, "error", "negative"),
        ({"nonfinite": 1, "negative": 1}, "error", "and a negative"),
        ({"collapsed": 2}, "warning", "2 of 4 channels"),
    ],
)
def test_broken_statistics(build, values, severity, word):
    (finding,) = build.findings("VS203", build.evidence(build.facts(**values)))
    assert (finding.severity, finding.confidence, finding.where) == (severity, "certain", "bn")
    assert word in finding.message
    for key, value in values.items():
        assert finding.evidence[key] == value


@pytest.mark.parametrize(
    "values",
    [{}, {"largest": 6e4}, {"largest": 7e4}, {"collapsed": 1}, {"collapsed": 4, "never_moved": True}],
)
def test_sound_statistics_are_let_pass(build, values):
    assert build.findings("VS203", build.evidence(build.facts(**values))) == ()


@pytest.mark.parametrize(
    ("types", "fires"),
    [(("float16", "float32"), True), (("bfloat16", "float32"), False), (("float32",), False), ((), False)],
)
def test_float16_is_spoken_of_where_the_network_computes_in_it(build, types, fires):
    flow = replace(build.flow(norms=[build.norm()]), number_types=types)
    found = build.findings("VS203", build.evidence(build.facts(largest=7e4), train=flow))
    assert [one.severity for one in found] == ["warning"] * fires
    assert all("float16" in one.message for one in found)


@pytest.mark.parametrize(("ratio", "fires"), [(1.0, True), (30.0, False)])
def test_a_variance_that_evaluation_does_not_see_is_stale_and_not_a_lost_signal(build, ratio, fires):
    layers = build.measurement(build.layer(ratio=ratio))
    found = build.findings("VS203", build.evidence(build.facts(collapsed=4), measurement=layers))
    assert len(found) == fires


def test_broken_norms_are_one_finding_whose_cure_cannot_hurt(build):
    facts = [build.facts("stem", nonfinite=1), build.facts("body", nonfinite=3), build.facts("head")]
    (finding,) = build.findings("VS203", build.evidence(*facts))
    assert [site.id.module for site in finding.sites] == ["stem", "body"]
    assert [(one.code, one.safety) for one in finding.cures] == [("recalibrate", "safe")]
    lost = build.losses()
    lost = replace(lost, states={**lost.states, "eval": None, "recalibrated": None})
    measured = build.measurement(build.layer("stem"), gap=lost)
    (finding,) = build.findings("VS203", build.evidence(*facts, measurement=measured))
    assert finding.cures == ()  # the weights are not numbers either: other statistics do not help


@pytest.mark.parametrize(
    ("momentum", "word"),
    [
        (0.9, "should be 0.1"),
        (0.99, "should be 0.01"),
        (0.999, "should be 0.001"),
        (0.5, "half of the past"),
        (1.0, "last batch"),
        (0.0, "never move"),
        (1.5, "between 0 and 1"),
        (-0.1, "between 0 and 1"),
    ],
)
def test_a_momentum_of_another_convention(build, momentum, word):
    (finding,) = build.findings("VS204", build.evidence(build.facts(momentum=momentum)))
    assert (finding.severity, finding.confidence) == ("warning", "certain")
    assert word in finding.message
    assert finding.evidence == {"momentum": momentum, "count": 1}


def test_one_momentum_at_many_norms_is_one_finding_and_the_cause_of_stale_statistics(build):
    facts = [build.facts(name, momentum=0.99) for name in NAMES]
    layers = [build.layer(name, ratio=1.3, stale_ratio=1.3) for name in NAMES]
    gap = build.losses(statistics=0.2)
    known = build.evidence(*facts, measurement=build.measurement(*layers, gap=gap))
    found = run_rules(known, select=["VS202", "VS204"])
    assert [(one.code, one.severity, len(one.sites)) for one in found] == [("VS204", "error", 3)]


def test_the_momentum_of_a_frozen_norm_does_not_matter(build):
    assert build.findings("VS204", build.evidence(build.facts(momentum=0.99, live=False))) == ()


def test_a_momentum_of_0_that_costs_nothing_is_a_freeze(build):
    measured = build.measurement(build.layer(), gap=build.losses())
    (finding,) = build.findings("VS204", build.evidence(build.facts(momentum=0.0), measurement=measured))
    assert finding.severity == "advice"


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.003, 0.49, None])
def test_torch_momentum_is_let_pass(build, momentum):
    assert build.findings("VS204", build.evidence(build.facts(momentum=momentum))) == ()


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"dtype": "float16"}, "warning"),
        ({"dtype": "bfloat16"}, "warning"),
        ({"dtype": "float8_e4m3fn"}, "warning"),
        ({"dtype": "bfloat16", "largest": 1e5}, "error"),
        ({"dtype": "float16", "nonfinite": 1, "largest": None}, "error"),
    ],
)
def test_statistics_in_half_precision(build, values, severity):
    (finding,) = build.findings("VS206", build.evidence(build.facts(**values)))
    assert (finding.severity, finding.confidence) == (severity, "certain")
    assert values["dtype"] in finding.message


@pytest.mark.parametrize(("cost", "severity"), [(0.0, "advice"), (0.07, "warning"), (0.3, "error")])
def test_half_precision_is_graded_by_what_it_costs_and_precedes_what_follows_from_it(build, cost, severity):
    layers = build.measurement(build.layer(stale_ratio=2.0, ratio=2.0), gap=build.losses(statistics=cost))
    known = build.evidence(build.facts(dtype="bfloat16"), measurement=layers)
    found = run_rules(known, select=["VS202", "VS203", "VS206"])
    assert [(one.code, one.severity) for one in found] == [("VS206", severity)]


def test_an_overflow_of_half_precision_statistics_is_said_once(build):
    known = build.evidence(build.facts(dtype="float16", nonfinite=2), build.facts("other"))
    found = run_rules(known, select=["VS203", "VS206"])
    assert [(one.code, one.severity) for one in found] == [("VS206", "error")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_statistics_in_full_precision_are_let_pass(build, dtype):
    assert build.findings("VS206", build.evidence(build.facts(dtype=dtype, largest=1e6))) == ()
