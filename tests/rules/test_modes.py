"""VS401 on hand-made evidence."""

from __future__ import annotations

import pytest


def found(build, *facts, train=None, evaluation=None, **modes):
    known = build.evidence(*facts, train=train, eval=evaluation, modes=build.modes(**modes))
    return [(one.where, one.severity, one.evidence["reason"]) for one in build.findings("VS401", known)]


def test_modules_that_eval_does_not_reach(build):
    stuck = {"bn": "BatchNorm2d", "drop": "Dropout"}
    assert found(build, build.facts(), stuck_training=stuck, as_passed=stuck, noise=("drop",)) == [
        ("bn", "error", "stuck_training")
    ]
    known = build.evidence(build.facts(), modes=build.modes(stuck_training=stuck, noise=("drop",)))
    (finding,) = build.findings("VS401", known)
    assert [site.id.module for site in finding.sites] == ["bn", "drop"]
    assert "'drop'" in finding.message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"batch_statistics": True}, ("bn", "error", "batch_statistics")),
        ({"batch_statistics": True, "tracked": False}, ("bn", "warning", "untracked")),
        ({"batch_statistics": False}, None),
        ({"batch_statistics": True, "tracked": False, "kind": "instance_norm"}, None),
    ],
)
def test_norms_that_normalise_with_the_batch_in_evaluation(build, values, expected):
    flow = build.flow(norms=[build.norm(**values)], mode="eval")
    assert found(build, build.facts(), evaluation=flow) == ([expected] if expected else [])


def test_norms_with_statistics_that_training_does_not_update(build):
    assert found(build, build.facts(tracks=False)) == [("bn", "warning", "not_tracking")]
    assert found(build, build.facts(tracks=False, live=False)) == []


@pytest.mark.parametrize(
    ("name", "start"),
    [("bn", "The norm module 'bn'"), ("head", "The norm at 'head'"), ("", "A norm in the model")],
)
def test_a_functional_norm_is_not_called_a_module(build, name, start):
    flow = build.flow(norms=[build.norm(name, tracked=False)], mode="eval")
    evidence = build.evidence(build.facts(), eval=flow)
    (finding,) = build.findings("VS401", evidence)
    assert finding.message.startswith(start)


def test_a_stuck_norm_is_reported_once(build):
    flow = build.flow(norms=[build.norm()], mode="eval")
    assert found(build, build.facts(), evaluation=flow, stuck_training={"bn": "BatchNorm2d"}) == [
        ("bn", "error", "stuck_training")
    ]


@pytest.mark.parametrize(
    ("root", "module", "frozen", "severity"),
    [
        (False, "bn", False, "warning"),
        (False, "drop", False, "warning"),
        (True, "drop", False, "warning"),
        (True, "bn", False, "advice"),
        (True, "bn", True, None),
    ],
)
def test_modules_in_another_mode_than_the_model_as_passed(build, root, module, frozen, severity):
    facts = build.facts(frozen_parameters=frozen)
    result = found(build, facts, root_training=root, as_passed={module: "Module"}, noise=("drop",))
    assert result == ([(module, severity, "as_passed")] if severity else [])


@pytest.mark.parametrize(
    ("difference", "severity"),
    [(0.1, "error"), (5e-3, "warning"), (1e-4, None), (None, None), (float("inf"), "error")],
)
def test_predictions_that_depend_on_batch_mates_are_measured(build, difference, severity):
    trials = build.trials(build.change("mates", difference))
    result = build.findings("VS401", build.evidence(build.facts(), trials=trials))
    expected = [("mix", severity, "measured")] if severity else []
    assert [(one.where, one.severity, one.confidence) for one in result] == expected


def test_alone_and_with_other_mates_are_one_finding_that_names_the_first_operation(build):
    both = build.trials(build.change("alone", 0.9), build.change("mates", 0.2))
    (finding,) = build.findings("VS401", build.evidence(trials=both))
    assert finding.evidence["reason"] == "batch_mates"
    assert (finding.evidence["alone_difference"], finding.evidence["mates_difference"]) == (0.9, 0.2)
    assert finding.source == build.parting().source
    assert "mean in 'mix' (net.py:5)" in finding.message


def test_a_path_that_a_batch_of_one_does_not_take_is_said_in_these_words(build):
    parting = build.parting("norm", op="batch_norm", only=1)
    trials = build.trials(build.change("alone", 3.0, parting=parting), build.change("mates", 0.0))
    (finding,) = build.findings("VS401", build.evidence(trials=trials))
    assert finding.evidence["reason"] == "alone"
    assert "batch_norm in 'norm' (net.py:5) runs only in a batch" in finding.message


@pytest.mark.parametrize(
    ("difference", "severity"), [(0.5, "error"), (0.1, "warning"), (0.02, "advice"), (1e-3, None)]
)
def test_padding_is_graded_by_what_it_does(build, difference, severity):
    change = build.change("padding", difference, limit=1e-2, losses=(0.1, 0.4))
    result = build.findings("VS401", build.evidence(trials=build.trials(change)))
    assert [one.severity for one in result] == ([severity] if severity else [])
    assert all("loss 0.1 to 0.4" in one.message for one in result)


def test_batch_mates_are_not_reported_where_a_norm_explains_them_or_state_is_written(build):
    trials = build.trials(build.change("mates"))
    stuck = build.modes(stuck_training={"bn": "BatchNorm2d"})
    known = build.evidence(build.facts(), trials=trials, modes=stuck)
    assert [one.where for one in build.findings("VS401", known)] == ["bn"]
    drifting = build.trials(build.change("mates"), drift=0.1)
    assert build.findings("VS401", build.evidence(trials=drifting)) == ()


def test_a_mode_as_passed_does_not_explain_batch_mates(build):
    known = build.evidence(
        build.facts(),
        trials=build.trials(build.change("mates")),
        modes=build.modes(root_training=True, as_passed={"bn": "BatchNorm2d"}),
    )
    assert [one.evidence["reason"] for one in build.findings("VS401", known)] == ["batch_mates", "as_passed"]


def test_a_model_in_one_mode_is_let_pass(build):
    assert found(build, build.facts(), root_training=True) == []
