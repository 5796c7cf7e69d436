"""VS301 and VS302 on hand-made evidence."""

from __future__ import annotations

from dataclasses import replace

import pytest

MAP, POINT, VECTOR = (8, 4, 6, 6), (8, 4, 1, 1), (8, 4)


def batch_of_one(build, shapes=(MAP,), nodes=(), norm=None, **loader):
    norm = {"shapes": shapes, **(norm or {})}
    flow = build.flow(norms=[build.norm(**norm)], nodes=nodes)
    known = build.evidence(build.facts(), train=flow, loader=build.loader(**loader))
    return build.findings("VS301", known)


REST_OF_ONE = {"samples": 1001, "drop_last": False, "last_batch": 1}


@pytest.mark.parametrize(
    ("shapes", "severity"),
    [((MAP,), "warning"), ((POINT,), "error"), ((VECTOR,), "error"), ((MAP, POINT), "error")],
)
def test_a_last_batch_of_one_stops_norms_with_one_value_per_channel(build, shapes, severity):
    (finding,) = batch_of_one(build, shapes, **REST_OF_ONE)
    assert (finding.severity, finding.confidence, finding.where) == (severity, "certain", "bn")
    assert "1001 samples in batches of 8" in finding.message
    assert finding.cures[0].safety == "safe"


@pytest.mark.parametrize(
    ("loader", "fires"),
    [
        ({}, False),
        ({"last_batch": 1, "drop_last": None}, True),
        ({"batch_size": 1, "last_batch": 1}, True),
        (
            {"samples": None, "batch_size": None, "drop_last": None, "last_batch": None, "sizes": (8, 8, 1)},
            True,
        ),
        (
            {"samples": None, "batch_size": None, "drop_last": None, "last_batch": None, "sizes": (8, 8)},
            False,
        ),
        ({"samples": 1002, "drop_last": False, "last_batch": 2}, False),
    ],
)
def test_where_a_batch_of_one_comes_from(build, loader, fires):
    assert len(batch_of_one(build, **loader)) == fires


@pytest.mark.parametrize(
    "norm",
    [{"batch_statistics": False}, {"kind": "instance_norm"}, {"name": "unknown", "batch_statistics": False}],
)
def test_norms_that_do_not_look_at_the_batch_do_not_mind(build, norm):
    assert batch_of_one(build, (VECTOR,), norm=norm, **REST_OF_ONE) == ()


def test_samples_folded_into_the_first_dimension_are_unfolded(build):
    nodes = [build.node(0, "input", shape=(8, 16, 4))]
    folded, plain = ((128, 4),), ((8, 4),)
    assert [one.severity for one in batch_of_one(build, folded, nodes, **REST_OF_ONE)] == ["warning"]
    assert [one.severity for one in batch_of_one(build, plain, nodes, **REST_OF_ONE)] == ["error"]


def test_without_a_captured_network_it_is_a_warning_for_the_model(build):
    known = build.evidence(build.facts(), loader=build.loader(**REST_OF_ONE))
    (finding,) = build.findings("VS301", known)
    assert (finding.where, finding.severity) == ("", "warning")
    frozen = build.evidence(build.facts(live=False), loader=build.loader(**REST_OF_ONE))
    assert build.findings("VS301", frozen) == ()


def small(build, *layers, facts=None, gap=None, batches=16, **known):
    facts = facts or [build.facts(layer.name) for layer in layers]
    measurement = build.measurement(*layers, gap=gap, batches=batches)
    return build.findings("VS302", build.evidence(*facts, measurement=measurement, **known))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"effective_batch": 10.0}, ("warning", "measured")),
        ({"effective_batch": 5.0}, ("error", "measured")),
        ({"effective_batch": 14.0}, None),
        ({"effective_batch": 7.5, "effective_batch_error": 0.3}, ("warning", "measured")),
        ({"effective_batch": 5.0, "effective_batch_error": None}, None),
        ({"effective_batch": None}, None),
        ({"values_per_channel": 12}, ("warning", "certain")),
        ({"values_per_channel": 4, "effective_batch": None}, ("error", "certain")),
        ({"values_per_channel": 12, "effective_batch": 3.0}, ("error", "measured")),
        ({"values_per_channel": 16}, None),
        ({"reached": False, "values_per_channel": None, "effective_batch": 2.0}, None),
    ],
)
def test_an_effective_batch_below_its_threshold_by_more_than_its_error(build, values, expected):
    found = small(build, build.layer(**values))
    assert [(one.severity, one.confidence) for one in found] == ([expected] if expected else [])


def test_one_finding_at_the_worst_norm_counts_the_others(build):
    layers = [
        build.layer(name, effective_batch=size)
        for name, size in zip("abcd", (30.0, 10.0, 4.0, 5.0), strict=True)
    ]
    (finding,) = small(build, *layers)
    assert (finding.where, finding.severity) == ("c", "error")
    assert [site.id.module for site in finding.sites] == ["c", "b", "d"]
    assert finding.evidence["below_16"] == 3
    assert finding.evidence["below_8"] == 2
    assert finding.evidence["norms"] == 4
    assert "'b'" in finding.message


def test_a_small_last_batch_is_not_the_typical_one(build):
    layer = build.layer(values_per_channel=5, effective_batch=None)
    assert len(small(build, layer, loader=build.loader(sizes=(5, 5, 5)))) == 1
    assert small(build, layer, loader=build.loader(sizes=(64, 64, 5))) == ()


def test_norms_that_do_not_learn_or_work_on_single_samples_are_left_out(build):
    layer = build.layer(effective_batch=3.0)
    assert small(build, layer, facts=[build.facts(live=False)]) == ()
    assert small(build, layer, train=build.flow(norms=[build.norm(kind="instance_norm")])) == ()
    assert build.findings("VS302", build.evidence(build.facts())) == ()


def batch_gap(build, clean, pooled, stderr=0.001, **values):
    """A gap whose small-batch step goes from one loss to another."""
    later = dict.fromkeys(("recalibrated", "recalibrated_noisy", "eval"), pooled)
    states = {"train": clean, "clean": clean, "clean_eval": clean, **later}
    batches = {}
    if stderr is not None:  # 16 batches whose differences have this standard error
        wobble = [stderr * 15**0.5 * (-1) ** number for number in range(16)]
        batches = {
            name: tuple(value + (name in later) * one for one in wobble) for name, value in states.items()
        }
    known = {"states": states, "batches": batches, "sizes": (8,) * 16, "accuracy": {"eval": 0.9}, **values}
    return build.gap(**known)


@pytest.mark.parametrize(
    ("clean", "pooled", "values", "severity"),
    [
        (0.1, 1.5, {}, "error"),
        (0.6, 0.9, {}, "error"),
        (2.8, 0.06, {}, None),
        (0.9, 1.0, {}, None),
        (0.1, 0.15, {}, None),
        (0.1, 0.15, {"accuracy": None}, "error"),
        (-0.8, -0.5, {"accuracy": None}, "error"),
        (0.6, 0.9, {"stderr": 0.11}, None),
        (0.6, 0.9, {"stderr": None}, None),
        (0.6, 0.9, {"metric": "relative_l2"}, None),
        (0.9, float("nan"), {}, None),
    ],
)
def test_batches_whose_own_statistics_lower_the_loss(build, clean, pooled, values, severity):
    layers = build.layer("stem", effective_batch=900.0), build.layer("head", effective_batch=17.0)
    gap = batch_gap(build, clean, pooled, **values)
    found = small(build, *layers, gap=gap)
    assert [(one.severity, one.where, one.confidence) for one in found] == (
        [(severity, "head", "measured")] if severity else []
    )
    assert small(build, *layers, gap=replace(gap, sizes=(), batches={}), batches=3) == ()


@pytest.mark.parametrize(
    ("clean", "pooled", "values", "severity"),
    [
        (0.44, 0.19, {"values_per_channel": 4}, "error"),  # training is the worse of the two
        (0.2, 0.19, {"values_per_channel": 4, "stderr": 0.02}, "warning"),  # certain, and nothing lost
        (0.2, 0.201, {"effective_batch": 5.0}, "advice"),
        (0.2, 0.215, {"effective_batch": 5.0}, "warning"),
        (0.2, 0.3, {"effective_batch": 12.0}, "error"),
    ],
)
def test_too_few_values_are_as_grave_as_what_they_cost(build, clean, pooled, values, severity):
    values = dict(values)
    gap = batch_gap(build, clean, pooled, **({"stderr": values.pop("stderr")} if "stderr" in values else {}))
    (finding,) = small(build, build.layer(**values), gap=gap)
    assert finding.severity == severity
    assert (finding.step, finding.cost) == ("small-batch", pytest.approx(pooled - clean))


def test_a_norm_that_serves_several_calls_is_left_to_its_own_rule(build):
    gap = batch_gap(build, 0.3, 0.7)
    shared = build.flow(norms=[build.norm(calls=(2, 5))])
    assert small(build, build.layer(effective_batch=None), gap=gap, train=shared) == ()
    # A norm written by hand may read its signal twice; it has a figure for its batches.
    assert len(small(build, build.layer(), gap=gap, train=shared)) == 1


@pytest.mark.parametrize(("off", "noisy"), [(0.01, True), (0.4, False)])
def test_small_batches_answer_for_the_noise_of_their_running_averages(build, off, noisy):
    gap = batch_gap(build, 0.3, 0.7)
    shipped = {name: tuple(value + 0.5 for value in gap.batches[name]) for name in ("eval",)}
    gap = replace(gap, states={**gap.states, "eval": 1.2}, batches={**gap.batches, **shipped})
    (finding,) = small(build, build.layer(stale_mean=off), gap=gap)
    assert finding.evidence["noisy_averages"] == noisy
    assert finding.cost == pytest.approx(0.9 if noisy else 0.4)
    assert ("averages" in finding.message) == noisy
