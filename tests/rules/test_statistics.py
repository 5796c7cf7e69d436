"""VS201, VS203, VS204 and VS206 on hand-made evidence."""

from __future__ import annotations

import pytest

NAMES = ("stem", "body", "head")


def fresh(build, **values):
    return [build.facts(name, never_moved=True, batches_tracked=0, **values) for name in NAMES]


def test_a_freshly_built_network_gets_one_piece_of_advice(build):
    flow = build.flow(norms=[build.norm(name) for name in NAMES])
    (finding,) = build.findings("VS201", build.evidence(*fresh(build), train=flow))
    assert (finding.severity, finding.confidence, finding.where) == ("advice", "certain", "stem")
    assert [str(site.id) for site in finding.sites] == [f"{name}:batch_norm" for name in NAMES]
    assert finding.evidence == {"count": 3}
    assert str(finding.source) == "net.py:9"


def test_with_data_each_norm_that_never_moved_is_judged_by_what_it_sees(build):
    layers = [
        build.layer("stem", ratio=0.2),
        build.layer("body", ratio=1.2, mean_offset=0.7),
        build.layer("head", ratio=1.2, mean_offset=0.1),
    ]
    known = build.evidence(*fresh(build), measurement=build.measurement(*layers))
    found = build.findings("VS201", known)
    assert [(one.where, one.severity) for one in found] == [
        ("stem", "error"),
        ("body", "error"),
        ("head", "warning"),
    ]
    assert found[0].evidence["ratio"] == 0.2


def test_one_norm_that_never_moved_among_others_is_a_warning(build):
    known = build.evidence(build.facts("stem"), build.facts("body", never_moved=True))
    (finding,) = build.findings("VS201", known)
    assert (finding.where, finding.severity, finding.confidence) == ("body", "warning", "certain")
    assert finding.cures[0].safety == "safe"


def test_a_network_that_counted_batches_does_not_look_freshly_built(build):
    found = build.findings("VS201", build.evidence(build.facts(never_moved=True, batches_tracked=7)))
    assert [one.severity for one in found] == ["warning"]


@pytest.mark.parametrize(
    ("in_train", "in_eval", "severity"),
    [(True, True, "warning"), (True, False, "advice"), (False, False, "warning")],
)
@pytest.mark.parametrize("never_moved", [True, False])
def test_a_norm_that_the_data_never_reach(build, in_train, in_eval, severity, never_moved):
    aux = [build.norm("aux")]
    known = build.evidence(
        build.facts("bn"),
        build.facts("aux", never_moved=never_moved),
        train=build.flow(norms=aux if in_train else ()),
        eval=build.flow(norms=aux if in_eval else (), mode="eval"),
        measurement=build.measurement(
            build.layer("bn"), build.layer("aux", reached=False, ratio=None, mean_offset=None)
        ),
    )
    (finding,) = build.findings("VS201", known)
    assert (finding.where, finding.severity, finding.confidence) == ("aux", severity, "measured")
    assert finding.evidence["reached"] is False
    assert "never reached" in finding.message


def test_statistics_that_moved_and_are_reached_are_let_pass(build):
    known = build.evidence(build.facts(), measurement=build.measurement(build.layer()))
    assert build.findings("VS201", known) == ()


@pytest.mark.parametrize(
    ("values", "severity", "word"),
    [
        ({"nonfinite": 1}, "error", "NaN or infinite"),
        ({"negative": 2}, "error", "negative"),
        ({"nonfinite": 1, "negative": 1}, "error", "and a negative"),
        ({"largest": 7e4}, "warning", "float16"),
        ({"collapsed": 2}, "warning", "2 of 4 channels"),
        ({"collapsed": 1}, "advice", "1 of 4 channels"),
    ],
)
def test_broken_statistics(build, values, severity, word):
    (finding,) = build.findings("VS203", build.evidence(build.facts(**values)))
    assert (finding.severity, finding.confidence, finding.where) == (severity, "certain", "bn")
    assert word in finding.message
    for key, value in values.items():
        assert finding.evidence[key] == value


@pytest.mark.parametrize("values", [{}, {"largest": 6e4}, {"collapsed": 4, "never_moved": True}])
def test_sound_statistics_are_let_pass(build, values):
    assert build.findings("VS203", build.evidence(build.facts(**values))) == ()


@pytest.mark.parametrize(
    ("momentum", "word"),
    [
        (0.9, "should be 0.1"),
        (0.99, "should be 0.01"),
        (0.999, "should be 0.001"),
        (0.5, "0.5"),
        (1.0, "last batch"),
        (0.0, "never move"),
        (1.5, "between 0 and 1"),
        (-0.1, "between 0 and 1"),
    ],
)
def test_a_momentum_of_another_convention(build, momentum, word):
    (finding,) = build.findings("VS204", build.evidence(build.facts(momentum=momentum)))
    assert (finding.severity, finding.confidence) == ("warning", "certain")
    assert word in finding.message
    assert finding.evidence == {"momentum": momentum}


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.003, 0.49, None])
def test_torch_momentum_is_let_pass(build, momentum):
    assert build.findings("VS204", build.evidence(build.facts(momentum=momentum))) == ()


@pytest.mark.parametrize(
    ("values", "severity"),
    [
        ({"dtype": "float16"}, "warning"),
        ({"dtype": "bfloat16"}, "warning"),
        ({"dtype": "float8_e4m3fn"}, "warning"),
        ({"dtype": "bfloat16", "largest": 1e5}, "error"),
        ({"dtype": "float16", "nonfinite": 1, "largest": None}, "error"),
    ],
)
def test_statistics_in_half_precision(build, values, severity):
    (finding,) = build.findings("VS206", build.evidence(build.facts(**values)))
    assert (finding.severity, finding.confidence) == (severity, "certain")
    assert values["dtype"] in finding.message


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_statistics_in_full_precision_are_let_pass(build, dtype):
    assert build.findings("VS206", build.evidence(build.facts(dtype=dtype, largest=1e6))) == ()
