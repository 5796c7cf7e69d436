"""Which cure is tried for which finding, and what happens where one fails."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from torch import nn

import varshift as vs
import varshift.fixes
from varshift import SiteId
from varshift.fixes import EDITS, REMEDIES, Change, Edit, NoOptions, Refused, Remedy, edit
from varshift.fixes._course import courses_of
from varshift.rules import CURES, Cure, Finding, FindingSite


def finding(*cures, severity="warning", code="VS101", site="1:dropout"):
    return Finding(code, severity, "certain", (FindingSite(SiteId.parse(site)),), "It is sick.", cures=cures)


SAFE, UNSAFE = Cure("recalibrate", "recalibrate", "safe"), Cure("move-noise", "move it", "unsafe")


def test_safe_cures_alone_by_default_and_causes_first_where_all_are_allowed():
    (course,) = courses_of([finding(SAFE, UNSAFE)], unsafe=False, advice=False)
    assert [cure.code for cure in course.cures] == ["recalibrate"]
    (course,) = courses_of([finding(SAFE, UNSAFE)], unsafe=True, advice=False)
    assert [cure.code for cure in course.cures] == ["move-noise", "recalibrate"]


def test_advice_is_treated_only_where_it_is_asked_for():
    assert courses_of([finding(SAFE, severity="advice")], unsafe=True, advice=False) == []
    assert len(courses_of([finding(SAFE, severity="advice")], unsafe=True, advice=True)) == 1


@dataclass(frozen=True)
class Rename(Edit):
    """Writes a mark into a module."""

    path: str
    fails: bool = False
    op: ClassVar[str] = "rename"

    def apply(self, surgery):
        module = surgery.module(self.path)
        surgery.set(module, "mark", 1)
        if self.fails:
            raise Refused("the mark does not stick.")
        return (Change(SiteId(self.path, "dropout"), "unmarked", "marked", "attribute"),)


class Marks(Remedy):
    code = "move-noise"
    answers = ("VS101",)
    safety = "unsafe"
    options = NoOptions
    edits: ClassVar[tuple[Edit, ...]] = ()

    def plan(self, patient, sites, options, finding):
        return self.edits


@pytest.fixture
def marking(monkeypatch):
    def use(*edits):
        monkeypatch.setitem(REMEDIES, "move-noise", type("Now", (Marks,), {"edits": edits})())

    return use


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_an_edit_that_is_refused_halfway_leaves_nothing(marking):
    marking(Rename("0"), Rename("1", fails=True))
    cured = vs.fix(network(), shape=(4,), cures=["move-noise"])
    assert not cured.changes
    assert not any(hasattr(module, "mark") for module in cured.model.modules())
    assert cured.failures[0].tried == (("move-noise", "the mark does not stick."),)
    assert "does not stick" in str(cured)


def test_an_edit_that_changes_nothing_is_found_out_by_the_second_capture(marking):
    marking(Rename("1"))
    cured = vs.fix(network(), shape=(4,), cures=["move-noise"])
    assert not cured.changes
    assert not hasattr(cured.model[1], "mark")
    assert "as it was" in cured.failures[0].tried[0][1]


def test_a_plan_without_edits_is_a_failure(marking):
    marking()
    cured = vs.fix(network(), shape=(4,), cures=["move-noise"])
    assert "nothing to change" in str(cured.failures[0])


def test_a_cure_after_which_the_finding_is_still_there_is_a_failure(sick, monkeypatch):
    model, _, loader = sick

    class Idle(Marks):
        options = REMEDIES["recalibrate"].options

        def plan(self, patient, sites, options, finding):
            return (Idles(),)

    monkeypatch.setitem(REMEDIES, "recalibrate", Idle())
    cured = vs.fix(model, loader=loader)
    assert not cured.ok
    assert not cured.changes
    assert "still there" in cured.failures[0].tried[0][1]
    assert "move-noise" in cured.failures[0].unsafe


@dataclass(frozen=True)
class Idles(Edit):
    op: ClassVar[str] = "idles"

    def apply(self, surgery):
        return (Change(SiteId("", "nothing"), "", "", "attribute"),)


def test_names_of_edits_are_taken_once():
    with pytest.raises(vs.VarshiftError, match="is taken by"):
        edit("recalibrate")(Rename)


def test_every_remedy_is_a_known_cure_with_options_that_have_defaults():
    for code, remedy in REMEDIES.items():
        assert code in CURES
        assert remedy.safety in ("safe", "unsafe")
        remedy.options()
        assert type(remedy).__doc__


def test_every_edit_and_remedy_is_registered_with_the_package():
    folder = Path(varshift.fixes.__file__).parent
    written = "".join(path.read_text(encoding="utf-8") for path in folder.glob("_*.py"))
    ops = set(re.findall(r'^@edit\("([a-z0-9-]+)"\)', written, flags=re.MULTILINE))
    codes = re.findall(
        r'^@remedy\nclass \w+\(.*?^    code = "([a-z0-9-]+)"', written, flags=re.MULTILINE | re.DOTALL
    )
    assert ops <= set(EDITS)
    assert len(ops) > 10
    assert set(codes) <= set(REMEDIES)
    assert len(codes) > 15


@dataclass(frozen=True)
class Second(Edit):
    """Builds on the mark of another edit."""

    op: ClassVar[str] = "second"

    def apply(self, surgery):
        if not hasattr(surgery.module("0"), "mark"):
            raise Refused("there is no mark to build on.")
        surgery.set(surgery.module("1"), "p", 0.0)
        return (Change(SiteId("1", "dropout"), "p=0.5", "p=0.0", "attribute"),)


@dataclass(frozen=True)
class Marked(Rename):
    """A mark of a place that no capture shows to have changed, and of another one."""

    op: ClassVar[str] = "marked"

    def apply(self, surgery):
        super().apply(surgery)
        surgery.set(surgery.module("2"), "p", 0.0)
        return (Change(SiteId("0", "mark"), "", "marked", "attribute"),)


def test_courses_that_build_on_one_another_are_told_apart(monkeypatch):
    """The first also changes what it does not list; the second has nothing to build on without it."""
    monkeypatch.setitem(REMEDIES, "move-noise", type("First", (Marks,), {"edits": (Marked("0"),)})())
    monkeypatch.setitem(REMEDIES, "swap-noise", type("Then", (Marks,), {"edits": (Second(),)})())
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Dropout(0.2), nn.Linear(4, 2))
    cured = vs.fix(model, shape=(4,), cures=["move-noise", "swap-noise"])
    assert not cured.changes
    assert {failure.tried[0][0] for failure in cured.failures} == {"move-noise", "swap-noise"}
    assert "no mark to build on" in str(cured)
