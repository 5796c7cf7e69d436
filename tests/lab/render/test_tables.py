"""Tables and verdicts carry spread, provenance and caveats, and say what is missing."""

import csv
import math

import pytest
from toy_trials import Walk, toy_recipe, walks

from varshift import VarshiftError
from varshift.store import Result
from varshift_lab.render import claims_markdown, lines, table_markdown, to_csv, verdict
from varshift_lab.render._markdown import seeds_text
from varshift_lab.render._numbers import deviation_text, mean_text, short
from varshift_lab.render._values import spread
from varshift_lab.studies import Claim, PaperFigure, Row, Series, Table

PLACE = {
    "device": "Abacus",
    "torch": "2.0",
    "varshift": "1.0",
    "python": "3.11",
    "threads": 1,
    "date": "2026-01-02",
}


def result(value, seconds=2.0, **provenance):
    return Result({"place": value, "pflop": 0.5, "path": [value]}, {**PLACE, **provenance}, seconds)


def results_of(trials, values, **provenance):
    return {trial: result(value, **provenance) for trial, value in zip(trials, values, strict=True)}


def one_row(trials, paper=None, quantity="place"):
    return Table(
        "t", "Title", ("walk",), "paces", (Row(("still",), Series(trials, quantity), paper),), "A note."
    )


def test_mean_and_spread_are_those_of_the_sample():
    found = spread([1.0, 2.0, 4.0])
    assert found.count == 3
    assert found.mean == pytest.approx(7 / 3)
    assert found.deviation == pytest.approx(math.sqrt(7 / 3))
    assert found.error == pytest.approx(math.sqrt(7 / 9))
    assert math.isnan(spread([1.0]).deviation)
    assert math.isnan(spread([]).mean)


@pytest.mark.parametrize(
    ("values", "mean", "deviation"),
    [
        ([10.0, 12.0, 14.0], "12.0", "2.0"),
        ([10.01, 10.02, 10.03], "10.020", "0.010"),
        ([100.0, 200.0], "150", "71"),
        ([3.14159], "3.142", ""),
        ([0.0], "0.00", ""),
        ([5.0, 5.0], "5.000", "0.000"),
        ([1.3363, 1.3363 + 1e-14], "1.336", "0.000"),
        ([], "", ""),
    ],
)
def test_figures_have_as_many_digits_as_their_spread_leaves_meaning_in(values, mean, deviation):
    assert (mean_text(spread(values)), deviation_text(spread(values))) == (mean, deviation)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1234"), (0.012345, "0.0123"), (5e-12, "5.00e-12"), (None, ""), (math.nan, "")],
)
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("seeds", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([4, 0, 1, 7, 5], "0-1, 4-5, 7")]
)
def test_runs_of_seeds_are_shortened(seeds, text):
    assert seeds_text(seeds) == text


def test_a_line_knows_where_its_figures_come_from():
    trials = walks(3)
    found = results_of(trials[:1], [1.0]) | results_of(trials[1:2], [3.0], device="Other", date="2026-01-05")
    (line,) = lines(one_row(trials), found)
    assert (line.values.count, line.values.mean) == (2, 2.0)
    assert (line.seeds, line.missing) == ((0, 1), (2,))
    assert line.ran_on == (
        "Abacus, 1 thread, torch 2.0, varshift 1.0, Python 3.11",
        "Other, 1 thread, torch 2.0, varshift 1.0, Python 3.11",
    )
    assert line.dates == ("2026-01-02", "2026-01-05")
    assert (line.pflop, line.seconds) == (0.5, 2.0)


def test_unusual_precision_is_told():
    trials = walks(1)
    (line,) = lines(
        one_row(trials), results_of(trials, [1.0], precision="bf16-mixed", compiled=True, threads=4)
    )
    assert line.ran_on[0].endswith("4 threads, torch 2.0, varshift 1.0, Python 3.11, bf16-mixed, compiled")


def test_markdown_has_footnotes_for_caveats_and_for_what_it_ran_on():
    trials = walks(3)
    text = table_markdown(
        one_row(trials, PaperFigure(4.5, "read off | a plot")), results_of(trials, [1, 2, 4])
    )
    assert text.splitlines() == [
        "# Title",
        "",
        "A note.",
        "",
        "| walk  | paces | standard deviation |   n | seeds |    paper | PFLOP per run | seconds per run |"
        " ran on |",
        "| ----- | ----: | -----------------: | --: | ----: | -------: | ------------: | --------------: |"
        " -----: |",
        "| still |   2.3 |                1.5 |   3 |   0-2 | 4.5 [^1] |         0.500 |            2.00 |"
        "   [^2] |",
        "",
        r"[^1]: read off \| a plot",
        "[^2]: Abacus, 1 thread, torch 2.0, varshift 1.0, Python 3.11; 2026-01-02",
    ]


def test_markdown_says_what_is_missing():
    trials = walks(3)
    text = table_markdown(one_row(trials), results_of(trials[:2], [1.0, 2.0]))
    assert "| 2 of 3 |" in text
    assert "**Incomplete**: 1 of 3 values are missing." in text
    assert "missing |" in table_markdown(one_row(trials), {})


def test_csv_holds_every_digit_and_every_caveat():
    trials = walks(3)
    found = results_of(trials[:2], [0.1, 0.2])
    text = to_csv(one_row(trials, PaperFigure(4.5, 'a "caveat", with a comma')), found)
    (row,) = csv.DictReader(text.splitlines())
    assert float(row["mean (paces)"]) == spread([0.1, 0.2]).mean
    assert float(row["standard deviation"]) == spread([0.1, 0.2]).deviation
    assert (row["seeds"], row["missing seeds"], row["n"]) == ("0 1", "2", "2")
    assert (row["paper"], row["paper caveat"]) == ("4.5", 'a "caveat", with a comma')
    assert row["device and versions"].startswith("Abacus")
    assert row["quantity"] == "place"


def test_an_empty_table_can_be_written_too():
    (row,) = csv.DictReader(to_csv(one_row(walks(2)), {}).splitlines())
    assert (row["n"], row["mean (paces)"], row["missing seeds"]) == ("0", "", "0 1")


def test_what_was_not_measured_is_named_with_what_was():
    trials = walks(1)
    with pytest.raises(VarshiftError, match="'plce' was not measured by Walk seed 0, but place"):
        lines(one_row(trials, quantity="plce"), results_of(trials, [1.0]))
    with pytest.raises(VarshiftError, match="a table needs a number"):
        lines(one_row(trials, quantity="path"), results_of(trials, [1.0]))


def claim(low, high, margin=0.0):
    pairs = max(len(low), len(high))
    lower, higher = walks(pairs), walks(pairs, drift=1.0)
    found = {trial: result(value) for trial, value in zip(lower, low, strict=False)}
    found |= {trial: result(value) for trial, value in zip(higher, high, strict=False)}
    made = Claim("It is lower.", Series(lower, "place"), Series(higher, "place"), margin, "page 1")
    return verdict(made, found)


@pytest.mark.parametrize(
    ("low", "high", "margin", "outcome"),
    [
        ([1, 2, 3], [3, 4.1, 5], 0.0, "reproduced"),
        ([3, 4.1, 5], [1, 2, 3], 0.0, "not reproduced"),
        ([1, 5, 3], [3, 3, 3], 0.0, "undecided"),
        ([1, 2, 3], [1.5, 2.6, 3.4], -1.0, "not reproduced"),  # lower, but not by as much as claimed
        ([1.5, 2.6, 3.4], [1, 2, 3], 1.0, "reproduced"),  # higher, but within what does no harm
        ([1, 2, 3], [2, 3, 4], 0.0, "reproduced"),  # without any spread
        ([1, 2, 3], [1, 2, 3], 0.0, "undecided"),
        ([1], [3], 0.0, "undecided"),
        ([1, 2], [3, 4, 5], 0.0, "undecided"),
        ([], [], 0.0, "undecided"),
    ],
)
def test_a_claim_is_judged_by_two_standard_errors_of_the_paired_difference(low, high, margin, outcome):
    assert claim(low, high, margin).outcome == outcome


def test_pairs_have_equal_seeds():
    """Two quantities that rise together from seed to seed differ by much less than they spread."""
    found = claim([1, 10, 100], [2, 11.5, 100.8])
    assert found.outcome == "reproduced"
    assert found.difference.mean == pytest.approx(-1.1)
    assert found.difference.error < 0.3 < found.lower.error


def test_seeds_without_a_partner_do_not_count():
    lower = (Walk(0), Walk(1), Walk(2))
    higher = (Walk(1, drift=1.0), Walk(2, drift=1.0), Walk(3, drift=1.0))
    found = results_of((*lower, *higher), [9, 1, 2, 3, 4, -9])
    judged = verdict(Claim("It is.", Series(lower, "place"), Series(higher, "place")), found)
    assert (judged.difference.count, judged.difference.mean, judged.missing) == (2, -2.0, 0)


def test_verdicts_as_markdown():
    text = claims_markdown("Title", [claim([1, 2, 3], [3, 4.1, 5]), claim([1, 2], [3, 4, 5])])
    first, second = text.splitlines()[-2:]
    assert [cell.strip() for cell in first.split("|")[1:-1]] == [
        "It is lower.", "reproduced", "-2.033", "0.033", "3", "2.0", "4.0", "0", "page 1",
    ]  # fmt: skip
    assert "undecided (1 of 3 pairs missing)" in second


def test_recipes_of_the_tests_are_whole():
    assert len(toy_recipe().trials("smoke")) == 9
