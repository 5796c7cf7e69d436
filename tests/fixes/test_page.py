"""The page on fix: its table is that of the code, and its example runs."""

import doctest
from dataclasses import fields
from pathlib import Path

from varshift.fixes import REMEDIES

PAGE = Path(__file__).parents[2] / "docs" / "fix.md"


def row(code):
    remedy = REMEDIES[code]
    what = " ".join((remedy.__doc__ or "").split("\n\n")[0].split())
    options = ", ".join(f"`{field.name}={field.default!r}`" for field in fields(remedy.options))
    return f"| `{code}` | {what} | {remedy.safety} | {', '.join(remedy.answers)} | {options} |"


def test_the_table_of_cures_is_that_of_the_code():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index("| cure | what it does | safety | answers | options |")
    assert lines[start + 2 : start + 2 + len(REMEDIES)] == [row(code) for code in sorted(REMEDIES)]
    assert not lines[start + 2 + len(REMEDIES)]


def test_the_example_runs():
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried
    assert not failed
