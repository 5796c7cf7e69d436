"""VS106 on hand-made evidence."""

from __future__ import annotations

import pytest

from varshift.model import Source


def found(build, *sites, trials=None, intended=()):
    flow = build.flow(sites, mode="eval")
    return build.findings("VS106", build.evidence(eval=flow, trials=trials, intended=intended))


def test_without_data_dropout_is_an_error_and_sampling_a_warning(build):
    sites = [build.noise("head"), build.noise("mixer", kind="gaussian", source="net.py:9")]
    first, second = found(build, *sites)
    assert (first.severity, first.confidence, first.where) == ("error", "certain", "head")
    assert (second.severity, second.where) == ("warning", "mixer")
    assert build.findings("VS106", build.evidence(train=build.flow(sites))) == ()


@pytest.mark.parametrize(
    ("kind", "cost", "severity"),
    [
        ("dropout", 0.2, "error"),
        ("dropout", 0.07, "warning"),
        ("dropout", 0.001, "warning"),
        ("gaussian", 0.2, "error"),
        ("gaussian", 0.001, "advice"),
        ("gaussian", -0.1, "advice"),
    ],
)
def test_the_cost_decides_where_there_is_a_loss(build, kind, cost, severity):
    trials = build.trials(random=0.3, spread=build.spread(cost))
    (finding,) = found(build, build.noise(kind=kind), trials=trials)
    assert (finding.severity, finding.confidence) == (severity, "measured")
    assert finding.evidence["repeat_difference"] == 0.3
    assert "0.3" in finding.message


@pytest.mark.parametrize(("spread", "severity"), [(None, "advice"), (0.1, "advice"), (0.5, "warning")])
@pytest.mark.parametrize("values", [{"kind": "gaussian", "additive": True}, {"kind": "sampling"}])
def test_a_sampler_is_meant(build, values, spread, severity):
    trials = build.trials(random=0.3, spread=None if spread is None else build.spread(spread))
    (finding,) = found(build, build.noise(rate=None, **values), trials=trials)
    assert finding.severity == severity


def test_an_uncertain_cost_counts_at_its_lower_end(build):
    trials = build.trials(random=0.3, spread=build.spread(0.12, stderr=0.03))
    (finding,) = found(build, build.noise(kind="gaussian"), trials=trials)
    assert finding.severity == "warning"


@pytest.mark.parametrize(("random", "severity"), [(0.2, "error"), (0.02, "warning"), (1e-3, "advice")])
def test_without_a_loss_the_outputs_decide(build, random, severity):
    (finding,) = found(build, build.noise(kind="gaussian"), trials=build.trials(random=random))
    assert finding.severity == severity


def test_noise_of_one_line_is_one_finding(build):
    sites = [build.noise(name, kind="drop_path") for name in ("a", "b", "c")]
    (finding,) = found(build, *sites)
    assert [site.id.module for site in finding.sites] == ["a", "b", "c"]
    assert "'b', 'c'" in finding.message


@pytest.mark.parametrize("name", ["decoder.sample", "decoder", "decoder.sample:gaussian"])
def test_noise_that_is_meant_is_no_finding(build, name):
    site = build.noise("decoder.sample", kind="gaussian")
    assert found(build, site, intended=(name,)) == ()
    (other,) = found(build, site, build.noise("other", source="net.py:9"), intended=(name,))
    assert other.where == "other"


def test_a_name_that_only_starts_alike_means_nothing(build):
    assert found(build, build.noise("decoder.sampler", kind="gaussian"), intended=("decoder.sample",))


@pytest.mark.parametrize(
    ("captured", "difference", "fires"),
    [
        (False, 1e-5, True),
        (False, 1e-7, False),
        (False, None, False),
        (False, float("nan"), False),
        (True, 1e-5, False),
        (True, 1e-3, True),
    ],
)
def test_two_answers_from_one_state_are_measured_where_no_noise_is_seen(build, captured, difference, fires):
    known = build.evidence(
        eval=build.flow(mode="eval") if captured else None,
        trials=build.trials(random=difference, random_at=build.parting(source=Source("net.py", 3))),
    )
    result = build.findings("VS106", known)
    assert [(one.where, one.confidence) for one in result] == [("mix", "measured")] * fires
    assert all("net.py:3" in one.message for one in result)
