"""VS401 on hand-made evidence."""

from __future__ import annotations

import pytest


def found(build, *facts, train=None, evaluation=None, **modes):
    known = build.evidence(*facts, train=train, eval=evaluation, modes=build.modes(**modes))
    return [(one.where, one.severity, one.evidence["reason"]) for one in build.findings("VS401", known)]


def test_modules_that_eval_does_not_reach(build):
    stuck = {"bn": "BatchNorm2d", "drop": "Dropout"}
    assert found(build, build.facts(), stuck_training=stuck, as_passed=stuck, noise=("drop",)) == [
        ("bn", "error", "stuck_training"),
        ("drop", "error", "stuck_training"),
    ]


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
    ("values", "fires"),
    [
        ({"batch_mate_difference": 0.1}, True),
        ({"batch_mate_difference": 1e-4}, False),
        ({"batch_mate_difference": None}, False),
        ({"batch_mate_difference": float("nan")}, False),
        ({"batch_mate_difference": 0.1, "eval_repeat_difference": 0.05}, False),
        ({"batch_mate_difference": 0.1, "eval_repeat_difference": 0.0}, True),
    ],
)
def test_predictions_that_depend_on_batch_mates_are_measured(build, values, fires):
    known = build.evidence(build.facts(), measurement=build.measurement(build.layer(), **values))
    result = build.findings("VS401", known)
    assert [(one.where, one.severity, one.confidence) for one in result] == [
        ("", "error", "measured")
    ] * fires


def test_batch_mates_are_not_reported_where_a_module_explains_them_or_noise_is_alive(build):
    measurement = build.measurement(batch_mate_difference=0.1)
    stuck = build.modes(stuck_training={"bn": "BatchNorm2d"})
    known = build.evidence(build.facts(), measurement=measurement, modes=stuck)
    assert [one.where for one in build.findings("VS401", known)] == ["bn"]
    noisy = build.flow([build.noise()], mode="eval")
    assert build.findings("VS401", build.evidence(measurement=measurement, eval=noisy)) == ()


def test_a_model_in_one_mode_is_let_pass(build):
    assert found(build, build.facts(), root_training=True) == []
