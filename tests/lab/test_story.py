"""The words of the demo follow its numbers, whatever they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from varshift import Cured, Finding, Report
from varshift._sites import SiteId
from varshift.fixes import Change
from varshift.probe import Gap, GapStep
from varshift.report import Framework, LayerRow, MeasuredFigures, ModelInfo
from varshift.rules import FindingSite
from varshift_lab._demo import Outcome
from varshift_lab._story import change, in_training, tell, wrong
from varshift_lab.training import Evaluation


def evaluation(loss: float, accuracy: float = 0.9, seed: int = 0, spread: float = 0.1) -> Evaluation:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(seed))
    return Evaluation(loss + spread * (noise - noise.mean()), accuracy)


def finding(code: str, severity: str) -> Finding:
    return Finding(code, severity, "measured", (FindingSite(SiteId("norm", "batch_norm")),), "A message.")


def row(name: str, ratio: float | None) -> LayerRow:
    figures = MeasuredFigures(ratio=ratio)
    return LayerRow(SiteId(name, "batch_norm"), "BatchNorm2d", None, 4, ratio is not None, measured=figures)


def report(*findings: Finding, train: float | None = 0.1, delta: float | None = 0.2) -> Report:
    states = dict.fromkeys(("train", "clean", "recalibrated", "recalibrated_noisy", "eval"), train)
    causes = ("noise", "small-batch", "variance-shift", "statistics")
    return Report(
        varshift="0",
        framework=Framework("torch", "0"),
        capture="recorded",
        model=ModelInfo("net", 1, 1, 1),
        layers=(
            row("first", 0.8),
            row("second", 2.5),
            row("third", None),
        ),
        findings=findings,
        gap=Gap(
            "loss",
            states,
            tuple(GapStep(cause, delta, 0.01) for cause in causes),
            dict.fromkeys(states, 0.95),
        ),
    )


def outcome(of: Report, training: Evaluation, held_out: Evaluation) -> Outcome:
    return Outcome(report=of, training=training, held_out=held_out)


CURED = Cured(
    nn.Identity(),
    changes=(Change(SiteId("norm", "batch_norm"), "mean 1", "mean 2", "statistics", cure="recalibrate"),),
)
SICK = report(finding("VS101", "error"), finding("VS207", "error"), finding("VS202", "warning"))


def story(before: float, after: float, healthy: float = 0.1, *, left: Report | None = None) -> str:
    return "\n".join(
        tell(
            outcome(SICK, evaluation(before), evaluation(before, 0.9)),
            outcome(left or report(), evaluation(after), evaluation(after, 0.95, seed=1)),
            outcome(report(), evaluation(healthy), evaluation(healthy, seed=2)),
            CURED,
            0.4,
        )
    )


def test_a_run_in_which_it_helped():
    text = story(0.4, 0.1)
    assert "it made it worse" in text
    assert "went from 0.400 to 0.100 (-0.300 ± 0.007), and 20 of 400 are wrong instead of 40" in text
    assert "So it helped" in text
    assert "varshift.fix (recalibrate) took 0.4 s, the check of the result included, and changed no" in text
    assert "has no finding left" in text
    assert "The check finds nothing on it" in text
    assert "cured, it is as good within chance" in text
    assert "+0.200 ± 0.010" in text
    assert "second, sees 2.50 times the variance" in text


def test_a_run_in_which_it_did_not_help():
    text = story(0.05, 0.05)
    assert "eval() is better, as it should be" in text
    assert "the cure did not help in this run" in text
    assert "helped, on data" not in text


@pytest.mark.parametrize(
    ("loss", "words"),
    [(0.16, "it made it worse"), (0.11, "within chance, it is not"), (0.09, "within chance, it is not")],
)
def test_a_gap_within_chance_is_not_called_one(loss, words):
    assert words in story(loss, 0.05)


def test_a_run_in_which_it_did_harm():
    text = story(0.1, 0.3)
    assert "the cure did harm in this run" in text
    assert "As trained, the sick network is as good within chance; cured, it is worse." in text


def test_a_run_in_which_only_the_training_digits_gained():
    before, after = evaluation(0.2), evaluation(0.1)
    same = evaluation(0.3)
    text = tell(
        outcome(SICK, before, same),
        outcome(report(), after, same),
        outcome(report(), after, same),
        CURED,
        1.0,
    )[2]
    assert "within chance; on the training digits the loss fell by 0.100" in text


def test_findings_that_stay_are_told():
    text = story(0.4, 0.1, left=report(finding("VS203", "warning"), finding("VS104", "advice")))
    assert "still has 1 warning and 1 advice (VS203, VS104)" in text


def test_a_twin_that_is_not_healthy_is_told():
    sick = outcome(SICK, evaluation(0.4), evaluation(0.4))
    twin = outcome(report(*[finding("VS202", "warning")] * 3), evaluation(0.4), evaluation(0.4))
    text = tell(sick, sick, twin, CURED, 1.0)[-1]
    assert "The check has 3 warnings (VS202)" in text
    assert "as good within chance, as trained and cured" in text


@pytest.mark.parametrize(
    ("before", "after", "healthy", "words"),
    [
        (0.4, 0.2, 0.1, "part of the harm is in its weights"),
        (0.4, 0.1, 0.2, "cured, it is better"),
        (0.1, 0.05, 0.2, "As trained, the sick network is better; cured, it is better."),
    ],
)
def test_the_twins_are_compared_by_their_losses(before, after, healthy, words):
    assert words in story(before, after, healthy)


def test_a_gap_that_could_not_be_measured_is_told():
    unknown = report(train=None, delta=None)
    assert in_training(unknown) is None
    sick = outcome(unknown, evaluation(0.4), evaluation(0.4))
    first, second, *_ = tell(sick, sick, sick, CURED, 1.0)
    assert first.startswith("Of its training digits the sick network gets in eval()")
    assert "could not be split" in second


def test_changes_are_paired_and_know_their_error():
    first = evaluation(0.2, spread=5.0)
    second = Evaluation(first.losses - 0.01, 0.9)
    moved = change(first, second)
    assert moved.difference == pytest.approx(-0.01, abs=1e-5)
    assert moved.error < 1e-4
    assert moved.direction == -1
    assert change(first, first).direction == 0
    assert change(first, evaluation(0.4, seed=3, spread=5.0)).direction == 0
    assert wrong(Evaluation(torch.zeros(449), 1 - 34 / 449)) == 34
    with pytest.raises(ValueError, match="first has 400 samples, second 3"):
        change(first, Evaluation(torch.zeros(3), 1.0))


def test_a_fix_that_changed_nothing_is_told():
    sick = outcome(SICK, evaluation(0.4), evaluation(0.4))
    text = tell(sick, sick, sick, Cured(nn.Identity()), 1.0)[2]
    assert text == "varshift.fix took 1.0 s and changed nothing."
