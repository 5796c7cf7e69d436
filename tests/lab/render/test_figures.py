"""Figures show every curve, its spread and the paper's points, whatever is missing."""

import itertools
import math

import pytest
from toy_trials import Walk, toy_recipe, walks

from varshift import VarshiftError
from varshift.store import Result
from varshift.trials import Workbench
from varshift_lab.render import draw, write_figure
from varshift_lab.studies import Curve, Figure, Panel, Series

pytest.importorskip("matplotlib")


def measured(trials):
    return {trial: Result(trial.run(Workbench()), {}, 1.0) for trial in trials}


def figure_of(*panels, **options):
    return Figure("figure", "A title", panels, **options)


def ends(kind="lines", **options):
    series = tuple(Series(walks(3, drift=drift), "place") for drift in (0.0, 1.0, 2.0))
    return Panel("ends", (Curve("walks", series, **options),), "drift", "place", kind=kind)


def axes_of(drawing):
    return [axes for axes in drawing.axes if axes.get_title(loc="left")]


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_files_are_the_same_for_the_same_figures(tmp_path):
    figure = toy_recipe().figures["figure1"]("smoke")
    results = measured(toy_recipe().trials("smoke"))
    first = write_figure(figure, results, tmp_path / "first")
    second = write_figure(figure, results, tmp_path / "second")
    assert [path.name for path in first] == ["figure1.png", "figure1.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")


def test_a_line_is_the_mean_and_its_band_the_deviation():
    panel = ends(x=(0.0, 1.0, 2.0))
    results = measured(trial for curve in panel.curves for series in curve.series for trial in series.trials)
    (axes,) = axes_of(draw(figure_of(panel), results))
    line = lines_of(axes)["walks"]
    values = [[results[trial].measurements["place"] for trial in walks(3, drift=d)] for d in (0.0, 1.0, 2.0)]
    means = [sum(three) / 3 for three in values]
    assert list(line.get_xdata()) == [0.0, 1.0, 2.0]
    assert list(line.get_ydata()) == pytest.approx(means)
    (band,) = axes.collections
    edges = band.get_paths()[0].vertices[:, 1]
    deviation = math.sqrt(sum((value - means[2]) ** 2 for value in values[2]) / 2)
    assert max(edges) == pytest.approx(means[2] + deviation)


def test_a_measurement_that_is_a_list_is_a_curve_by_itself():
    panel = Panel("way", (Curve("walk", (Series(walks(3), "path"),)),), "step", "place")
    (axes,) = axes_of(draw(figure_of(panel), measured(walks(3))))
    assert list(lines_of(axes)["walk"].get_xdata()) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [int(label) for label in axes.get_xticks()] == [*axes.get_xticks()]


@pytest.mark.parametrize("kind", ["lines", "points", "bars"])
def test_the_papers_points_are_hollow_and_named_once(kind):
    panel = ends(kind, x=(0.0, 1.0, 2.0), paper=(1.0, None, 9.0))
    results = measured(trial for series in panel.curves[0].series for trial in series.trials)
    (axes,) = axes_of(draw(figure_of(panel), results))
    paper = lines_of(axes)["paper"]
    assert list(paper.get_ydata()) == [1.0, 9.0]
    assert paper.get_markerfacecolor() in ("none", "white")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["walks", "paper"]


def test_places_may_be_names():
    panel = ends("points", x=("none", "before", "behind"))
    results = measured(trial for series in panel.curves[0].series for trial in series.trials)
    (axes,) = axes_of(draw(figure_of(panel), results))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "before", "behind"]


def test_many_long_names_are_slanted_and_some_left_out():
    names = tuple(f"a rather long name {number}" for number in range(45))
    series = tuple(Series((Walk(number),), "place") for number in range(45))
    panel = Panel("names", (Curve("walk", series, names),), "", "place", kind="bars")
    (axes,) = axes_of(draw(figure_of(panel), measured(Walk(number) for number in range(45))))
    labels = axes.get_xticklabels()
    assert len(labels) == 23
    assert {label.get_rotation() for label in labels} == {40.0}


def test_bars_of_several_curves_stand_side_by_side():
    series = [tuple(Series(walks(3, drift=d + up), "place") for d in (0.0, 1.0)) for up in (0.0, 3.0)]
    curves = tuple(Curve(name, one, ("x", "y")) for name, one in zip(("low", "high"), series, strict=True))
    panel = Panel("bars", curves, "", "place", kind="bars")
    needed = {trial for pair in series for one in pair for trial in one.trials}
    (axes,) = axes_of(draw(figure_of(panel), measured(needed)))
    spans = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert len(spans) == 4
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


def test_what_is_missing_is_said():
    panel = ends(x=(0.0, 1.0, 2.0))
    (axes,) = axes_of(draw(figure_of(panel), {}))
    assert "nothing measured yet" in [text.get_text() for text in axes.texts]
    some = measured(walks(2)) | measured(walks(3, drift=1.0)) | measured(walks(3, drift=2.0))
    (axes,) = axes_of(draw(figure_of(panel), some))
    assert "walks (2 of 3 seeds)" in lines_of(axes)


def test_a_legend_that_all_panels_share_stands_above_them():
    def panel(title):
        curves = tuple(
            Curve(name, (Series(walks(3, drift=d), "path"),)) for name, d in (("a", 0.0), ("b", 1.0))
        )
        return Panel(title, curves, "step", "place")

    results = measured([*walks(3), *walks(3, drift=1.0)])
    drawing = draw(figure_of(panel("one"), panel("two")), results)
    assert all(axes.get_legend() is None for axes in axes_of(drawing))
    (above,) = [axes.get_legend() for axes in drawing.axes if axes.get_legend() is not None]
    assert [text.get_text() for text in above.get_texts()] == ["a", "b"]


def boxes(drawing):
    """Where all that is written or explained stands, in pixels."""
    renderer = drawing.canvas.get_renderer()
    titles = [drawing._suptitle] if drawing._suptitle is not None else []
    parts = [*titles, *([drawing._supxlabel] if drawing._supxlabel is not None else [])]
    for axes in drawing.axes:
        parts += [axes.get_legend()] if axes.get_legend() is not None else []
        parts += [axes._left_title, axes.xaxis.label, axes.yaxis.label]
    return [box for part in parts if (box := part.get_window_extent(renderer)).width > 1]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_titles_labels_and_legends_do_not_overlap(shared, count):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    def panel(number):
        names = ("the first curve of them", "the second curve") if shared or number else ("another",)
        drifts = (0.0, 1.0)[: len(names)]
        curves = tuple(
            Curve(name, (Series(walks(3, drift=d), "path"),)) for name, d in zip(names, drifts, strict=True)
        )
        return Panel(f"panel {number}", curves, "the step of the walk", "how far it has come by then")

    results = measured([*walks(3), *walks(3, drift=1.0)])
    figure = figure_of(*(panel(number) for number in range(count)), note="What has to be known. " * 12)
    drawing = draw(figure, results)
    FigureCanvasAgg(drawing)
    drawing.draw_without_rendering()
    found = boxes(drawing)
    width, height = drawing.get_size_inches() * drawing.dpi
    assert len(found) >= 3 * count
    for place, box in enumerate(found):
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= width + 1
        assert box.y1 <= height + 1
        for other in found[place + 1 :]:
            apart = (
                box.x1 <= other.x0 + 1
                or other.x1 <= box.x0 + 1
                or box.y1 <= other.y0 + 1
                or other.y1 <= box.y0 + 1
            )
            assert apart, (box, other)


def test_no_two_curves_look_alike():
    names = [f"curve {number}" for number in range(24)]
    curves = tuple(Curve(name, (Series(walks(1), "path"),)) for name in names)
    panel = Panel("many", curves, "step", "place")
    (axes,) = axes_of(draw(figure_of(panel), measured(walks(1))))
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines_of(axes).values()}
    assert len(looks) == 24


def test_a_picture_stands_beside_its_panel():
    pixels = [[0.0, 1.0], [0.5, 0.25]]
    trial = Walk(0)
    results = {trial: Result({"path": [1.0, 2.0], "pixels": pixels}, {}, 1.0)}
    curve = Curve("scores", (Series((trial,), "path"),))
    panel = Panel("image", (curve,), "class", "score", kind="bars", picture=Series((trial,), "pixels"))
    drawing = draw(figure_of(panel), results)
    (image,) = [image for axes in drawing.axes for image in axes.get_images()]
    assert image.get_array().tolist() == pixels
    assert draw(figure_of(panel), {}).axes


def test_bands_stay_on_a_logarithmic_axis():
    panel = Panel("log", (Curve("walk", (Series(walks(3), "path"),)),), "step", "place", log_y=True)
    results = {
        trial: Result({"path": [value, value]}, {}, 1.0)
        for trial, value in zip(walks(3), (0.001, 0.001, 5.0), strict=True)
    }
    (axes,) = axes_of(draw(figure_of(panel), results))
    assert axes.get_yscale() == "log"
    assert axes.collections[0].get_paths()[0].vertices[:, 1].min() > 0


def test_as_many_places_as_points_are_wanted():
    panel = ends(x=(0.0, 1.0))
    results = measured(trial for series in panel.curves[0].series for trial in series.trials)
    with pytest.raises(VarshiftError, match="3 points and 2 places"):
        draw(figure_of(panel), results)
