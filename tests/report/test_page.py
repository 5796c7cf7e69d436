import builtins
import io
import os
import re
import sys
from dataclasses import replace
from html import unescape

import pytest
from rich.console import Console

from varshift.report import _html, _text
from varshift.report._evidence import evidence_words
from varshift.report._findings import cost_words
from varshift.report._layers import ratio_bar
from varshift.report._layout import page
from varshift.report._page import text_of
from varshift.report._terminal import print_report
from varshift.report._waterfall import harms, step_bar
from varshift.report._words import counted, figure, large, place, ratio, shortened, signed, uncertain


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("full", [False, True])
def test_no_line_is_wider_than_the_page(sick, width, full):
    for content in page(sick, width=width, full=full):
        text = text_of(content)
        # A command is never broken, for it is there to be copied.
        assert len(text) <= width or text.strip().startswith("varshift recalibrate"), text


def test_names_of_any_length_leave_the_table_in_its_columns(make):
    names = {f"features.denseblock{i}.denselayer{i}.{'inner.' * i}norm": 0.5 + i / 10 for i in range(12)}
    report = make.report(names, noises=[make.noise("x." * 60, reaches=list(names))])
    for width in (60, 80, 140):
        text = _text.render(report, width=width, full=True)
        assert max(map(len, text.splitlines())) <= width
        bars = [line.index("│") for line in text.splitlines() if "norm" in line and "│" in line]
        assert len(bars) == 12
        assert len(set(bars)) == 1


def test_the_summary_gives_verdict_cause_counts_and_basis(sick):
    text = " ".join(_text.render(sick, width=100).split())
    first = "Evaluation is worse than training: the loss goes from 0.213 to 0.595 (+0.381 ± 0.018)."
    second = 'The step "variance-shift" (statistics learned with the noise on) raises the'
    counts = "10 errors and 1 warning."
    assert text.index(first) < text.index(second) < text.index(counts)
    assert "raises the loss by 0.382. No finding explains it" in text
    assert "The network is good in train() and bad in eval()." in text
    assert "1.2 M parameters · 31 norms · 1 noise site · 1024 samples in 16 batches" in text


def test_findings_are_grouped_cut_and_led_by_the_costliest(make):
    names = {f"n{i}": 1 - i / 40 for i in range(15)}
    report = make.report(names, [make.finding(where=name, cost=1 - names[name]) for name in names])
    text = _text.render(report, width=100)
    assert text.index("    n14 BatchNorm2d") < text.index("    n13 ") < text.index("    n12 ")
    assert "    n11 BatchNorm2d" not in text
    assert "and 12 more: n11, n10, n9, n8, n7, n6 and 6 others" in text
    assert text.count("recalibrate the running statistics with the noise off [safe]") == 1
    assert "[unsafe]" in text
    full = _text.render(report, width=100, full=True)
    assert "more:" not in full
    assert full.count(" BatchNorm2d  /nets/residual.py") == 15
    assert "variance 0.520, the same recalibrated without noise 1.01" in " ".join(full.split())


def test_the_sites_of_a_finding_come_worst_first_and_are_cut(make):
    sites = tuple(make.finding(where=f"n{i}").sites[0] for i in range(12))
    report = make.report({"a": 0.5}, [make.finding(sites=sites)])
    text = _text.render(report, width=100)
    assert text.index("    n0 BatchNorm2d") < text.index("    n1 ") < text.index("    n2 ")
    assert "error VS207 variance-shift  12 sites, measured" in text
    assert "and 9 more: n3, n4, n5, n6, n7, n8 and 3 others" in text
    full = _text.render(report, width=100, full=True)
    assert full.count(" BatchNorm2d  /nets/residual.py") == 12


@pytest.mark.parametrize("width", [60, 100])
def test_a_finding_says_what_it_costs_and_what_its_cure_gives(make, width):
    gap = make.gap((0.5, 0.48, 0.48, 0.49, 0.61, 0.61))
    measured = {"metric": "loss", "before": 0.61, "after": 0.49, "stderr": 0.01, "batches": 16}
    cure = replace(make.finding().cures[0], measured=measured)
    report = make.report({"a": 0.5}, [make.finding(cures=(cure,), cost=0.12, step="variance-shift")], gap=gap)
    lines = _text.render(report, width=width).splitlines()
    text = " ".join(" ".join(lines).split())
    assert "costs 0.120 of 0.610 (20 %)" in text
    assert "measured: the loss goes from 0.610 to 0.490 ± 0.010" in text
    assert "VS207 variance-shift explains it" in text


@pytest.mark.parametrize(
    ("cost", "metric", "words"),
    [
        (0.001, "loss", "costs next to nothing of 0.610"),
        (0.7, "loss", "costs 0.700, all of the loss of 0.610"),
        (0.12, "relative_l2", "moves the outputs by 12.0 % (relative L2)"),
        (-0.1, "loss", ""),
        (None, "loss", ""),
    ],
)
def test_costs_in_words(make, cost, metric, words):
    gap = make.gap((0.5, 0.48, 0.48, 0.49, 0.61, 0.61), metric=metric)
    assert cost_words(make.finding(cost=cost, step="variance-shift"), gap) == words
    assert cost_words(make.finding(cost=cost, step="noise"), gap) == ""  # this step is a gain


def test_evidence_is_in_words():
    evidence = {
        "rate": 0.25,
        "loss_step": 0.5,
        "loss_step_stderr": 0.01,
        "never_moved": True,
        "drop_last": False,
        "norm": "a.b",
        "sizes": [3, 4],
        "unknown": None,
    }
    assert evidence_words(evidence) == (
        "rate 0.250, change of the loss 0.500 ± 0.010, never moved, not drop last, norm a.b, sizes (3, 4)"
    )


def test_a_site_that_is_milder_than_its_group_says_so(make):
    findings = [make.finding(where="a"), make.finding(where="b", severity="advice")]
    text = _text.render(make.report({"a": 0.5, "b": 0.9}, findings), width=100)
    assert "b BatchNorm2d (advice)" in text


def test_a_code_of_no_known_rule_and_the_root_module_are_shown(make):
    text = _text.render(make.report({"": 0.5}, [make.finding("ZZ901", where="", source=None)]), width=100)
    assert "error ZZ901  1 site" in text
    assert "(the model itself) BatchNorm2d" in text


def test_a_long_table_is_cut_to_the_worst_in_order_of_execution(sick):
    text = _text.render(sick, width=100)
    rows = re.findall(r"^  (body\.\d+\.norm) .*│", text, flags=re.MULTILINE)
    assert rows == [f"body.{i}.norm" for i in range(20)]
    assert "the 20 worst of 30" in text
    assert "Not reached by the data: head.norm." in text
    full = _text.render(sick, width=100, full=True)
    assert len(re.findall(r"^  body\.\d+\.norm .*│", full, flags=re.MULTILINE)) == 30


def test_a_shift_that_the_control_has_too_is_no_cause_for_colour(make):
    from varshift._sites import SiteId
    from varshift.report import LayerRow, MeasuredFigures
    from varshift.report._levels import excess, style_of

    def row(value, control):
        figures = MeasuredFigures(ratio=value, control_ratio=control)
        return LayerRow(SiteId("a", "batch_norm"), "", None, 1, True, measured=figures)

    assert style_of(excess(row(1.2, 1.19))) == "good"
    assert style_of(excess(row(1.2, None))) == "warning"
    assert style_of(excess(row(0.6, 1.0))) == "error"
    assert style_of(excess(row(1.0, 1.6))) == "error"
    assert style_of(None) == "quiet"


def rows_of_gap(report, width=100):
    text = _text.render(report, width=width)
    lines = text[text.index("From training to deployment ─") :].splitlines()
    return [line.split() for line in lines[2 : lines.index(next(line for line in lines if "In all" in line))]]


def test_the_waterfall_goes_from_train_to_eval(sick):
    rows = rows_of_gap(sick)
    steps = ["train", "noise", "function", "small-batch", "variance-shift", "statistics", "eval"]
    assert [row[0] for row in rows] == steps
    assert rows[4][1:3] == ["0.5846", "+0.3821"]
    assert rows[6][1] == "0.5948"


def test_the_waterfall_ends_where_the_network_is_deployed(make):
    from varshift.probe import GapStep

    gap = make.gap((0.5, 0.5, 0.5, 0.5, 0.5, 0.5))
    moved = GapStep("transform", 0.4, 0.01)
    gap = replace(
        gap,
        states={**gap.states, "deployed": 0.9},
        steps=(*gap.steps, moved),
        batches={**gap.batches, "deployed": (0.89, 0.91) * 2},
        deployed_sizes=(64,) * 4,
    )
    report = make.report({"a": 1.0}, gap=gap)
    assert [row[0] for row in rows_of_gap(report)][-2:] == ["transform", "deployed"]
    assert harms(gap)["transform"] == "error"
    assert 'The step "transform" (the data of deployment) raises the loss by 0.400.' in str(report)


def test_colour_is_for_harm_beyond_its_error(make):
    gap = make.gap((0.5, 0.3, 0.3, 0.31, 0.33, 0.43), (0.01, 0.0, 0.02, 0.001, 0.001))
    assert harms(gap) == {
        "noise": "plain",
        "function": "quiet",
        "small-batch": "quiet",
        "variance-shift": "warning",
        "statistics": "error",
    }


def test_statistics_that_undo_the_shift_are_no_fault(make):
    gap = make.gap((0.5, 0.3, 0.3, 0.3, 0.39, 0.301))
    assert (harms(gap)["variance-shift"], harms(gap)["statistics"]) == ("quiet", "quiet")
    text = " ".join(_text.render(make.report({"a": 1.0}, gap=gap), width=100).split())
    assert "Evaluation is better than training: the loss goes from 0.500 to 0.301 (-0.199 ± 0.018)." in text
    assert 'The step "noise" (noise switched off) lowers the loss by 0.200, as is normal' in text
    assert "nothing is left to recalibrate" in text


def test_a_gap_without_targets_is_a_distance(make):
    gap = make.gap((0.3, 0.1, 0.1, 0.0, 0.12, 0.13), metric="relative_l2", kl={"train": 0.2, "eval": 0.1})
    text = " ".join(_text.render(make.report({"a": 0.8}, gap=gap), width=140).split())
    assert "Without targets no loss is known" in text
    assert "lie 13.0 % (relative L2) from those with statistics that fit" in text
    assert "moves the outputs by 12.0 %. No finding explains it" in text
    assert "KL" in text
    assert harms(gap)["variance-shift"] == "warning"


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_gap_that_is_not_finite_still_prints(make, bad):
    from varshift.probe import Gap, GapStep

    states = {"train": 0.5, "clean": bad, "recalibrated": 0.3, "recalibrated_noisy": 0.4, "eval": bad}
    steps = tuple(
        GapStep(cause, bad, None) for cause in ("noise", "small-batch", "variance-shift", "statistics")
    )
    report = make.report({"a": bad}, gap=Gap("loss", states, steps))
    sentence = "Evaluation is worse than training: the loss goes from 0.500 to no finite number."
    assert sentence in _text.render(report, width=100)
    assert repr(report)


def test_without_data_the_noise_sites_are_shown_and_what_data_would_add(make):
    report = make.report(
        norms=["a", "b"], noises=[make.noise(reaches=("a", "b")), make.noise("lone", reaches=())]
    )
    text = _text.render(report, width=100)
    assert re.search(r"body\.0\.drop +dropout +0\.50 +2 norms a, directly", text)
    assert re.search(r"lone +dropout +0\.50 +0 norms none", text)
    assert "no data" in text
    assert "vs.check(model, loader), or --data" in text
    assert "── Norms" not in text


def test_a_healthy_network_is_told_so(make):
    text = _text.render(make.report({"a": 1.004}, gap=make.gap((0.5,) * 6)), width=100)
    assert "● Nothing found: the network computes at deployment what it learned." in text
    assert "Evaluation is as good as training: the loss goes from 0.500 to 0.500" in text
    assert "What next" not in text


def test_next_steps_explain_and_recalibrate(sick):
    text = str(sick)
    for command in ("varshift explain VS207", "varshift explain VS101", "vs.recalibrate(model, loader)"):
        assert command in text


def test_limits_are_listed(sick):
    assert "· Batches were of one size" in str(sick)


def test_the_prompt_shows_a_few_lines(sick):
    lines = repr(sick).splitlines()
    assert lines[0].startswith(
        "<Report nets.residual:build: Evaluation is worse than training: the loss goes"
    )
    assert "  10 errors and 1 warning." in lines
    assert "  error VS207 body.0.norm (/nets/residual.py:51)" in lines
    assert "  and 3 more findings" in lines
    assert lines[-1].endswith(">")
    assert len(lines) < 20


def test_rich_prints_the_same_text_in_colour(sick, monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM"):
        monkeypatch.delenv(name, raising=False)
    outputs = {}
    for colours in (True, False):
        console = Console(
            file=io.StringIO(),
            width=100,
            force_terminal=colours,
            no_color=not colours,
            color_system="truecolor" if colours else None,
        )
        console.print(sick)
        outputs[colours] = console.file.getvalue()
    assert "\x1b[" in outputs[True]
    assert "\x1b[" not in outputs[False]
    stripped = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", outputs[True]).splitlines()]
    assert stripped == [line.rstrip() for line in outputs[False].splitlines()]
    assert stripped == _text.render(sick, width=100).splitlines()


def test_a_console_that_knows_ascii_only_gets_ascii(sick):
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=100)
    print_report(sick, console)
    console.file.flush()
    text = raw.getvalue().decode("ascii")
    assert "#|" in text
    assert "-- Norms ---" in text


def test_the_core_alone_can_print_a_report(sick, monkeypatch):
    expected = str(sick)
    original = builtins.__import__

    def no_rich(name, *args, **kwargs):
        if name.partition(".")[0] in ("rich", "typer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", no_rich)
    assert str(sick) == expected
    assert "<pre" in sick._repr_html_()
    with pytest.raises(Exception, match=r"varshift\[cli\]"):
        sick.save("picture.svg")


def test_the_notebook_gets_self_contained_html_with_the_same_text(sick):
    html = sick._repr_html_()
    assert not re.search(r"https?:|<script|<link|<style|src=", html)
    text = unescape(re.sub(r"<[^>]+>", "", html))
    assert [line.rstrip() for line in text.splitlines()] == _text.render(sick, width=_html.WIDTH).splitlines()


def test_names_cannot_inject_html(make):
    html = make.report({"<b>&": 0.5}, [make.finding(where="<b>&")])._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;&amp;" in html


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_every_colour_can_be_read_in_light_and_dark(background):
    for colour in _html.COLOURS.values():
        dark, light = sorted((luminance(colour), luminance(background)))
        assert (light + 0.05) / (dark + 0.05) >= 3.9


def test_the_picture_refers_to_nothing_outside(sick, tmp_path):
    svg = sick.save(tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "@font-face" not in svg
    assert "url(http" not in svg
    assert svg == sick.save(tmp_path / "b.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "bar"),
    [
        (1.0, "   │   "),
        (2.0, "   │███"),
        (0.5, "███│   "),
        (8.0, "   │██▶"),
        (0.1, "◀██│   "),
        (2**0.5, "   │█▌ "),
        (2**-0.5, " ▐█│   "),
        (None, "   │   "),
        (float("nan"), "   │   "),
        (0.0, "   │   "),
    ],
)
def test_bars_grow_from_one_on_a_logarithmic_scale(value, bar):
    assert ratio_bar(value, 2, 7) == bar


@pytest.mark.parametrize(
    ("before", "after", "bar"),
    [
        (None, 0.0, "◆"),
        (None, 1.0, "         ◆"),
        (0.0, 1.0, "██████████"),
        (1.0, 0.5, "    ██████"),
        (0.5, 0.5, "    │"),
        (0.5, None, ""),
    ],
)
def test_steps_are_drawn_between_their_values(before, after, bar):
    assert step_bar(before, after, 0.0, 1.0, 10) == bar


def test_figures_are_short_and_honest():
    assert [figure(x) for x in (None, 0.0, 1.0, 0.0123, 123456.0, 1e-7, float("inf"), -float("inf"))] == [
        "-", "0", "1.00", "0.0123", "1.2e5", "1.0e-7", "inf", "-inf",
    ]  # fmt: skip
    assert [ratio(x) for x in (1.0004, 25.3, 0.04, None)] == ["1.000", "25.3", "0.0400", "-"]
    assert [signed(x) for x in (0.5, -0.5, 0.0, None)] == ["+0.500", "-0.500", "0", "-"]
    assert uncertain(0.38214, 0.0042) == "+0.382 ± 0.004"
    assert uncertain(0.38214, 0.00142) == "+0.3821 ± 0.0014"
    assert uncertain(12.3, 4.0) == "+12 ± 4"
    assert uncertain(0.1, None) == uncertain(0.1, 0.0) == "+0.100"
    assert [large(x) for x in (0, 9999, 12_345, 1_234_567, 86_000_000_000)] == [
        "0",
        "9999",
        "12.3 k",
        "1.2 M",
        "86.0 G",
    ]
    assert (counted(1, "batch", "batches"), counted(2, "batch", "batches")) == ("1 batch", "2 batches")


def test_names_are_cut_in_their_middle():
    assert shortened("short", 10) == "short"
    assert shortened("features.denseblock3.norm1", 12) == "fea…k3.norm1"
    assert len(shortened("x" * 50, 21)) == 21


def test_places_are_relative_to_here_or_to_their_package(monkeypatch, tmp_path):
    import rich

    monkeypatch.chdir(tmp_path)
    assert place(os.path.join(tmp_path, "nets", "a.py:3")) == os.path.join("nets", "a.py:3")
    assert place("/elsewhere/a.py:3") == "/elsewhere/a.py:3"
    assert place(f"{rich.__file__}:7") == os.path.join("rich", "__init__.py:7")
    assert place(None) == ""
