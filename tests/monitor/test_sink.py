"""Trackers by what they have; no tracker needs to be installed but TensorBoard."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import varshift as vs
from varshift.monitor import as_sink


class Norms(nn.Module):
    """Many norms, one with a name that not every tracker takes."""

    def __init__(self, count=7):
        super().__init__()
        self.parts = nn.ModuleDict({f"b{n}·[x]": nn.BatchNorm1d(4) for n in range(count)})

    def forward(self, x):
        for norm in self.parts.values():
            x = norm(x)
        return x


def train(net, sink, steps=12, **options):
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
    with vs.watch(net, sink=sink, **options) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            watch.step()
    return watch


class Recorded:
    def __init__(self):
        self.calls = []

    def note(self, *args, **kwargs):
        self.calls.append((args, kwargs))


def with_method(name, **others):
    recorded = Recorded()
    return SimpleNamespace(**{name: recorded.note}, **others), recorded.calls


FIGURES = {"varshift/a/ratio": 1.5, "varshift/findings": 0.0}


def test_a_tracker_of_metrics_gets_all_at_once():
    target, calls = with_method("log_metrics")
    as_sink(target)(FIGURES, 7)
    assert calls == [((FIGURES,), {"step": 7})]


def test_a_writer_of_scalars_gets_each():
    target, calls = with_method("add_scalar")
    as_sink(target)(FIGURES, 7)
    assert calls == [((name, value, 7), {}) for name, value in FIGURES.items()]


def test_a_run_that_tracks_gets_each_by_name():
    target, calls = with_method("track")
    as_sink(target)(FIGURES, 7)
    assert calls == [((value,), {"name": name, "step": 7}) for name, value in FIGURES.items()]


def test_a_run_that_logs_keeps_its_own_count_of_steps():
    """Weights & Biases refuses steps that go back, and the user counts his own."""
    axes = Recorded()
    target, calls = with_method("log", define_metric=axes.note)
    sink = as_sink(target)
    sink(FIGURES, 7)
    sink(FIGURES, 8)
    assert calls == [(({**FIGURES, "varshift/step": step},), {}) for step in (7, 8)]
    assert axes.calls == [
        (("varshift/step",), {}),
        (("varshift/*",), {"step_metric": "varshift/step"}),
    ]


def test_a_function_gets_figures_and_step():
    recorded = Recorded()
    as_sink(recorded.note)(FIGURES, 7)
    assert recorded.calls == [((FIGURES, 7), {})]


def test_a_logger_of_python_gets_a_line(caplog):
    with caplog.at_level(logging.INFO):
        as_sink(logging.getLogger("train"))(FIGURES, 7)
    assert caplog.messages == ["step 7: varshift/a/ratio 1.5, varshift/findings 0"]


@pytest.mark.parametrize(
    ("methods", "used"),
    [
        (["log", "track", "add_scalar", "log_metrics"], "log_metrics"),
        (["log", "track", "add_scalar"], "add_scalar"),
        (["log", "track"], "track"),
    ],
)
def test_what_says_most_is_used(methods, used):
    recorded = {name: Recorded() for name in methods}
    as_sink(SimpleNamespace(**{name: one.note for name, one in recorded.items()}))(FIGURES, 1)
    assert {name for name, one in recorded.items() if one.calls} == {used}


def test_anything_else_is_refused():
    with pytest.raises(vs.VarshiftError, match="sink is a int: pass a function"):
        vs.watch(Norms(), sink=3)


def test_five_norms_at_most_by_names_that_every_tracker_takes():
    rows = []
    train(Norms(), lambda figures, step: rows.append((step, figures)), steps=40, ignore=["VS2"])
    names = {name for name in rows[-1][1] if name.endswith("/ratio")}
    assert len(names) == 5
    # MLflow's rule, the narrowest.
    assert all(re.fullmatch(r"[/\w.\- ]+", name, re.ASCII) for _, figures in rows for name in figures)
    assert all(isinstance(value, float) for _, figures in rows for value in figures.values())
    assert [step for step, _ in rows] == sorted(step for step, _ in rows)


def test_norms_whose_names_differ_in_what_is_replaced_are_told_apart():
    net = nn.ModuleDict({"a[0]": nn.BatchNorm1d(4), "a(0)": nn.BatchNorm1d(4)})
    net.forward = lambda x: net["a(0)"](net["a[0]"](x))
    rows = []
    train(net, lambda figures, step: rows.append(figures), steps=40, ignore=["VS2"])
    assert sum(name.endswith("/ratio") for name in rows[-1]) == 2


def test_a_finding_is_an_alert_where_there_are_any():
    alerts = Recorded()
    target, _ = with_method("log", alert=alerts.note)
    net = nn.Sequential(Norms(1).requires_grad_(False), nn.Linear(4, 2))
    with pytest.warns(vs.VarshiftWarning, match="VS402"):
        watch = train(net, target)
    ((args, alert),) = alerts.calls
    assert (args, alert["title"]) == ((), "varshift VS402")
    assert alert["text"] == watch.findings[0].message


def test_a_tracker_that_fails_ends_itself_and_not_the_watch():
    tries = []

    def broken(figures, step):
        tries.append(step)
        raise ConnectionError("no route")

    watch = train(Norms(1), broken)
    assert len(tries) == 1
    assert watch.report.history.steps == 12
    (limit,) = watch.report.limits
    assert limit == f"Nothing is logged since step {tries[0]}: ConnectionError: no route"
    with pytest.raises(ConnectionError):
        train(Norms(1), broken, strict=True)


def test_the_real_writer_of_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        train(Norms(2), writer, steps=40, ignore=["VS2"])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert sum(tag.endswith("/ratio") for tag in tags) == 2
    assert events.Scalars("varshift/findings")[-1].step == 40
