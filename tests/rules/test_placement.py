"""VS105 and VS107 on hand-made evidence."""

from __future__ import annotations

import pytest

from varshift import theory

POOL = ("pool", "net.py:8", 4)


def found(build, code, *sites, mode="train", **known):
    flow = build.flow(sites, mode=mode)
    return build.findings(code, build.evidence(**{mode: flow}, **known))


def test_dropout_before_a_max_pool_biases_the_mean_by_the_predicted_ratio(build):
    (finding,) = found(build, "VS105", build.noise(pools=(POOL,), nearest="bn"))
    assert (finding.severity, finding.confidence, finding.where) == ("warning", "predicted", "drop")
    assert finding.evidence["window"] == 4
    assert finding.evidence["predicted_mean_ratio"] == pytest.approx(1.43, abs=0.005)
    assert "1.43" in finding.message
    assert finding.evidence["pool"] == "pool"


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"rate": 0.1}, "warning"),
        ({"rate": 0.01}, "advice"),
        ({"kind": "uniform", "rate": 0.5}, "warning"),
        ({"kind": "uniform", "rate": 0.1}, "advice"),
        ({"kind": "gaussian", "rate": 0.5}, "warning"),
    ],
)
def test_the_size_of_the_bias_sets_the_severity(build, values, severity):
    (finding,) = found(build, "VS105", build.noise(pools=(POOL,), **values))
    assert finding.severity == severity
    kind, rate = values.get("kind", "dropout"), values["rate"]
    expected = theory.noisy_max_pool_mean_ratio(kind, rate, 4)
    assert finding.evidence["predicted_mean_ratio"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "values",
    [{"kind": "alpha_dropout"}, {"rate": None}, {"rate": 1.0}, {"kind": "gaussian", "additive": True}],
)
def test_where_nothing_can_be_predicted_the_finding_is_suspected(build, values):
    (finding,) = found(build, "VS105", build.noise(pools=(POOL,), **values))
    assert (finding.severity, finding.confidence) == ("warning", "suspected")
    assert finding.evidence["predicted_mean_ratio"] is None


def test_the_largest_window_is_reported_and_the_offset_measured_behind_it(build):
    site = build.noise(pools=(POOL, ("wide", None, 9)), nearest="bn")
    measurement = build.measurement(build.layer(mean_offset=0.3))
    (finding,) = found(build, "VS105", site, measurement=measurement)
    assert finding.evidence["window"] == 9
    assert finding.evidence["mean_offset"] == 0.3


@pytest.mark.parametrize(
    ("reaches", "deltas", "severity", "words"),
    [
        (("bn",), {"variance_shift": 0.2}, "error", "off by 0.3 standard deviations"),
        (("bn",), {"variance_shift": 0.08}, "warning", "takes it up in training"),
        (("bn",), {"noise": 0.2}, "advice", "takes it up in training"),
        ((), {"noise": 0.2}, "error", "No norm takes it up"),
        ((), {"noise": -0.2}, "advice", "No norm takes it up"),
    ],
)
def test_whether_a_norm_takes_the_mean_up_is_said_and_the_loss_decides(
    build, reaches, deltas, severity, words
):
    site = build.noise(pools=(POOL,), nearest=reaches[0] if reaches else None, reaches=reaches)
    measurement = build.measurement(build.layer(mean_offset=0.3), gap=build.gap_of(**deltas))
    (finding,) = found(build, "VS105", site, measurement=measurement)
    assert finding.severity == severity
    assert words in finding.message
    assert finding.step == ("variance-shift" if reaches else "noise")


def test_a_frozen_norm_takes_nothing_up(build):
    site = build.noise(pools=(POOL,), nearest="bn", reaches=("bn",))
    flow = build.flow([site], [build.norm(batch_statistics=False)])
    (finding,) = build.findings("VS105", build.evidence(build.facts(live=False), train=flow))
    assert "No norm takes it up" in finding.message


def test_several_places_are_one_finding(build):
    sites = [build.noise(f"drop{index}", pools=(POOL,), rate=rate) for index, rate in enumerate((0.1, 0.5))]
    (finding,) = found(build, "VS105", *sites)
    assert [site.id.module for site in finding.sites] == ["drop1", "drop0"]
    assert finding.evidence["rate"] == 0.5
    assert "Likewise 1 more" in finding.message


@pytest.mark.parametrize(
    "values",
    [
        {"pools": ()},
        {"kind": "channel_dropout"},
        {"kind": "drop_path"},
        {"rate": 0.0},
        {"pools": (("p", None, 1),)},
    ],
)
def test_noise_that_commutes_with_the_maximum_is_let_pass(build, values):
    assert found(build, "VS105", build.noise(**{"pools": (POOL,), **values})) == ()


@pytest.mark.parametrize(
    ("drops", "severity"), [("identity", "error"), ("everything", "error"), ("nothing", "warning")]
)
def test_a_gate_on_the_wrong_tensor_is_certain(build, drops, severity):
    (finding,) = found(build, "VS107", build.noise(kind="drop_path", drops=drops, rate=0.1))
    assert (finding.severity, finding.confidence) == (severity, "certain")
    assert finding.evidence["drops"] == drops


@pytest.mark.parametrize("values", [{"drops": "branch"}, {"drops": None}, {"drops": "identity", "rate": 0.0}])
def test_a_gate_on_the_branch_is_let_pass(build, values):
    assert found(build, "VS107", build.noise(kind="drop_path", **values)) == ()
