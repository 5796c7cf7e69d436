"""The verdict in words: the first sentences of every report, made from `Report.verdict` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from varshift.report._steps import EXPECTED_GAINS, STEP_MEANINGS
from varshift.report._words import figure, percent, rule_title, uncertain

if TYPE_CHECKING:
    from varshift.rules import Verdict

# A smaller share without a finding is not worth a sentence: figures are shown to a tenth of a per cent.
UNEXPLAINED = 0.005


def headline(verdict: Verdict) -> str:
    """Whether evaluation is worse than training, by how much and beyond which error, in one sentence."""
    if verdict.metric is None:
        return "Whether evaluation is worse than training was not measured."
    if verdict.metric != "loss":
        return _without_loss(verdict)
    train, deployed = verdict.train, verdict.deployed
    if train is None and deployed is None:
        return "The loss is not finite, neither in training nor in evaluation."
    if deployed is None:
        return f"Evaluation is worse than training: the loss goes from {figure(train)} to no finite number."
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
    if verdict.state == "worse" or not is_harmed(verdict):
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
    """What carries the verdict, what explains it and which mode is good, in a few sentences."""
    sentences = []
    if verdict.step is not None and verdict.step_delta is not None:
        sentences.append(_step_sentence(verdict, verdict.step, verdict.step_delta))
    share = verdict.unexplained
    if share is not None and verdict.code is not None and share >= UNEXPLAINED:
        sentences.append(f"No finding explains {percent(share)} of what makes evaluation worse.")
    if mode := _mode_sentence(verdict):
        sentences.append(mode)
    return sentences


def experiments(verdict: Verdict) -> str:
    """What would tell the cause of a step that no finding explains; empty where there is none."""
    numbered = (f"({number}) {text}" for number, text in enumerate(verdict.experiments, start=1))
    return f"What would tell: {' '.join(numbered)}" if verdict.experiments else ""


def _step_sentence(verdict: Verdict, step: str, delta: float) -> str:
    meaning = f" ({STEP_MEANINGS[step]})" if step in STEP_MEANINGS else ""
    words = f'The step "{step}"{meaning}'
    if verdict.metric != "loss":
        text = f"{words} moves the outputs by {percent(abs(delta))}"
    else:
        text = f"{words} {'raises' if delta > 0 else 'lowers'} the loss by {figure(abs(delta))}"
    if verdict.code is not None:
        return f"{text}: {rule_title(verdict.code)} explains it."
    if _expected(verdict):
        return f"{text}, as is normal: {EXPECTED_GAINS[step]}."
    share = verdict.unexplained
    if share is not None and UNEXPLAINED <= share <= 1 - UNEXPLAINED:
        return f"{text}. No finding explains it, {percent(share)} of what makes evaluation worse."
    return f"{text}. No finding explains it."


def _mode_sentence(verdict: Verdict) -> str:
    if verdict.good_mode is None or (verdict.code is None and _expected(verdict)):
        return ""
    if verdict.good_mode == "train" and verdict.state == "worse":
        return "The network is good in train() and bad in eval()."
    if verdict.good_mode == "eval" and verdict.code is not None:
        return "The network is good in eval() and bad in train()."
    return f"The better mode, noise aside, is {verdict.good_mode}()."


def _expected(verdict: Verdict) -> bool:
    """Whether the step that carries the verdict makes evaluation better, as it does in a sound network."""
    return not is_harmed(verdict) and verdict.step in EXPECTED_GAINS


def is_harmed(verdict: Verdict) -> bool:
    """Whether evaluation is worse than training, or than it could be."""
    return verdict.state == "worse" or (verdict.step_delta is not None and verdict.step_delta > 0)
