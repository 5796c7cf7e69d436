"""The registry: codes, pages, look-up, selection, order, and no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from varshift import VarshiftError
from varshift.rules import (
    FAMILIES,
    PAGE_HEADINGS,
    Evidence,
    Rule,
    all_rules,
    get_rule,
    register,
    resolve_selection,
    run_rules,
)

CODES = tuple(rule.code for rule in all_rules())
FAMILY_OF_FILE = {
    "placement": "VS1",
    "statistics": "VS2",
    "batches": "VS3",
    "modes": "VS4",
    "optimisation": "VS5",
}


def test_the_rules_of_this_release_are_there_and_no_stub_of_a_reserved_one():
    assert CODES == (
        "VS101", "VS102", "VS103", "VS104", "VS105", "VS106", "VS107",
        "VS201", "VS202", "VS203", "VS204", "VS205", "VS206", "VS207", "VS208", "VS209", "VS210", "VS211",
        "VS301", "VS302", "VS303", "VS304", "VS305", "VS306", "VS307",
        "VS401", "VS402", "VS403", "VS404", "VS405", "VS406",
        "VS501",
    )  # fmt: skip


def test_names_are_unique_and_each_rule_lies_in_the_file_of_its_family():
    assert len({rule.name for rule in all_rules()}) == len(CODES)
    for rule in all_rules():
        stem = type(rule).__module__.rpartition("._")[2].split("_")[0]
        assert rule.code.startswith(FAMILY_OF_FILE[stem])
        assert rule.family == FAMILIES[rule.code[:3]]


@pytest.mark.parametrize("code", CODES)
def test_a_page_is_complete(code):
    rule = get_rule(code)
    page = rule.page()
    assert page.startswith(f"# {code}: {rule.name}\n\n{rule.summary}\n")
    assert rule.summary.endswith(".")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert tuple(headings) == PAGE_HEADINGS
    for heading in PAGE_HEADINGS:
        assert len(rule.section(heading)) > 20, heading
    assert page.count("```") % 2 == 0
    assert "```python" in rule.section("Example")
    assert any(word in rule.section("Cure safety") for word in ("Safe", "safe", "Unsafe", "unsafe"))


def test_a_heading_that_is_not_on_the_page_is_named():
    with pytest.raises(VarshiftError, match="heading='Price'"):
        get_rule("VS101").section("Price")


def test_a_rule_is_found_by_code_or_name_in_any_case():
    assert get_rule(" vs101 ") is get_rule("VS101")
    assert get_rule("Variance-Shift").code == "VS207"


@pytest.mark.parametrize(
    ("wrong", "near"), [("VS108", "VS1"), ("VS1O1", "VS101"), ("variance-shft", "variance-shift")]
)
def test_an_unknown_rule_is_named_with_near_misses(wrong, near):
    with pytest.raises(VarshiftError, match=f"unknown rule '{wrong}': did you mean .*{near}"):
        get_rule(wrong)


def test_an_unknown_rule_without_a_near_miss_gets_no_suggestion():
    with pytest.raises(VarshiftError, match=r"unknown rule 'XYZ'\. `varshift rules`"):
        get_rule("XYZ")


@pytest.mark.parametrize(
    ("code", "name", "complaint"),
    [
        ("VS999", "some-name", "must be a family"),
        ("X101", "some-name", "must be a family"),
        ("VS198", "Some Name", "kebab-case"),
        ("VS101", "some-name", "already taken"),
        ("VS198", "variance-shift", "already taken"),
    ],
)
def test_a_malformed_or_taken_code_is_not_registered(code, name, complaint):
    own_code, own_name = code, name

    class Other(Rule):
        """Fires never."""

        code = own_code
        name = own_name

        def applies(self, evidence):
            yield from ()

    with pytest.raises(VarshiftError, match=complaint):
        register(Other)
    assert tuple(rule.code for rule in all_rules()) == CODES


def family(prefix: str) -> tuple[str, ...]:
    return tuple(code for code in CODES if code.startswith(prefix))


@pytest.mark.parametrize(
    ("select", "ignore", "expected"),
    [
        (None, None, CODES),
        (["ALL"], [], CODES),
        (["VS"], None, CODES),
        ([], None, ()),
        (["VS1"], None, family("VS1")),
        (["VS10"], None, family("VS10")),
        ("VS1,VS401", None, (*family("VS1"), "VS401")),
        (["vs207"], None, ("VS207",)),
        (None, ["VS2"], tuple(code for code in CODES if not code.startswith("VS2"))),
        (["VS1"], ["VS101"], family("VS1")[1:]),
        (["VS101"], ["VS1"], ("VS101",)),
        (["VS101"], ["VS101"], ()),
        (["VS207"], ["ALL"], ("VS207",)),
        (["ALL"], ["VS2"], tuple(code for code in CODES if not code.startswith("VS2"))),
        (
            ["ALL", "VS207"],
            ["VS2"],
            tuple(code for code in CODES if not code.startswith("VS2") or code == "VS207"),
        ),
    ],
)
def test_the_more_specific_selector_wins_and_ignore_at_equal_length(select, ignore, expected):
    assert resolve_selection(select, ignore) == expected


def test_extensions_are_added():
    assert resolve_selection(["VS401"], [], extend_select=["VS1"], extend_ignore=["VS107"]) == (
        *family("VS1")[:-1],
        "VS401",
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"select": ["VS999"]}, "select: 'VS999'"),
        ({"select": ["VS6"]}, "select: 'VS6'"),
        ({"select": ["VS1"], "ignore": ["VS1011"]}, "ignore: 'VS1011'.*VS101"),
        ({"extend_select": ["E5"]}, "extend-select: 'E5'"),
        ({"extend_ignore": ["V"]}, "extend-ignore: 'V'"),
    ],
)
def test_an_unknown_selector_is_named(arguments, named):
    with pytest.raises(VarshiftError, match=named):
        resolve_selection(**arguments)


def test_nothing_is_found_without_evidence():
    assert run_rules(Evidence(train=None, eval=None)) == ()


def test_findings_come_by_severity_then_code_then_the_order_of_the_network(build):
    names = ("stem", "body", "head")
    norms = [build.norm(name) for name in reversed(names)]
    known = build.evidence(
        build.facts("body", momentum=0.9),
        build.facts("head", dtype="bfloat16"),
        build.facts("stem", momentum=0.9, collapsed=4),
        build.facts("late", nonfinite=1),
        train=build.flow(norms=norms),
    )
    found = [(one.severity, one.code, one.where) for one in run_rules(known)]
    assert found == [
        ("error", "VS203", "late"),
        ("warning", "VS203", "stem"),
        ("warning", "VS204", "body"),
        ("warning", "VS206", "head"),
    ]
    assert [one.code for one in run_rules(known, select=["VS2"], ignore=["VS204"])] == [
        "VS203",
        "VS203",
        "VS206",
    ]


def test_rules_and_their_pages_need_no_torch():
    program = (
        "import sys, varshift.rules as rules\n"
        "assert all(rule.page() for rule in rules.all_rules())\n"
        "rules.load_config()\n"
        "rules.run_rules(rules.Evidence(train=None, eval=None))\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
