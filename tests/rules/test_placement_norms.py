"""VS101 and VS102 on hand-made evidence: what is measured, what is predicted, and what is let pass."""

from __future__ import annotations

import pytest

# input -> noise -> norm, with what stands in between as the node of index 2
CHAIN = (("input", ()), ("noise", (0,)), ("view", (1,)), ("norm", (2,)))


def chain(build, kind="view", op=None, extra=()):
    nodes = [build.node(index, one, inputs) for index, (one, inputs) in enumerate(CHAIN)]
    nodes[1] = build.node(1, "noise", (0,), "mul")
    nodes[2] = build.node(2, kind, (1, *(4 + index for index, _ in enumerate(extra))), op)
    return [*nodes, *(build.node(4 + index, one) for index, one in enumerate(extra))]


def predicted(build, site, nodes=None, **known):
    flow = build.flow([site], [build.norm(calls=(3,))], chain(build) if nodes is None else nodes)
    return build.findings("VS101", build.evidence(build.facts(), train=flow, **known))


def measured(build, code, site, *layers, facts=None, norms=("bn",)):
    flow = build.flow([site], [build.norm(name) for name in norms])
    facts = facts or [build.facts(name) for name in norms]
    known = build.evidence(*facts, train=flow, measurement=build.measurement(*layers))
    return build.findings(code, known)


@pytest.mark.parametrize(
    ("values", "bound", "severity"),
    [
        ({"rate": 0.5}, 0.5, "warning"),
        ({"rate": 0.2}, 0.8, "warning"),
        ({"rate": 0.05}, 0.95, "advice"),
        ({"kind": "channel_dropout", "rate": 0.5}, 0.5, "warning"),
        ({"kind": "drop_path", "rate": 0.2}, 0.8, "warning"),
        ({"kind": "gaussian", "rate": 1.0}, 0.5, "warning"),
        ({"kind": "uniform", "rate": 1.0}, 0.75, "warning"),
        ({"kind": "uniform", "rate": 0.1}, 300 / 301, "advice"),
    ],
)
def test_without_data_the_bound_of_the_noise_sets_the_severity(build, values, bound, severity):
    (finding,) = predicted(build, build.feeding(**values))
    assert finding.evidence["predicted_ratio_bound"] == pytest.approx(bound)
    assert (finding.severity, finding.confidence) == (severity, "predicted")
    assert (finding.where, finding.cls, str(finding.source)) == ("drop", "Dropout", "net.py:7")
    assert finding.evidence["norm"] == "bn"
    assert f"{bound:.3g}" in finding.message
    assert {cure.safety for cure in finding.cures} == {"unsafe"}


@pytest.mark.parametrize(
    ("values", "between"),
    [
        ({"rate": 0.5}, {"kind": "concat"}),
        ({"rate": 0.5}, {"kind": "pool"}),
        ({"rate": 0.5}, {"kind": "other"}),
        ({"rate": 0.5}, {"kind": "activation", "op": "gelu"}),
        ({"rate": 0.5}, {"kind": "product", "op": "mul", "extra": ("activation",)}),
        ({"rate": 0.5}, {"kind": "activation", "op": "pow"}),
        ({"kind": "gaussian", "rate": 1.0}, {"kind": "activation", "op": "relu"}),
        ({"kind": "gaussian", "rate": 1.0, "additive": True}, {}),
        ({"kind": "drop_block", "rate": 0.5}, {}),
        ({"kind": "dropout", "rate": None}, {}),
        ({"kind": "alpha_dropout", "rate": 0.5}, {}),
        ({"kind": "other", "rate": None}, {}),
        ({"kind": "dropout", "rate": 1.0}, {}),
    ],
)
def test_without_data_what_dilutes_or_is_unknown_is_suspected_and_no_error(build, values, between):
    (finding,) = predicted(build, build.feeding(**values), chain(build, **between))
    assert finding.confidence == "suspected"
    assert finding.severity in ("warning", "advice")


@pytest.mark.parametrize(
    "between",
    [
        {"kind": "activation", "op": "relu"},
        {"kind": "activation", "op": "leaky_relu"},
        {"kind": "activation", "op": "mul", "extra": ("parameter",)},
        {"kind": "activation", "op": "div"},
        {"kind": "activation", "op": "add", "extra": ("constant",)},
    ],
)
def test_what_hands_the_factor_on_keeps_the_prediction(build, between):
    (finding,) = predicted(build, build.feeding(), chain(build, **between))
    assert (finding.severity, finding.confidence) == ("warning", "predicted")


def test_behind_a_bias_a_relu_does_not_hand_the_factor_on(build):
    nodes = [
        build.node(0, "input"),
        build.node(1, "noise", (0,), "dropout"),
        build.node(2, "activation", (1,), "add"),
        build.node(3, "activation", (2,), "relu"),
        build.node(4, "norm", (3,)),
    ]
    flow = build.flow([build.feeding()], [build.norm(calls=(4,))], nodes)
    (finding,) = build.findings("VS101", build.evidence(build.facts(), train=flow))
    assert finding.confidence == "suspected"


def test_dividing_by_the_signal_is_not_a_scale(build):
    nodes = [
        build.node(0, "parameter"),
        build.node(1, "noise", (), "dropout"),
        build.node(2, "activation", (0, 1), "div"),
        build.node(3, "norm", (2,)),
    ]
    (finding,) = predicted(build, build.feeding(), nodes)
    assert finding.confidence == "suspected"


def test_nothing_is_predicted_for_a_flow_without_nodes(build):
    (finding,) = predicted(build, build.feeding(), ())
    assert finding.confidence == "suspected"


@pytest.mark.parametrize(
    "values",
    [{"path": "none", "nearest": None, "near": {}}, {"rate": 0.0}, {"kind": "permutation", "rate": None}],
)
def test_noise_that_cannot_shift_a_norm_is_no_finding(build, values):
    assert predicted(build, build.feeding(**values)) == ()


@pytest.mark.parametrize(("code", "path"), [("VS101", "direct"), ("VS102", "weight")])
@pytest.mark.parametrize("origin", ["measured", "predicted"])
def test_statistics_that_were_re_estimated_without_noise_hold_none(build, code, path, origin):
    flow = build.flow([build.feeding(path=path)], [build.norm()])
    marked = build.evidence(build.facts(reestimated=origin), train=flow)
    assert build.findings(code, marked) == ()
    assert len(build.findings(code, build.evidence(build.facts(), train=flow))) == 1


def test_a_frozen_norm_never_learns_the_noise(build):
    site = build.feeding()
    flow = build.flow([site], [build.norm(batch_statistics=False)])
    assert build.findings("VS101", build.evidence(build.facts(), train=flow)) == ()
    frozen = build.evidence(build.facts(live=False), train=build.flow([site], [build.norm()]))
    assert build.findings("VS101", frozen) == ()


@pytest.mark.parametrize(("code", "path"), [("VS101", "direct"), ("VS102", "weight"), ("VS102", "join")])
@pytest.mark.parametrize(
    ("ratio", "control", "severity"),
    [
        (0.5, 1.0, "error"),
        (0.5, 1.2, "error"),
        (0.85, 1.0, "warning"),
        (1.3, 1.0, "warning"),
        (2.4, 1.2, "error"),
        (0.95, 1.0, None),
        (0.6, 0.6, None),
        (1.2, 1.15, None),
    ],
)
def test_with_data_only_what_exceeds_the_control_counts(build, code, path, ratio, control, severity):
    site = build.feeding(path=path)
    found = measured(build, code, site, build.shifted(ratio=ratio, control_ratio=control, local_ratio=0.1))
    assert [one.severity for one in found] == ([severity] if severity else [])
    for finding in found:
        assert finding.confidence == "measured"
        assert finding.evidence["ratio"] == ratio
        assert finding.evidence["excess"] == pytest.approx(ratio / control)
        assert finding.evidence["reaches"] == 1
        assert "worst_norm" not in finding.evidence
    other = "VS102" if code == "VS101" else "VS101"
    assert measured(build, other, site, build.shifted(ratio=ratio, control_ratio=control)) == ()


@pytest.mark.parametrize(("ratio", "fresh"), [(0.3, 1.0), (0.3, 0.95), (0.5, 1.6), (3.0, 0.5)])
def test_staleness_is_not_blamed_on_the_noise(build, ratio, fresh):
    assert measured(build, "VS101", build.feeding(), build.shifted(ratio=ratio, fresh_ratio=fresh)) == ()


def test_of_a_shift_beyond_that_of_the_noise_only_the_noise_sets_the_severity(build):
    (finding,) = measured(build, "VS101", build.feeding(), build.shifted(ratio=0.1, fresh_ratio=0.8))
    assert finding.severity == "warning"


def test_statistics_that_never_moved_are_judged_by_what_fresh_ones_would_show(build):
    layer = build.shifted(ratio=1.0, fresh_ratio=0.5)
    never = [build.facts(never_moved=True)]
    (finding,) = measured(build, "VS101", build.feeding(), layer, facts=never)
    assert finding.severity == "error"
    assert finding.evidence["never_moved"] is True
    assert "Once it has learnt" in finding.message


def test_the_worst_norm_of_the_path_is_named_beside_the_nearest(build):
    near = {"first": "direct", "second": "direct", "third": "weight"}
    site = build.feeding("first", near=near, reaches=("first", "second", "third"))
    layers = [build.shifted("first", 0.9), build.shifted("second", 0.6), build.shifted("third", 0.2)]
    (finding,) = measured(build, "VS101", site, *layers, norms=tuple(near))
    assert finding.evidence["norm"] == "first"
    assert finding.evidence["worst_norm"] == "second"
    assert finding.evidence["ratio"] == 0.6
    assert "'second'" in finding.message


@pytest.mark.parametrize(
    "values", [{"reached": False, "ratio": None}, {"ratio": float("nan")}, {"control_ratio": 0.0}]
)
def test_where_nothing_was_measured_nothing_is_claimed_as_measured(build, values):
    (finding,) = measured(build, "VS101", build.feeding(), build.shifted(**values))
    assert finding.confidence == "suspected"  # this flow has no nodes to follow


@pytest.mark.parametrize(
    ("path", "values", "severity"),
    [
        ("weight", {"rate": 0.5}, "warning"),
        ("weight", {"rate": 0.1}, "warning"),
        ("weight", {"rate": 0.09}, "advice"),
        ("weight", {"kind": "uniform", "rate": 0.5}, "advice"),
        ("weight", {"kind": "gaussian", "rate": 0.5}, "warning"),
        ("weight", {"kind": "other", "rate": None}, "advice"),
        ("join", {"rate": 0.5}, "advice"),
        ("join", {"kind": "drop_path", "rate": 0.2}, "advice"),
    ],
)
def test_without_data_reaching_a_norm_is_never_an_error(build, path, values, severity):
    flow = build.flow([build.feeding(path=path, **values)], [build.norm()])
    (finding,) = build.findings("VS102", build.evidence(build.facts(), train=flow))
    assert (finding.severity, finding.confidence) == (severity, "suspected")
    assert "Pass data" in finding.message


def test_many_sites_are_one_finding_the_worst_first(build):
    names = ("one", "two", "far", "fine")
    sites = [build.feeding(f"{name}.norm", name=name, path="join") for name in names]
    flow = build.flow(sites, [build.norm(f"{name}.norm") for name in names])
    ratios = dict(zip(names, (0.8, 0.4, 0.6, 0.97), strict=True))
    layers = [build.shifted(f"{name}.norm", ratio) for name, ratio in ratios.items()]
    facts = [build.facts(f"{name}.norm") for name in names]
    known = build.evidence(*facts, train=flow, measurement=build.measurement(*layers))
    (finding,) = build.findings("VS102", known)
    assert [site.id.module for site in finding.sites] == ["two", "far", "one"]
    assert finding.evidence["count"] == 3
    assert "sees 0.4 times the variance" in finding.message
    assert "2 more do so: 'far', 'one'" in finding.message
    assert {cure.target for cure in finding.cures} == {None}


def test_without_data_the_sites_of_a_code_are_one_finding_too(build):
    sites = [build.feeding(name=name, rate=rate) for name, rate in (("b", 0.1), ("a", 0.5), ("c", 0.3))]
    flow = build.flow(sites, [build.norm()])
    (finding,) = build.findings("VS101", build.evidence(build.facts(), train=flow))
    assert [site.id.module for site in finding.sites] == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("ratio", "confidence", "outcome"),
    [
        (0.5, "high", ("warning", "predicted")),
        (0.8, "medium", ("warning", "predicted")),
        (0.97, "high", None),
        (0.5, "low", ("warning", "suspected")),
    ],
)
def test_without_data_a_prediction_tells_how_much(build, ratio, confidence, outcome):
    from varshift.moments import LayerPrediction, Prediction

    layer = LayerPrediction("bn", "BatchNorm2d", None, ratio, ratio, 0.0, ratio, {}, confidence, ("drop",))
    flow = build.flow([build.feeding(path="weight")], [build.norm()])
    prediction = Prediction((layer,), {"drop": 0.5}, "anchored")
    found = build.findings("VS102", build.evidence(build.facts(), train=flow, prediction=prediction))
    assert [(one.severity, one.confidence) for one in found] == ([outcome] if outcome else [])


@pytest.mark.parametrize(
    ("values", "safety"),
    [
        ({"stale_ratio": 1.05}, "safe"),
        ({"stale_ratio": 1.15, "stale_error": 0.04}, "safe"),  # as far off as a moving average may be
        ({"stale_ratio": 1.15, "stale_error": 0.01}, "unsafe"),
        ({"stale_ratio": 1.15, "stale_error": 0.2}, "unsafe"),  # so uncertain that nothing would be seen
        ({"stale_mean": 0.15, "stale_mean_error": 0.04}, "safe"),
        ({"stale_mean": 0.15, "stale_mean_error": 0.01}, "unsafe"),
    ],
)
def test_without_a_loss_statistics_that_training_produced_are_safe_to_estimate_again(build, values, safety):
    (finding,) = measured(build, "VS101", build.feeding(), build.shifted(**values))
    (remedy,) = [cure for cure in finding.cures if cure.code == "recalibrate"]
    assert remedy.safety == safety
