"""Formats for continuous integration, and names that try to break out of them."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from varshift._printable import printable
from varshift._sites import SiteId, Source
from varshift.report import FORMATS, new_findings
from varshift.rules import NOT_SELECTED, FindingSite, RuleRun

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


def test_what_a_log_takes_for_a_command_is_broken_up(make):
    assert printable("  ::error::a") == "  : :error::a"
    assert printable("a\n::add-mask::b aten::c x[::2]") == "a : :add-mask::b aten::c x[::2]"
    assert printable("a##[add-mask]b ##vso[task.x] ## c") == "a# #[add-mask]b # #vso[task.x] ## c"
    name = "::error::x"
    finding = make.finding(where=name, message=" ".join([name] * 60))
    report = make.report({name: 0.5}, [finding], limits=[name])
    for form in ("text", "concise", "md", "brief", "junit"):
        assert not re.search(r"^\s*::", FORMATS[form].render(report), re.MULTILINE)


def test_what_can_be_seen_stays():
    text = "größe\u00a0层.0 ─ ± 😀 [x]"
    assert printable(text) == text
    assert printable("a\nb\tc\u2028d") == "a b c d"


@pytest.mark.parametrize(
    "form",
    ["text", "brief", "html", "svg", "md", "concise", "github", "gitlab", "sarif", "junit", "notebook"],
)
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
    for form in ("github", "gitlab"):
        assert "it learned. (zoo/blocks.py:3)" in FORMATS[form].render(report)
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


def thing(required, **optional):
    """A schema of an object with these entries and no others."""
    properties = {**required, **optional}
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def several(item, least=0):
    return {"type": "array", "items": item, "minItems": least}


def one_of(*values):
    return {"enum": list(values)}


# The part of SARIF 2.1.0 that is written, with what GitHub's code scanning requires of it.
TEXT = {"type": "string", "minLength": 1}
SHORT = thing({"text": {**TEXT, "maxLength": 1024}})
NUMBER = {"type": "integer", "minimum": 1}
LEVEL = one_of("error", "warning", "note")
REGION = thing(dict.fromkeys(("startLine", "startColumn", "endLine", "endColumn"), NUMBER))
URI = {"type": "string", "pattern": r"^(file:///)?[A-Za-z0-9_.~%/-]+$"}
ARTIFACT = thing({"uri": URI}, uriBaseId=one_of("PACKAGES"))
LOCATION = thing(
    {"physicalLocation": thing({"artifactLocation": ARTIFACT, "region": REGION})},
    id=NUMBER,
    message=thing({"text": TEXT}),
    logicalLocations=several(thing({"fullyQualifiedName": TEXT, "kind": one_of("module")})),
)
STEPS = thing({"locations": several(thing({"location": LOCATION}), 1)})
RULE = thing(
    {
        "id": {"type": "string", "pattern": r"^VS\d{3}$"},
        "name": TEXT,
        "shortDescription": SHORT,
        "fullDescription": SHORT,
        "help": thing({"text": TEXT, "markdown": TEXT}),
        "defaultConfiguration": thing({"level": LEVEL}),
        "properties": thing(
            {"tags": several(TEXT, 1)},
            precision=one_of("very-high", "high", "medium", "low"),
            **{"problem.severity": one_of("error", "warning", "recommendation")},
        ),
    }
)
RESULT = thing(
    {
        "ruleId": TEXT,
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": LEVEL,
        "message": thing({"text": TEXT}),
        "locations": {**several(LOCATION, 1), "maxItems": 1},
        "partialFingerprints": thing({"primaryLocationLineHash": TEXT}),
        "properties": thing({"confidence": TEXT}),
    },
    relatedLocations={**several(LOCATION, 1), "maxItems": 100},
    codeFlows=several(thing({"threadFlows": several(STEPS, 1)}), 1),
)
NOTE = thing({"level": LEVEL, "message": thing({"text": TEXT})})
RUN = thing(
    {
        "tool": thing({"driver": thing({"name": TEXT, "semanticVersion": TEXT, "rules": several(RULE)})}),
        "automationDetails": thing({"id": {"type": "string", "pattern": "^varshift/.*/$"}}),
        "columnKind": one_of("unicodeCodePoints"),
        "originalUriBaseIds": thing({"PACKAGES": thing({"description": thing({"text": TEXT})})}),
        "invocations": several(
            thing({"executionSuccessful": one_of(True), "toolExecutionNotifications": several(NOTE)}), 1
        ),
        "results": several(RESULT),
    }
)
SARIF = thing(
    {
        "$schema": one_of("https://json.schemastore.org/sarif-2.1.0.json"),
        "version": one_of("2.1.0"),
        "runs": {**several(RUN, 1), "maxItems": 1},
    }
)


def sarif_of(report):
    log = json.loads(FORMATS["sarif"].render(report))
    Draft202012Validator(SARIF).validate(log)
    (run,) = log["runs"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    return run


def test_sarif_has_what_code_scanning_requires(sick, hostile, make):
    run = sarif_of(sick)
    assert [result["level"] for result in run["results"]] == ["error"] * 10 + ["warning"]
    hashes = {result["partialFingerprints"]["primaryLocationLineHash"] for result in run["results"]}
    assert len(hashes) == 11
    assert sarif_of(hostile)["results"][0]["message"]["text"].startswith(
        "a : :error::b [31mc|`<script>`%0A,:]: "
    )
    empty = sarif_of(make.report({"a": 1.0}, rules=[RuleRun("VS101", True), RuleRun("VS102", False, "no")]))
    assert [rule["id"] for rule in empty["tool"]["driver"]["rules"]] == ["VS101"]
    assert empty["results"] == []
    unknown = sarif_of(make.report({"a": 0.5}, [make.finding("VS999")]))
    assert unknown["results"][0]["ruleId"] == "VS999"


def test_sarif_keeps_the_line_of_a_library_as_a_related_location(make, project):
    inside = at(make.finding(), library(project))
    (result,) = sarif_of(make.report({"body.0.norm": 0.5}, [inside]))["results"]
    (location,) = result["locations"]
    assert location["physicalLocation"]["artifactLocation"] == {"uri": "nets/residual.py"}
    assert location["physicalLocation"]["region"]["startLine"] == 4
    assert location["physicalLocation"]["region"]["endColumn"] == len("def build():") + 1
    (related,) = result["relatedLocations"]
    artifact = related["physicalLocation"]["artifactLocation"]
    assert artifact == {"uri": "zoo/blocks.py", "uriBaseId": "PACKAGES"}
    assert related["message"]["text"] == "body.0.norm"
    users = at(make.finding(), project / "nets" / "residual.py", 5)
    (result,) = sarif_of(make.report({"body.0.norm": 0.5}, [users]))["results"]
    assert "relatedLocations" not in result


def test_sarif_draws_the_way_from_noise_to_norm(make, project):
    file = str(project / "nets" / "residual.py")
    noise = make.noise(source=f"{file}:4")
    finding = at(make.finding("VS101", "body.0.drop"), file, 4)
    finding = replace(finding, sites=(replace(finding.sites[0], id=SiteId("body.0.drop", "dropout")),))
    report = make.report({"body.0.norm": 0.5, "body.1.norm": 0.6}, [finding, make.finding()], [noise])
    for result in sarif_of(report)["results"]:
        ((flow,),) = [one["threadFlows"] for one in result["codeFlows"]]
        words = [step["location"]["message"]["text"] for step in flow["locations"]]
        assert words == ["noise: body.0.drop", "norm: body.0.norm"]


def test_junit_has_a_case_for_each_rule(make):
    rules = [
        RuleRun("VS101", True),
        RuleRun("VS102", False, NOT_SELECTED),
        RuleRun("VS202", False, "needs data"),
        RuleRun("VS204", True),
        RuleRun("VS207", True),
    ]
    findings = [make.finding(), make.finding("VS204", severity="advice")]
    report = make.report({"body.0.norm": 0.5}, findings, limits=["Not seen."], rules=rules)
    root = ElementTree.fromstring(FORMATS["junit"].render(report).encode())
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    for counts in (root.attrib, suite.attrib):
        assert [counts[key] for key in ("tests", "failures", "errors", "skipped")] == ["4", "1", "0", "1"]
    cases = {case.get("name"): [part.tag for part in case] for case in suite.iter("testcase")}
    assert cases == {
        "VS101 noise-feeds-norm": [],
        "VS202 stale-statistics": ["skipped"],
        "VS204 unusual-momentum": ["system-out"],
        "VS207 variance-shift": ["failure"],
    }
    assert {case.get("classname") for case in suite.iter("testcase")} == {"varshift.nets.residual:build"}
    (failure,) = suite.iter("failure")
    assert failure.get("message").startswith("body.0.norm: the variance")
    assert "Cure (safe): recalibrate" in failure.text
    assert suite.findtext("system-out").endswith("Not seen.")
    strict = ElementTree.fromstring(FORMATS["junit"].render(report, fail_on="advice").encode())
    assert strict.get("failures") == "2"


def test_junit_with_hostile_names_is_well_formed(hostile):
    ElementTree.fromstring(FORMATS["junit"].render(hostile).encode())
