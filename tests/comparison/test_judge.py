"""The statistics of comparisons, against tables of Student's t, and by simulation."""

import math
import random

import pytest
from long_runs import LONG

from varshift.comparison import Criterion, judge_pairs, looks_of
from varshift.comparison._judge import LEVEL, PairedTest, holm, paired, seeds_needed
from varshift.comparison._student import critical, needed, power, two_sided
from varshift.comparison._verdicts import hopeless


@pytest.mark.parametrize(
    ("degrees", "level", "value"),
    # quantiles of Student's t from published tables
    [
        (1, 0.05, 12.706),
        (2, 0.05, 4.303),
        (3, 0.01, 5.841),
        (4, 0.001, 8.610),
        (9, 0.05, 2.262),
        (30, 0.05, 2.042),
    ],
)
def test_quantiles_are_those_of_tables(degrees, level, value):
    assert critical(level, degrees) == pytest.approx(value, abs=6e-4)
    assert two_sided(critical(level, degrees), degrees) == pytest.approx(level, rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
@pytest.mark.parametrize("level", [0.05, 0.0033])
def test_without_an_effect_the_power_is_the_level(count, level):
    assert power(0.0, count, level) == pytest.approx(level, rel=1e-6)


def test_the_number_of_pairs_is_that_of_tables():
    # a paired t test at 5 % with a power of 80 %: 10 pairs for an effect of 1, 34 for one of 0.5
    assert (needed(1.0, 0.05, 0.8, 10_000), needed(0.5, 0.05, 0.8, 10_000)) == (10, 34)
    assert needed(0.001, 0.05, 0.8, 10_000) is None


def test_the_power_is_that_of_a_simulation():
    draw, seen, repeats = random.Random(0), 0, 4000
    limit = critical(0.01, 4)
    for _ in range(repeats):
        values = [draw.gauss(1.5, 1.0) for _ in range(5)]
        mean = sum(values) / 5
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
        seen += abs(mean / error) > limit
    expected = power(1.5, 5, 0.01)
    assert abs(seen / repeats - expected) < 4 * math.sqrt(expected * (1 - expected) / repeats)


def test_holm_multiplies_the_smallest_by_the_number_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_counts_that_agree_by_chance_prove_little():
    # one more of 100 samples right, each time: the same difference may come from rounding to whole samples
    close = paired([0.91, 0.92, 0.93], [0.90, 0.91, 0.92], resolution=0.01)
    assert close.error > 0
    assert close.p > 0.01
    assert paired([0.91, 0.92, 0.93], [0.50, 0.51, 0.52], resolution=0.01).p < 1e-3


def test_seeds_that_change_nothing_prove_nothing():
    test = paired([1.0, 1.0, 1.0], [2.0, 2.1, 2.2])
    assert test.fixed
    assert test.p == 1.0


def test_equal_figures_are_the_same_and_rounding_is_no_difference():
    assert paired([1.0, 2.0], [1.0, 2.0]).same
    rounded = [value * (1 + 1e-8) for value in (1.0, 2.0, 3.0)]
    assert paired(rounded, [1.0, 2.0, 3.0]).p > 0.05


def test_more_seeds_are_needed_the_smaller_the_difference():
    clear, faint = PairedTest(3, 1.0, 0.5, 0.2), PairedTest(3, 0.2, 0.5, 0.7)
    assert 3 < seeds_needed(clear, 10) < seeds_needed(faint, 10)
    assert seeds_needed(PairedTest(3, 0.0, 0.5, 1.0), 10) is None


def figures(values):
    return {seed: {"loss": value} for seed, value in enumerate(values)}


def judged(columns, seeds, final=False):
    results = {name: figures(values) for name, values in columns.items()}
    looks = looks_of(seeds, early_stop=False)
    return judge_pairs(results, list(columns), Criterion(), looks, final=final)


def test_a_clear_difference_is_said_and_a_faint_one_is_not():
    base = [1.0, 1.3, 0.8, 1.1, 0.9]
    pairs = judged(
        {
            "as-is": base,
            "better": [v - 0.5 + 0.01 * i for i, v in enumerate(base)],
            "other": [v + 0.1 * (-1) ** i for i, v in enumerate(base)],
        },
        5,
    )
    first, second, _ = pairs
    assert (first.outcome, first.better) == ("differ", "better")
    assert "better is better than as-is" in first.text
    assert second.outcome == "not told apart"
    assert second.needed > 5
    assert f"cannot be told apart with 5 seeds; {second.needed} would do" in second.text


def test_one_seed_tells_nothing():
    (pair,) = judged({"as-is": [1.0], "b": [2.0]}, 1)
    assert pair.outcome == "unknown"
    assert "one seed" in pair.text


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_variants_are_told_apart_in_at_most_one_table_of_twenty(seeds):
    draw, wrong, repeats = random.Random(seeds), 0, 400 if LONG else 100
    for _ in range(repeats):
        common = [draw.gauss(0, 1) for _ in range(seeds)]  # what a seed does to all variants alike
        columns = {str(i): [c + draw.gauss(0, 0.3) for c in common] for i in range(6)}
        wrong += any(pair.outcome == "differ" for pair in judged(columns, seeds))
    assert wrong / repeats < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / repeats)


def test_stopping_early_keeps_the_level_and_stops_what_is_hopeless():
    draw, wrong, repeats, seeds = random.Random(7), 0, 200 if LONG else 100, 6
    looks = looks_of(seeds, early_stop=True)
    assert looks.early == (3, 4, 5)
    for _ in range(repeats):
        columns = {str(i): [draw.gauss(0, 1) for _ in range(seeds)] for i in range(4)}
        stopped = {}
        for count in looks.early:
            results = {n: figures(v[: stopped.get(n, count)]) for n, v in columns.items()}
            for name in hopeless(judge_pairs(results, list(columns), Criterion(), looks, final=True), "0"):
                stopped.setdefault(name, count)
        results = {n: figures(v[: stopped.get(n, seeds)]) for n, v in columns.items()}
        wrong += any(p.outcome == "differ" for p in judge_pairs(results, list(columns), Criterion(), looks))
    assert wrong / repeats < LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / repeats)

    results = {"as-is": figures([1.0, 1.1, 0.9, 1.05]), "bad": figures([90.0, 90.3, 89.9, 90.1])}
    assert set(hopeless(judge_pairs(results, list(results), Criterion(), looks, final=True), "as-is")) == {
        "bad"
    }
    assert not hopeless(judge_pairs(results, list(results), Criterion(), looks, final=True), "bad")


def test_a_stopped_variant_stays_settled_when_the_others_go_on():
    draw, looks = random.Random(1), looks_of(6, early_stop=True)
    base = [draw.gauss(0, 0.1) for _ in range(6)]
    columns = {
        "as-is": base,
        "bad": [v + 20 + draw.gauss(0, 0.01) for v in base[:3]],
        "other": [draw.gauss(0, 0.1) for _ in range(6)],
    }
    early = {name: figures(values[:3]) for name, values in columns.items()}
    assert "bad" in hopeless(judge_pairs(early, list(columns), Criterion(), looks, final=True), "as-is")
    late = {name: figures(values) for name, values in columns.items()}
    pairs = {(p.first, p.second): p for p in judge_pairs(late, list(columns), Criterion(), looks)}
    assert pairs["as-is", "bad"].outcome == "differ"
