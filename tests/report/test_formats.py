"""Formats for continuous integration, and names that try to break out of them."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from varshift._printable import printable
from varshift._sites import SiteId, Source
from varshift.report import FORMATS, new_findings
from varshift.rules import FindingSite

HOSTILE = "a\n::error::b\r\x1b[31m\x07\u202ec\u2066|`<script>`\ud800\ufffe%0A,:]"


def at(finding, path, line=3):
    (site,) = finding.sites
    return replace(finding, sites=(replace(site, source=Source(str(path), line)),))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with a package, an environment inside it, and a file outside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "residual.py").write_text("import torch\n\n\ndef build():\n    return 1\n")
    return tmp_path


@pytest.fixture
def hostile(make, project):
    finding = replace(
        make.finding(where=HOSTILE, source=False, message=f"{HOSTILE} is off."),
        sites=(FindingSite(SiteId(HOSTILE, "dropout"), HOSTILE, Source(str(project / "ne,ts:%.py"), 2)),),
    )
    report = make.report({HOSTILE: 0.5}, [finding], [make.noise(HOSTILE, (HOSTILE,))], [HOSTILE])
    return replace(report, model=replace(report.model, target=HOSTILE))


@pytest.mark.parametrize(
    "character", ["\x00", "\x1b", "\x9b", "\u202e", "\u2066", "\u200f", "\ud800", "\uffff"]
)
def test_characters_that_act_are_left_out(character):
    assert printable(f"a{character}b") == "ab"


def test_what_can_be_seen_stays():
    text = "größe\u00a0层.0 ─ ± 😀 [x]"
    assert printable(text) == text
    assert printable("a\nb\tc\u2028d") == "a b c d"


@pytest.mark.parametrize("form", ["text", "brief", "html", "svg", "md", "concise", "github", "notebook"])
def test_no_name_brings_a_control_or_bidirectional_character(hostile, form):
    text = FORMATS[form].render(hostile)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe]", text)
    text.encode("utf-8")
    if form != "github":  # there each command is a line of its own
        assert not re.search(r"^\s*::", text, re.MULTILINE)


def test_a_picture_with_hostile_names_is_well_formed(hostile):
    ElementTree.fromstring(FORMATS["svg"].render(hostile))


def test_why_and_the_console_strip_names_too(hostile):
    from io import StringIO

    from rich.console import Console

    assert not {"\u202e", "\x1b"} & set(hostile.why())
    screen = StringIO()
    Console(file=screen, width=120).print(hostile)
    assert not {"\u202e", "\x1b"} & set(screen.getvalue())


def test_annotations_of_github(make, project):
    finding = at(make.finding(message="100 % off: a, b"), project / "nets" / "residual.py", 4)
    advice = replace(finding, severity="advice")
    text = FORMATS["github"].render(make.report({"body.0.norm": 0.5}, [advice, finding]))
    first, second = text.splitlines()
    assert first.startswith(
        "::error title=varshift%3A VS207 variance-shift,file=nets/residual.py,line=4,endLine=4::"
    )
    assert "body.0.norm: 100 %25 off: a, b%0ACure (safe): recalibrate" in first
    assert second.startswith("::notice ")


def test_a_hostile_name_makes_no_command_of_its_own(hostile):
    (line,) = FORMATS["github"].render(hostile).splitlines()
    command, _, message = line.removeprefix("::").partition("::")
    assert re.fullmatch(r"error title=[^:]*,file=ne%2Cts%3A%25\.py,line=2,endLine=2", command)
    assert "%250A" in message  # what looked like an escape is text


def test_one_line_for_each_finding(sick):
    *lines, last = FORMATS["concise"].render(sick).splitlines()
    assert len(lines) == len(sick.findings)
    assert lines[0].startswith("/nets/residual.py:51: error VS207 variance-shift: body.0.norm: the variance")
    assert last == "10 errors and 1 warning."


def test_markdown_has_a_row_for_each_finding(sick, hostile):
    rows = [row for row in FORMATS["md"].render(sick).splitlines() if row.startswith("| ")]
    assert len(rows) == 2 + len(sick.findings)
    text = FORMATS["md"].render(hostile)
    (row,) = [row for row in text.splitlines() if row.startswith("| error")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_code_quality_of_gitlab(make, project):
    finding = at(make.finding(), project / "nets" / "residual.py", 4)
    (entry,) = json.loads(FORMATS["gitlab"].render(make.report({"body.0.norm": 0.5}, [finding])))
    assert set(entry) == {"check_name", "description", "severity", "fingerprint", "location"}
    assert entry["location"] == {"path": "nets/residual.py", "lines": {"begin": 4}}
    assert (entry["severity"], len(entry["fingerprint"])) == ("critical", 32)


def fingerprints_of(report):
    return [entry["fingerprint"] for entry in json.loads(FORMATS["gitlab"].render(report))]


def test_fingerprints_follow_rule_and_site_and_not_lines_or_figures(make):
    first, second = make.finding(where="a"), make.finding(where="b")
    (one,) = fingerprints_of(make.report({"a": 0.5}, [first]))
    moved = replace(at(first, "/elsewhere.py", 999), message="other", severity="warning")
    assert fingerprints_of(make.report({"a": 0.5}, [moved])) == [one]
    both = [replace(first, sites=sites) for sites in (first.sites + second.sites, second.sites + first.sites)]
    assert [fingerprints_of(make.report({"a": 0.5}, [finding])) for finding in both] == [[one], [one]]
    others = [second, replace(first, code="VS202"), first, first]
    assert len({one, *fingerprints_of(make.report({"a": 0.5}, others))}) == 4


def test_what_is_new_against_a_baseline(make):
    first, second = make.finding(where="a", severity="warning"), make.finding(where="b")
    baseline = make.report({"a": 0.5}, [first])

    def new(*findings):
        return new_findings(make.report({"a": 0.5}, findings), baseline)

    assert new(at(first, "/moved.py")) == new(replace(first, severity="advice")) == ()
    graver, wider = replace(first, severity="error"), replace(first, sites=first.sites + second.sites)
    for finding in (second, graver, wider, replace(first, code="VS202")):
        assert new(first, finding) == (finding,)


def library(project):
    return project / ".venv" / "lib" / "python3.13" / "site-packages" / "zoo" / "blocks.py"


def located(report):
    (entry,) = json.loads(FORMATS["gitlab"].render(report))
    return entry["location"]["path"], entry["location"]["lines"]["begin"]


def test_a_finding_in_a_library_is_shown_where_the_project_makes_the_network(make, project):
    inside = at(make.finding(), library(project))
    report = make.report({"body.0.norm": 0.5}, [inside])
    assert report.model.target == "nets.residual:build"
    assert located(report) == ("nets/residual.py", 4)
    users = FindingSite(SiteId("head", "dropout"), "", Source(str(project / "nets" / "residual.py"), 5))
    assert located(make.report({"a": 0.5}, [replace(inside, sites=(*inside.sites, users))])) == (
        "nets/residual.py",
        5,
    )
    (project / "pyproject.toml").write_text("")
    zoo = replace(report, model=replace(report.model, target="timm:resnet18"))
    assert located(zoo) == ("pyproject.toml", 1)
    assert located(replace(zoo, findings=(at(make.finding(), project.parent / "apart.py"),))) == (
        "pyproject.toml",
        1,
    )
