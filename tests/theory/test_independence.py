"""The scalings of the independent-component layer, against enumeration and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from varshift.theory import component_correlation, dropped_condition, dropped_entropy, information_scale


def test_information_of_a_pair_falls_by_the_square():
    assert [information_scale(keep) for keep in (0.95, 0.8, 0.5)] == pytest.approx([0.9025, 0.64, 0.25])


def test_information_about_five_copies():
    found = [information_scale(keep, copies=5) for keep in (0.95, 0.8, 0.5)]
    assert found == pytest.approx([0.95, 0.799744, 0.484375], abs=1e-6)


@given(keep=st.floats(0.01, 1), copies=st.integers(1, 50))
def test_more_copies_tell_more_but_never_all(keep, copies):
    assert information_scale(keep, copies) <= information_scale(keep, copies + 1) <= keep


def test_entropy_of_a_fair_coin():
    assert dropped_entropy(0.5, math.log(2)) == pytest.approx(1.5 * math.log(2))
    assert dropped_entropy(1, 0.7) == 0.7


def test_correlations_of_the_page():
    assert [component_correlation(k, 0.6) for k in (0.95, 0.8, 0.5)] == pytest.approx([0.57, 0.48, 0.3])
    shifted = [component_correlation(k, 0.6, 1, 1) for k in (0.95, 0.8, 0.5)]
    assert shifted == pytest.approx([0.5429, 0.4, 0.2], abs=5e-5)


def test_the_condition_is_that_of_the_ridged_matrix():
    matrix = np.corrcoef(np.random.default_rng(3).normal(size=(5, 40)) + np.arange(40) / 8)
    largest, smallest = np.linalg.eigvalsh(matrix)[[-1, 0]]
    for keep in (1, 0.9, 0.5):
        ridged = np.linalg.eigvalsh(matrix + (1 - keep) / keep * np.eye(5))
        assert dropped_condition(keep, largest, smallest) == pytest.approx(ridged[-1] / ridged[0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: information_scale(0), "keep=0 "),
        (lambda: information_scale(0.5, 0), "copies=0"),
        (lambda: dropped_entropy(0.5, -1), "entropy=-1"),
        (lambda: component_correlation(0.5, 1.5), "correlation=1.5"),
        (lambda: dropped_condition(1, 2, 0), "smallest=0"),
        (lambda: dropped_condition(0.9, 0, 0), "largest=0"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
