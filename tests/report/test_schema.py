"""The schema file is derived from the dataclasses, and so is everything that is written and read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from varshift._sites import SiteId, Source
from varshift.model import NormFacts
from varshift.moments import LayerPrediction
from varshift.probe import LayerMeasurement
from varshift.report import LayerRow, MeasuredFigures, PredictedFigures, Report, StatisticsInfo, report_schema
from varshift.report._codec import decode, encode, is_sparse, key_of
from varshift.report._read import SCHEMA
from varshift.report._schema import derived_schema


def test_the_shipped_schema_is_current():
    text = resources.files("varshift.report").joinpath("_schema.json").read_text(encoding="utf-8")
    expected = json.dumps(derived_schema(Report, SCHEMA), indent=2) + "\n"
    assert text == expected, "run `python -m varshift.report` and commit the file"


def test_every_key_of_the_schema_is_described():
    schema = report_schema()
    for name, part in {"report": schema, **schema["$defs"]}.items():
        for key, entry in part.get("properties", {}).items():
            assert key == "schema" or entry.get("description"), f"{name}.{key} has no description"


def names(cls: type) -> set[str]:
    return {item.name for item in fields(cls)}


def test_every_figure_that_the_rules_use_is_in_the_row_of_its_norm():
    row = names(LayerRow) | {"name"}
    assert names(LayerMeasurement) <= names(MeasuredFigures) | row
    assert names(NormFacts) <= names(StatisticsInfo) | row
    # What it was derived from stays with the prediction.
    assert names(LayerPrediction) - {"states"} <= names(PredictedFigures) | row


@dataclass(frozen=True)
class Inner:
    """A part.

    Attributes:
        kind: A word.
        cls: Another.
        count: How many.
    """

    kind: Literal["a", "b"]
    cls: str = field(default="", metadata={"json": "class"})
    count: int = field(default=0, metadata={"sparse": True})


@dataclass(frozen=True)
class Outer:
    """A whole.

    Attributes:
        site: Where.
        source: The line.
        figures: Numbers.
        parts: Its parts.
        pair: Two numbers.
        shares: Numbers by name.
        evidence: Anything.
    """

    site: SiteId
    source: Source | None
    figures: tuple[float | None, ...]
    parts: tuple[Inner, ...] = ()
    pair: tuple[int, int] = (0, 0)
    shares: Mapping[str, float] | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)


words = st.text(max_size=6)
sites = st.builds(SiteId, words, st.sampled_from(["dropout", "batch_norm"]), st.integers(1, 99))
numbers = st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=4,
)
parts = st.builds(Inner, st.sampled_from(["a", "b"]), words, st.integers())
outers = st.builds(
    Outer,
    sites,
    st.none() | st.builds(Source, words, st.integers(1)),
    st.lists(st.none() | numbers, max_size=3).map(tuple),
    st.lists(parts, max_size=3).map(tuple),
    st.tuples(st.integers(), st.integers()),
    st.none() | st.dictionaries(words, numbers, max_size=3),
    st.dictionaries(words, anything, max_size=3),
)


@settings(max_examples=50)
@given(outers)
def test_any_value_of_any_dataclass_fits_its_schema_and_comes_back(value):
    text = json.dumps(encode(value), allow_nan=False)
    content = json.loads(text)
    schema = derived_schema(Outer, "v")
    Draft202012Validator(schema).validate({"schema": "v", **content})
    assert decode(Outer, content) == value


def test_a_sparse_field_is_left_out_at_its_default_and_has_it_in_the_schema():
    assert encode(Inner("a")) == {"kind": "a", "class": ""}
    assert encode(Inner("a", count=2)) == {"kind": "a", "class": "", "count": 2}
    part = derived_schema(Outer, "v")["$defs"]["Inner"]
    assert part["properties"]["count"]["default"] == 0
    assert part["required"] == ["kind", "class"]


@pytest.mark.parametrize("cls", [MeasuredFigures, PredictedFigures])
def test_an_unknown_figure_is_null_and_never_left_out(cls):
    row = cls(**{item.name: None for item in fields(cls)})
    figures = [item for item in fields(cls) if not is_sparse(item)]
    assert encode(row) == {key_of(item): None for item in figures}
