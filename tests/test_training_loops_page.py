"""The page on freezing, averaging and accumulating: every snippet runs and prints what it says."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "training-loops.md"


def test_the_snippets_run():
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried > 40
    assert not failed
