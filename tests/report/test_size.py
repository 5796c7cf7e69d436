"""Reports of deep networks: small files, and no work that grows with the square of the depth."""

import json
import sys

import pytest

from varshift.report import FORMATS, Report
from varshift.rules import run_rules

NORMS, NOISES = 973, 324
FOLDER = "/home/someone/project/.venv/lib/python3.11/site-packages/networks/_residual.py"


def deep(make, norms, noises):
    """A pre-activation network of three norms a block: each block's noise reaches all norms after it."""
    from dataclasses import replace

    from varshift.report import build_report
    from varshift.rules import Evidence

    names = [f"stages.{index % 3}.{index}.norm{index % 3 + 1}" for index in range(norms)]
    sites = []
    for index in range(noises):
        after = tuple(names[3 * index + 3 :])
        sites.append(
            make.noise(
                f"stages.{index % 3}.{index}.before_conv",
                after,
                source=f"{FOLDER}:131",
                node=-1,
                path="join" if after else "none",
                near=dict.fromkeys(after[::3], "join"),
            )
        )
    flow = make.flow(names, sites)
    flow = replace(flow, norms=tuple(replace(norm, source=f"{FOLDER}:77") for norm in flow.norms))
    facts = {name: replace(make.facts(name), never_moved=True, batches_tracked=0) for name in names}
    evidence = Evidence(train=flow, eval=None, norms=facts)
    return build_report(
        target="deep",
        parameters=1,
        evidence=evidence,
        capture_method="dispatch",
        findings=run_rules(evidence),
    )


@pytest.fixture(scope="module")
def report(make_once):
    return deep(make_once, NORMS, NOISES)


@pytest.fixture(scope="module")
def make_once():
    from types import SimpleNamespace

    from .conftest import make_facts, make_flow, make_noise

    return SimpleNamespace(facts=make_facts, flow=make_flow, noise=make_noise)


def test_a_network_of_973_norms_and_324_noise_sites_takes_less_than_a_megabyte(report):
    assert (report.model.norms, report.model.noises) == (NORMS, NOISES)
    # One for all noise sites, and one for all norms.
    assert sorted(len(finding.sites) for finding in report.findings) == [NOISES, NORMS]
    assert len(report.to_json().encode()) < 1_000_000


def test_nothing_is_lost_on_the_way(report):
    again = Report.from_json(report.to_json())
    assert again == report
    for index in (0, 100, NOISES - 2):
        reached = again.reached_by(again.noises[index])
        assert [row.name for row in reached] == [row.name for row in report.layers[3 * index + 3 :]]
    assert len(again.noises_before(again.layers[-1])) == again.layers[-1].noise_count == NOISES
    assert again.layers[-1].noise == again.noises[-1].id


def calls(function):
    """Number of calls of Python functions that a function makes."""
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", ["text", "html", "json", "brief"])
def test_rendering_costs_no_more_than_in_proportion_to_the_depth(make_once, name):
    small, large = (deep(make_once, 3 * size + 1, size) for size in (40, 160))
    options = {"full": True} if name == "text" else {}
    few, many = (calls(lambda each=each: FORMATS[name].render(each, **options)) for each in (small, large))
    assert many < 5 * few


def test_every_row_is_a_line_of_its_own(report):
    lines = report.to_json().splitlines()
    assert len(lines) < 2 * (NORMS + NOISES)
    (row,) = (line for line in lines if line.startswith('    {"id":"stages.1.1.norm2:batch_norm"'))
    assert json.loads(row.rstrip(","))["class"] == "BatchNorm2d"
