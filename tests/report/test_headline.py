"""The first sentences of a report say what the verdict says, and nothing more."""

import pytest

from varshift.report._headline import experiments, explanation, headline
from varshift.rules import Verdict

CLEAR = "the network computes at deployment what it learned"

WORSE = Verdict(
    "worse", "loss", 0.5, 1.1, 0.6, 0.02, "statistics", 0.58, "VS202", unexplained=0.1, good_mode="train"
)


def text_of(verdict):
    return " ".join([headline(verdict), *explanation(verdict), experiments(verdict)]).strip()


def test_worse_and_explained():
    assert text_of(WORSE) == (
        "Evaluation is worse than training: the loss goes from 0.500 to 1.10 (+0.60 ± 0.02). "
        'The step "statistics" (statistics as shipped) raises the loss by 0.580: '
        "VS202 stale-statistics explains it. "
        "No finding explains 10.0 % of what makes evaluation worse. "
        "The network is good in train() and bad in eval()."
    )


def test_worse_and_unexplained_names_the_step_and_the_experiments():
    verdict = Verdict(
        "worse", "loss", 0.5, 1.1, 0.6, 0.02, "function", 0.58, None, 1.0, "train", ("Do this.", "Do that.")
    )
    text = text_of(verdict)
    assert (
        'The step "function" (modules in eval mode) raises the loss by 0.580. No finding explains it. The'
        in text
    )
    assert text.endswith("What would tell: (1) Do this. (2) Do that.")


def test_the_share_of_a_step_without_a_finding():
    verdict = Verdict("worse", "loss", 0.5, 1.1, 0.6, 0.02, "function", 0.4, None, 0.7)
    assert "No finding explains it, 70.0 % of what makes evaluation worse." in text_of(verdict)


@pytest.mark.parametrize("state", ["same", "better"])
def test_harm_that_a_gain_hides_is_said(state):
    verdict = Verdict(state, "loss", 0.5, 0.5, 0.0, 0.01, "variance-shift", 0.1, "VS101", 0.0, "train")
    text = text_of(verdict)
    assert ", but it could be better." in text
    assert "raises the loss by 0.100: VS101 noise-feeds-norm explains it." in text
    assert "No finding" not in text


@pytest.mark.parametrize(("step", "expected"), [("noise", True), ("small-batch", True), ("function", False)])
def test_what_is_better_on_purpose_needs_no_finding(step, expected):
    verdict = Verdict("better", "loss", 0.6, 0.5, -0.1, 0.01, step, -0.1, None, None, None)
    assert headline(verdict).startswith("Evaluation is better than training: the loss goes from 0.600 to")
    assert ("as is normal" in text_of(verdict)) is expected
    assert ("No finding explains it" in text_of(verdict)) is not expected


def test_a_network_that_is_good_in_eval_says_so():
    verdict = Verdict("better", "loss", 1.7, 0.7, -1.0, 0.02, "statistics", -1.0, "VS210", None, "eval")
    assert "The network is good in eval() and bad in train()." in text_of(verdict)
    assert "VS210" in text_of(verdict)


def test_same_says_both_losses():
    verdict = Verdict("same", "loss", 0.5, 0.502, 0.002, 0.001)
    assert text_of(verdict) == (
        "Evaluation is as good as training: the loss goes from 0.500 to 0.502 (+0.0020 ± 0.0010)."
    )


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (Verdict("unknown"), "Whether evaluation is worse than training was not measured."),
        (Verdict("unknown", "loss", 0.5, 0.6, 0.1, 0.2), "cannot be told from these batches"),
        (Verdict("unknown", "loss"), "The loss is not finite, neither in training nor in evaluation."),
        (Verdict("unknown", "loss", None, 0.5), "The loss in training is not finite, that in evaluation is"),
        (Verdict("worse", "loss", 0.5, None), "the loss goes from 0.500 to no finite number."),
        (Verdict("same", "relative_l2", 0.0, 0.001), "computes what training computes, noise aside"),
        (Verdict("unknown", "relative_l2", 0.3, 0.13), "Without targets no loss is known"),
        (Verdict("unknown", "relative_l2", 0.3, None), "The outputs in evaluation are not finite."),
    ],
)
def test_what_is_not_known_is_said_to_be_unknown(verdict, sentence):
    assert sentence in headline(verdict)
    assert explanation(verdict) == []


GAPS = {
    "worse": (0.5, 0.5, 0.5, 0.5, 0.5, 0.9),
    "better": (0.9, 0.5, 0.5, 0.5, 0.5, 0.5),
    "hidden": (0.5, 0.3, 0.3, 0.3, 0.3, 0.5),
    "unsure": (0.5, 0.5, 0.5, 0.5, 0.5, 0.55),
}


@pytest.mark.parametrize("name", GAPS)
def test_all_is_well_only_where_the_loss_says_so(make, name):
    errors = (0.0, 0.0, 0.0, 0.0, 0.3) if name == "unsure" else (0.001, 0.0, 0.001, 0.001, 0.001)
    report = make.report({"a": 1.0}, gap=make.gap(GAPS[name], errors))
    assert CLEAR not in str(report)
    assert CLEAR not in repr(report)
    harmless = "no step makes evaluation worse than it could be" in str(report)
    assert harmless is (name == "better")
    assert ("Nothing found by the rules that ran." in str(report)) is not harmless


def test_an_open_finding_is_never_all_well(make):
    report = make.report({"a": 1.0}, [make.finding(severity="advice")], gap=make.gap((0.5,) * 6))
    assert CLEAR not in str(report)
    assert report.verdict.state == "same"


@pytest.mark.parametrize("form", ["brief", "text", "notebook", "html", "svg"])
def test_every_format_says_the_headline(make, form):
    from varshift.report import FORMATS

    report = make.report({"a": 1.0}, gap=make.gap(GAPS["worse"]))
    rendered = FORMATS[form].render(report).replace("&#160;", " ")
    assert "Evaluation is worse than training" in rendered
    assert "What would tell" in rendered
