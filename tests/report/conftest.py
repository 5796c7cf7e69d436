import math
from itertools import pairwise
from types import SimpleNamespace

import pytest

from varshift._sites import SiteId, Source
from varshift.flow import Flow, NoiseSite, NormSite
from varshift.model import NormFacts
from varshift.probe import Gap, GapStep, LayerMeasurement, Measurement
from varshift.report import build_report
from varshift.rules import Cure, Evidence, Finding, FindingSite

STATES = ("train", "clean", "clean_eval", "recalibrated", "recalibrated_noisy", "eval")
CAUSES = ("noise", "function", "small-batch", "variance-shift", "statistics")


def make_gap(values, errors=(0.01, 0.0, 0.001, 0.004, 0.003), metric="loss", **extra):
    """A gap on four batches of 64 whose steps have these standard errors."""
    steps = [
        GapStep(cause, after - before, error)
        for cause, (before, after), error in zip(CAUSES, pairwise(values), errors, strict=True)
    ]
    spread = [0.0]  # values at both sides of a mean, as far as gives the standard error of four
    for error in errors:
        spread.append(spread[-1] + (error or 0.0) * math.sqrt(3))
    batches = {
        state: tuple(value + sign * far for sign in (1, -1, 1, -1))
        for state, value, far in zip(STATES, values, spread, strict=True)
    }
    given = {"batches": batches, "sizes": (64,) * 4, **extra}
    return Gap(metric, dict(zip(STATES, values, strict=True)), tuple(steps), **given)


def make_finding(
    code="VS207", where="body.0.norm", severity="error", cls="BatchNorm2d", source=True, **changes
):
    line = Source("/nets/residual.py", 40 + len(where)) if source else None
    fields = {
        "code": code,
        "severity": severity,
        "confidence": "measured",
        "sites": (FindingSite(SiteId(where, "batch_norm"), cls, line),),
        "message": f"the variance that {where} sees when deployed is 0.52 times the one it learned.",
        "evidence": {"ratio": 0.52, "control_ratio": 1.01},
        "cures": (
            Cure("recalibrate", "recalibrate the running statistics with the noise off", "safe"),
            Cure("move-noise", "move the dropout behind the last norm of the network", "unsafe"),
        ),
    }
    return Finding(**{**fields, **changes})


def make_facts(name, cls="BatchNorm2d", channels=16):
    return NormFacts(
        name=name,
        cls=cls,
        channels=channels,
        eps=1e-5,
        momentum=0.1,
        dtype="float32",
        batches_tracked=100,
        never_moved=False,
        nonfinite=0,
        negative=0,
        collapsed=0,
        largest=3.0,
        live=True,
        frozen_parameters=False,
    )


def make_flow(names, noises=()):
    norms = [
        NormSite(
            name,
            "BatchNorm2d",
            "batch_norm",
            16,
            f"/nets/residual.py:{index}",
            (index,),
            ((8, 16, 4, 4),),
            True,
        )
        for index, name in enumerate(names, start=1)
    ]
    return Flow("train", "recorded", (), tuple(noises), tuple(norms))


def make_measurement(ratios, **changes):
    layers = [
        LayerMeasurement(
            name=name,
            reached=value is not None,
            moving_var=1.25,
            real_var=None if value is None else 1.25 * value,
            ratio=value,
            channel_log_ratio_rms=None if value is None or not value > 0 else abs(math.log(value)),
            mean_offset=None if value is None else 0.01,
            local_ratio=value,
            control_ratio=None if value is None else 1.01,
        )
        for name, value in ratios.items()
    ]
    return Measurement(**{"layers": tuple(layers), "gap": None, "batches": 16, "samples": 1024, **changes})


def make_report(
    ratios=None,
    findings=(),
    noises=(),
    limits=(),
    norms=None,
    capture_method="recorded",
    rules=(),
    provided=(),
    repeat="",
    **changes,
):
    names = list(norms if norms is not None else ratios or {})
    evidence = Evidence(
        train=make_flow(names, noises),
        eval=None,
        norms={name: make_facts(name) for name in names},
        measurement=None if ratios is None else make_measurement(ratios, **changes),
    )
    return build_report(
        target="nets.residual:build",
        parameters=1_234_567,
        evidence=evidence,
        capture_method=capture_method,
        findings=findings,
        limits=limits,
        rules=rules,
        provided=provided,
        repeat=repeat,
    )


def make_noise(name="body.0.drop", reaches=("body.0.norm", "body.1.norm"), **changes):
    fields = {
        "name": name,
        "cls": "Dropout",
        "kind": "dropout",
        "rate": 0.5,
        "source": "/nets/residual.py:33",
        "node": 3,
        "reaches": tuple(reaches),
        "nearest": reaches[0] if reaches else None,
        "path": "direct" if reaches else "none",
    }
    return NoiseSite(**{**fields, **changes})


@pytest.fixture
def make():
    return SimpleNamespace(
        gap=make_gap,
        finding=make_finding,
        facts=make_facts,
        flow=make_flow,
        measurement=make_measurement,
        noise=make_noise,
        report=make_report,
    )


@pytest.fixture
def sick(make):
    """A network with two rules fired at many norms, a gap, and a norm out of reach."""
    ratios = {f"body.{index}.norm": 0.5 + 0.02 * index for index in range(30)}
    ratios["head.norm"] = None
    findings = [make.finding(where=name) for name, value in ratios.items() if value and value < 0.7]
    findings.append(
        make.finding(
            "VS101", "body.0.drop", "warning", cls="Dropout", confidence="certain", message="It feeds a norm."
        )
    )
    gap = make.gap(
        (0.2134, 0.2013, 0.2013, 0.2025, 0.5846, 0.5948),
        accuracy=dict(zip(STATES, (0.93, 0.94, 0.94, 0.94, 0.71, 0.7), strict=True)),
    )
    return make.report(
        ratios,
        findings,
        [make.noise()],
        ["Batches were of one size: nothing is known about others."],
        gap=gap,
    )
