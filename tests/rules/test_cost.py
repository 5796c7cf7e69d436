"""What a cause costs, the severity that follows, what explains what, and the verdict."""

import itertools
from dataclasses import replace

import pytest

from varshift.evidence import Evidence
from varshift.probe import Gap, GapStep, Measurement
from varshift.rules import Finding, FindingSite, cost_of, costs_by_step, graded, judge
from varshift.rules._causes import Explains, settle
from varshift.rules._places import SiteId

STATES = ("train", "clean", "clean_eval", "recalibrated", "recalibrated_noisy", "eval")
STEPS = ("noise", "function", "small-batch", "variance-shift", "statistics")


def evidence(*deltas, train=1.0, spread=0.01, batches=8, metric="loss", accuracy=True):
    """A gap whose steps have these sizes; the batches scatter around them."""
    means = list(itertools.accumulate(deltas, initial=train))
    wobble = [spread * (-1) ** index for index in range(batches)]
    losses = {
        state: tuple(mean + position * one for one in wobble)
        for position, (state, mean) in enumerate(zip(STATES, means, strict=True))
    }
    gap = Gap(metric, dict(zip(STATES, means, strict=True)), (), None, None, losses, (32,) * batches)
    steps = []
    for cause, before, after in zip(STEPS, STATES, STATES[1:], strict=False):
        steps.append(GapStep(cause, *gap.change(before, after)))
    rates = dict.fromkeys(STATES, 0.5) if accuracy else None
    gap = Gap(metric, gap.states, tuple(steps), rates, None, losses, gap.sizes)
    return Evidence(measurement=Measurement((), gap, batches, 32 * batches))


def finding(code="VS202", severity="warning", step=None, cost=None, sites=("a",)):
    places = tuple(FindingSite(SiteId(name, "batch_norm")) for name in sites)
    return Finding(code, severity, "measured", places, "", step=step, cost=cost)


@pytest.mark.parametrize(
    ("delta", "severity"),
    [(0.5, "error"), (0.12, "error"), (0.07, "warning"), (0.03, "advice"), (-0.5, "advice"), (0.0, "advice")],
)
@pytest.mark.parametrize("by_ratio", ["error", "warning"])
def test_a_measured_loss_decides_both_ways(delta, severity, by_ratio):
    cost = cost_of(evidence(0, 0, 0, 0, delta), "statistics")
    assert graded(cost, by_ratio) == severity


def test_a_costly_step_counts_though_no_ratio_shows_it_and_a_cheap_one_does_not():
    assert graded(cost_of(evidence(0, 0, 0, 0.2, 0), "variance-shift"), None) == "error"
    assert graded(cost_of(evidence(0, 0, 0, 0.02, 0), "variance-shift"), None) is None


def test_a_cost_within_its_error_is_advice():
    loud = cost_of(evidence(0, 0, 0, 0, 0.2, spread=1.0), "statistics")
    assert not loud.significant
    assert graded(loud, "error") == "advice"


@pytest.mark.parametrize("settings", [{"metric": "relative_l2", "accuracy": False}, {"batches": 3}])
def test_ratios_decide_without_a_loss_and_with_too_few_batches(settings):
    cost = cost_of(evidence(0, 0, 0, 0, 0.01, **settings), "statistics")
    assert graded(cost, "error") == "error"
    assert graded(cost, None) is None


def test_what_is_only_predicted_is_never_an_error():
    assert graded(None, "error", confidence="predicted") == "warning"
    assert graded(None, "error", confidence="suspected") == "warning"
    assert graded(None, "error", confidence="certain") == "error"


def test_several_steps_have_one_error():
    both = cost_of(evidence(0, 0, 0, 0.3, -0.1), "variance-shift", "statistics")
    assert both.delta == pytest.approx(0.2)
    assert both.level == pytest.approx(1.0)
    assert cost_of(Evidence(), "statistics") is None


def test_a_loss_near_zero_has_a_floor_for_cross_entropy_only():
    small = (0, 0, 0, 0, 0.002)
    assert not cost_of(evidence(*small, train=0.001, spread=1e-5), "statistics").significant
    assert cost_of(evidence(*small, train=0.001, spread=1e-5, accuracy=False), "statistics").significant


def test_one_cause_is_one_finding():
    table = (Explains("VS201", ("VS202",), "", same_sites=True), Explains("VS206", ("VS203",), ""))
    cause, follower = finding("VS201", "error"), finding("VS202", sites=("a", "b"))
    (first, second) = settle([cause, follower], table)
    assert first is cause
    assert [site.id.module for site in second.sites] == ["b"]
    assert settle([cause, finding("VS202")], table) == (cause,)
    assert len(settle([finding("VS206", "advice"), finding("VS203")], table)) == 2
    assert len(settle([finding("VS206"), finding("VS203")], table)) == 1


@pytest.mark.parametrize(
    ("deltas", "state", "step", "good_mode"),
    [
        ((0, 0, 0, 0, 0.5), "worse", "statistics", "train"),
        ((0, 0.5, 0, 0, 0), "worse", "function", "train"),
        ((-0.3, 0, 0, 0, 0), "better", "noise", None),
        ((0, 0, 0, 0, -0.5), "better", "statistics", "eval"),
        ((0, 0, 0, 0, 0), "same", None, None),
        ((-0.4, 0, 0, 0.4, 0), "same", "variance-shift", "train"),
    ],
)
def test_the_verdict_follows_from_the_steps(deltas, state, step, good_mode):
    verdict = judge(evidence(*deltas), ())
    assert (verdict.state, verdict.step, verdict.good_mode) == (state, step, good_mode)
    assert bool(verdict.experiments) == any(delta > 0 for delta in deltas)


def test_a_finding_explains_the_step_that_it_answers_for():
    verdict = judge(evidence(0, 0.1, 0, 0, 0.4), (finding("VS202", step="statistics"),))
    assert verdict.code == "VS202"
    assert verdict.unexplained == pytest.approx(0.2)
    assert verdict.experiments == ()


def test_a_finding_that_costs_more_than_its_step_explains_another_one():
    steps = evidence(0, 0, 0.3, 0, 1.0)
    assert judge(steps, (finding("VS302", step="small-batch", cost=1.3),)).unexplained == 0
    apart = judge(steps, (finding("VS302", step="small-batch", cost=0.3),))
    assert apart.unexplained == pytest.approx(1.0 / 1.3)
    assert (apart.step, apart.code) == ("statistics", None)


def test_without_a_measurement_or_a_loss_nothing_is_claimed():
    assert judge(Evidence(), ()).state == "unknown"
    apart = evidence(0, 0, 0, 0, 0.2, train=0.1, metric="relative_l2", accuracy=False)
    assert judge(apart, ()).state == "unknown"


def test_a_large_error_is_no_agreement():
    assert judge(evidence(0, 0, 0, 0, 0.2, spread=1.0), ()).state == "unknown"


def test_statistics_that_undo_the_variance_shift_cost_nothing():
    cured = evidence(-0.2, 0, 0, 0.3, -0.299)
    assert set(costs_by_step(cured.measurement.gap)) == {"noise", "function", "small-batch"}
    verdict = judge(cured, [])
    assert (verdict.state, verdict.step, verdict.experiments) == ("better", "noise", ())
    half = evidence(-0.2, 0, 0, 0.3, -0.1)
    assert judge(half, []).step == "variance-shift"
    assert judge(evidence(0, 0, 0, 0, -0.3), [finding("VS210", step="statistics")]).code == "VS210"


def test_without_a_loss_a_few_per_cent_of_the_outputs_are_nothing():
    cost = cost_of(evidence(0, 0, 0, 0.04, 0, train=0.0, spread=1e-5, metric="relative_l2"), "variance-shift")
    assert not cost.significant


def test_another_function_in_evaluation_does_not_explain_statistics_that_training_contradicts():
    other = replace(finding("VS405", "error"), evidence={"noisy": False})
    stale = replace(finding("VS202", "error"), evidence={"stale_ratio": 2.0, "stale_mean": 0.02})
    fitting = replace(finding("VS202", "error"), evidence={"stale_ratio": 1.01, "stale_mean": 0.02})
    assert settle([other, stale]) == (other, stale)
    assert settle([other, fitting]) == (other,)
