"""`Report.why`: the number that is wrong first, and nothing of what is not there."""

import math
from dataclasses import replace

import pytest

from varshift import VarshiftError
from varshift.report import MeasuredFigures, PredictedFigures, StatisticsInfo

HEALTHY = {
    "ratio": 1.004,
    "control_ratio": 1.002,
    "fresh_ratio": 1.003,
    "stale_ratio": 1.004,
    "mean_offset": 0.01,
    "stale_mean": 0.01,
    "channel_log_ratio_rms": 0.02,
    "effective_batch": 200.0,
}
FACTS = StatisticsInfo(eps=1e-5, momentum=0.1, batches_tracked=100, largest=3.0)


def why(make, findings=(), noises=(), statistics=FACTS, predicted=None, reached=True, **figures):
    """The text about the norm ``a`` of a report in which its figures are these."""
    report = make.report({"a": 1.0, "b": 1.0}, findings, noises)
    measured = MeasuredFigures(**{**HEALTHY, **figures})
    row = replace(
        report.layers[0], statistics=statistics, measured=measured, predicted=predicted, reached=reached
    )
    return replace(report, layers=(row, *report.layers[1:])).why("a")


def first(text):
    return " ".join(text.split("\n  ")[1].split())


def joined(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"mean_offset": 0.46}, "In evaluation the mean of its input is 0.46 standard deviations off"),
        (
            {"mean_offset": 0.46, "stale_mean": 0.45},
            "In evaluation, as in training, the mean of its",
        ),
        ({"stale_mean": 0.3}, "In training the mean of its input is 0.30 standard deviations off."),
        ({"ratio": 0.5, "stale_ratio": 1.0}, "In evaluation it sees 0.500 times the variance that it holds"),
        (
            {"ratio": 2.0, "stale_ratio": 2.0},
            "In evaluation, as in training, it sees 2.000 times the",
        ),
        ({"stale_ratio": 2.0}, "In training it sees 2.000 times the variance that it holds."),
        ({"channel_log_ratio_rms": 1.0}, "The variances of single channels are off by a factor of 2.718."),
        ({"effective_batch": 3.0}, "One batch brings it only 3.0 independent values per channel."),
    ],
)
def test_the_number_that_is_wrong_comes_first(make, figures, sentence):
    assert first(why(make, **figures)).startswith(sentence)


def test_a_shift_that_fresh_statistics_have_too_is_none(make):
    text = why(make, ratio=1.4, control_ratio=1.39, stale_ratio=1.4 / 1.39)
    assert first(text).startswith("Nothing is off")


def test_a_healthy_norm_and_no_word_of_noise(make):
    text = why(make)
    assert text.startswith("a (BatchNorm2d /nets/residual.py:1)")
    assert "Nothing is off: in evaluation it sees 1.004 times the variance that it holds" in joined(text)
    assert "No finding names it." in text
    assert "noise" not in text.lower()


def test_noise_findings_cures_and_predictions_are_told(make):
    measured = {"metric": "loss", "before": 0.61, "after": 0.49, "stderr": 0.01}
    cure = replace(make.finding().cures[0], measured=measured)
    findings = [
        make.finding(where="a", cures=(cure,)),
        make.finding("VS101", "body.0.drop", "warning", evidence={"norm": "a"}, message="It feeds a."),
        make.finding("VS204", where="b", message="Of no concern."),
    ]
    predicted = PredictedFigures(ratio=0.55, confidence="high")
    text = joined(why(make, findings, [make.noise(reaches=("a",))], predicted=predicted, ratio=0.52))
    assert "error VS207 variance-shift: the variance that a sees" in text
    assert "warning VS101 noise-feeds-norm: It feeds a." in text
    assert "Of no concern" not in text
    assert "measured: the loss goes from 0.610 to 0.490 ± 0.010" in text
    assert "Noise reaches it from body.0.drop (dropout 0.50, /nets/residual.py:33)." in text
    assert "predicted from the weights alone 0.550 (confidence high), measured 0.520" in text


@pytest.mark.parametrize(
    ("statistics", "sentence"),
    [
        ({"nonfinite": 1}, "1 of its 16 channels has statistics that are not finite."),
        ({"negative": 2}, "2 of its 16 channels have a variance below 0."),
        ({"never_moved": True}, "Its statistics are those of a new norm: mean 0 and variance 1."),
    ],
)
def test_broken_statistics_come_before_all_figures(make, statistics, sentence):
    assert first(why(make, statistics=replace(FACTS, **statistics), mean_offset=9.0)) == sentence


def test_a_norm_out_of_reach_and_figures_that_are_not_known(make):
    assert first(why(make, reached=False)).startswith("No data reached it")
    unknown = dict.fromkeys(HEALTHY)
    assert first(why(make, **unknown)) == "Nothing could be measured here."
    odd = {"ratio": math.nan, "mean_offset": math.inf, "stale_mean": math.nan, "effective_batch": 0.0}
    assert why(make, **odd)


def test_without_data_the_prediction_is_told(make):
    report = make.report(norms=["a"])
    assert "Nothing was measured here." in report.why("a")
    row = replace(report.layers[0], predicted=PredictedFigures(ratio=0.6, mean_offset=0.02))
    text = replace(report, layers=(row,)).why("a")
    assert "In evaluation it will see 0.600 times the variance that it holds, as predicted" in joined(text)


def test_a_norm_is_found_by_id_text_and_path_and_prints_itself(make):
    report = make.report({"a": 1.0, "b": 1.0})
    row = report.layers[0]
    assert report.why(row.id) == report.why(str(row.id)) == report.why("a")
    assert repr(report.why("a")) == str(report.why("a"))


def test_an_unknown_norm_names_the_nearest(make):
    report = make.report({"body.0.norm": 1.0, "body.1.norm": 1.0, "head": 1.0}, noises=[make.noise()])
    expected = r"'body\.0\.nrm' is no norm.*did you mean 'body\.0\.norm' or .*\?$"
    with pytest.raises(VarshiftError, match=expected):
        report.why("body.0.nrm")
    with pytest.raises(VarshiftError, match=r"'body\.0\.drop:dropout' .* noise site"):
        report.why("body.0.drop:dropout")
    with pytest.raises(VarshiftError, match="it has none"):
        make.report({}).why("a")


def test_without_a_name_it_is_the_norm_that_is_most_off(make):
    report = make.report({"a": 1.0, "b": 0.4, "c": 0.9})
    assert report.why() == report.why("b")
    assert "no norm" in replace(report, layers=()).why()
