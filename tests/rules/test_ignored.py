"""Comments in the source that ignore findings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import varshift as vs
from varshift.model import Source
from varshift.rules._ignored import ignores, without_ignored

TEXT = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x):
        h = self.first(x)
        h = F.dropout(h, 0.5){first}
        h = F.dropout(
            h.relu(),
            0.4,{second}
        )
        return self.last(h)
"""


def report(folder: Path, first: str = "", second: str = "", **settings) -> vs.Report:
    file = folder / f"net{abs(hash((first, second)))}.py"
    file.write_text(TEXT.format(first=first, second=second), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    batches = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(4)]
    return vs.check(module.Net(), batches, select=["VS106"], **settings)


def test_a_comment_at_the_line_ignores_the_finding_and_the_report_says_so(tmp_path):
    assert len(report(tmp_path).findings) == 2
    one = report(tmp_path, "  # varshift: ignore[VS106]")
    (finding,) = one.findings
    assert finding.evidence["rate"] == 0.4
    assert any("1 finding is ignored" in limit and "VS106 at" in limit for limit in one.limits)


@pytest.mark.parametrize(
    "comment",
    [
        "  # varshift: ignore[VS106]",
        "  # varshift: ignore[VS401, VS106]",
        "  # varshift: ignore[vs1]",
        "  # Monte-Carlo dropout  # varshift: ignore",
        "  #varshift:ignore [VS106]",
    ],
)
def test_it_may_name_several_codes_or_none_and_be_at_any_line_of_the_statement(tmp_path, comment):
    assert [one.evidence["rate"] for one in report(tmp_path, second=comment).findings] == [0.5]


@pytest.mark.parametrize(
    "comment", ["  # varshift: ignore[VS401]", "  # ignore[VS106]", "  # varshift: ignore[]"]
)
def test_other_comments_ignore_nothing(tmp_path, comment):
    found = report(tmp_path, comment)
    assert len(found.findings) == 2
    assert not any("ignored" in limit for limit in found.limits)


def test_a_comment_counts_for_its_own_statement_and_a_string_is_no_comment(tmp_path):
    file = tmp_path / "lines.py"
    file.write_text('a = 1  # varshift: ignore[VS106]\nb = 2\nc = """\n# varshift: ignore\n"""\nd = 3\n')
    ignored = [ignores(Source(str(file), line), "VS106") for line in range(1, 7)]
    assert ignored == [True, False, False, False, False, False]


@pytest.mark.parametrize("content", [b"\xff\xfe broken", b"def (:\n", b"x = '''", b""])
def test_files_that_cannot_be_read_ignore_nothing(tmp_path, content):
    file = tmp_path / "odd.py"
    file.write_bytes(content)
    assert not ignores(Source(str(file), 1), "VS106")
    assert not ignores(Source(str(tmp_path / "missing.py"), 1), "VS106")
    assert not ignores(Source("<stdin>", 1), "VS106")


def test_a_changed_file_is_read_again(tmp_path):
    file = tmp_path / "changing.py"
    file.write_text("a = 1\n")
    source = Source(str(file), 1)
    assert not ignores(source, "VS106")
    file.write_text("a = 1  # varshift: ignore[VS106]\n")
    assert ignores(source, "VS106")


def test_a_finding_stays_where_one_of_its_sites_is_not_ignored(build, tmp_path):
    file = tmp_path / "two.py"
    file.write_text("a = 1  # varshift: ignore\nb = 2\n")
    (finding,) = build.findings("VS106", build.evidence(eval=build.flow([build.noise("a")], mode="eval")))
    from dataclasses import replace

    sites = [replace(finding.sites[0], source=Source(str(file), line)) for line in (1, 2)]
    for chosen, kept in ((sites[:1], 0), (sites[1:], 1), (sites, 1), ([], 1)):
        left, sentence = without_ignored([replace(finding, sites=tuple(chosen))])
        assert len(left) == kept
        assert bool(sentence) == (kept == 0)


def test_names_of_what_is_meant_silence_the_rule(tmp_path):
    assert [one.evidence["rate"] for one in report(tmp_path, intended=[":dropout"]).findings] == [0.4]
    with pytest.raises(vs.VarshiftError, match="intended='decoder' must be a list"):
        report(tmp_path, intended="decoder")
