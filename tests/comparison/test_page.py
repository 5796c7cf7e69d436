"""The examples of the page and of the front door run."""

import doctest
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "compare.md"


def test_the_examples_of_the_page_run(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S):
        exec(block, names)
    said = capsys.readouterr().out
    assert "4 variants over 3 seeds, by loss in eval() on the validation data" in said
    assert "as-is and no-noise" in said
    assert [row.name for row in names["table"].variants] == ["as-is", "no-noise"]


def test_the_page_has_every_variant():
    from varshift.comparison import VARIANTS

    page = PAGE.read_text()
    assert all(f"`{name}`" in page for name in VARIANTS)


def test_the_example_of_the_front_door_runs():
    from varshift import _compare

    assert doctest.testmod(_compare).failed == 0
