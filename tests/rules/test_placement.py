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
