"""The verdict in words: the first sentences of every report, made from `Report.verdict` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift.report._steps import EXPECTED_GAINS, STEP_MEANINGS
from varshift.report._words import figure, percent, rule_title, signed, uncertain

if TYPE_CHECKING:
    from varshift.rules import Verdict

# A smaller share without a finding is not worth a sentence: figures are shown to a tenth of a per cent.
UNEXPLAINED = 0.005


def headline(verdict: Verdict) -> str:
    """Whether evaluation is worse than training, by how much and beyond which error, in one sentence."""
    if verdict.metric is None:
        return "Whether evaluation is worse than training is not known."
    if verdict.metric != "loss":
        return _without_loss(verdict)
    train, deployed = verdict.train, verdict.deployed
    if train is None and deployed is None:
        return "The loss is not finite, neither in training nor in evaluation."
    if deployed is None:
        return f"Evaluation is worse than training: its loss is not finite, that of training is {figure(train)}."
    if train is None:
        return f"The loss in training is not finite, that in evaluation is {figure(deployed)}."
    change = f"{figure(train)} to {figure(deployed)} ({uncertain(verdict.delta, verdict.stderr)})"
    match verdict.state:
        case "same":
            text = f"Evaluation is as good as training: the loss goes from {change}"
        case "unknown":
            return (
                f"Whether evaluation is worse than training cannot be told from these batches: the loss goes "
                f"from {change}."
            )
        case _:
            text = f"Evaluation is {verdict.state} than training: the loss goes from {change}"
    if verdict.state == "worse" or not _harms(verdict):
        return f"{text}."
    return f"{text}, but it could be better."


def _without_loss(verdict: Verdict) -> str:
    distance = percent(verdict.deployed)
    if verdict.deployed is None:
        return "The outputs in evaluation are not finite."
    if verdict.state == "same":
        return (
            f"Evaluation computes what training computes, noise aside: its outputs lie {distance} (relative "
            "L2) from those with statistics that fit. No loss is known."
        )
    return (
        "Without targets no loss is known, and nobody can say whether evaluation is worse than training: its "
        f"outputs lie {distance} (relative L2) from those with statistics that fit."
    )


def explanation(verdict: Verdict) -> list[str]:
    """What carries the verdict, what explains it, which mode is good, and what would tell the cause."""
    sentences = []
    if verdict.step is not None and verdict.step_delta is not None:
        sentences.append(_step_sentence(verdict, verdict.step, verdict.step_delta))
    share = verdict.unexplained
    if share is not None and verdict.code is not None and share >= UNEXPLAINED:
        sentences.append(f"No finding explains {percent(share)} of what makes evaluation worse.")
    if verdict.good_mode is not None:
        sentences.append(_mode_sentence(verdict))
    if verdict.experiments:
        sentences.append(f"To tell the cause: {' Or: '.join(verdict.experiments)}")
    return sentences


def _step_sentence(verdict: Verdict, step: str, delta: float) -> str:
    meaning = f" ({STEP_MEANINGS[step]})" if step in STEP_MEANINGS else ""
    words = f'The step "{step}"{meaning}'
    if verdict.metric != "loss":
        text = f"{words} moves the outputs by {signed(delta)}"
    else:
        text = f"{words} {'costs' if delta > 0 else 'brings'} {signed(delta)}"
    if verdict.code is not None:
        return f"{text}: {rule_title(verdict.code)} explains it."
    if delta <= 0 and step in EXPECTED_GAINS:
        return f"{text}, as it should: {EXPECTED_GAINS[step]}."
    share = verdict.unexplained
    if share is not None and UNEXPLAINED <= share <= 1 - UNEXPLAINED:
        return f"{text}. No finding explains it, {percent(share)} of what makes evaluation worse."
    return f"{text}. No finding explains it."


def _mode_sentence(verdict: Verdict) -> str:
    if verdict.good_mode == "train" and verdict.state == "worse":
        return "The network is good in train() and bad in eval()."
    if verdict.good_mode == "eval" and verdict.code is not None:
        return "The network is good in eval() and bad in train()."
    return f"The better mode, noise aside, is {verdict.good_mode}()."


def _harms(verdict: Verdict) -> bool:
    """Whether the step that carries the verdict makes evaluation worse than it could be."""
    return verdict.step_delta is not None and verdict.step_delta > 0
