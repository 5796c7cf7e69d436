"""Real trackers take the figures of a watch, by the names that it gives them."""

import pytest
import torch
from torch import nn

import varshift as vs
from varshift.monitor._sink import as_alert

pytestmark = [pytest.mark.hosts, pytest.mark.filterwarnings("default")]


def train(sink, norms=("layers.0", "b[0]·x"), steps=40):
    net = nn.Sequential()
    for name in norms:
        net.add_module(name.replace(".", "-"), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with vs.watch(net, sink=sink, ignore=["VS2"], strict=True) as watch:
        for _ in range(steps):
            optimizer.zero_grad()
            net(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            watch.step()


def test_mlflow_takes_them(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow: pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # others need a database's packages
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    try:
        with mlflow.start_run() as run:
            train(mlflow)
        client = mlflow.MlflowClient()
        names = client.get_run(run.info.run_id).data.metrics
        last = client.get_metric_history(run.info.run_id, "varshift/findings")[-1]
    finally:
        mlflow.set_tracking_uri(before)
    ratios = {name for name in names if name.endswith("/ratio")}
    assert ratios == {"varshift/layers-0/ratio", "varshift/b_0__x/ratio"}
    assert last.step == 40


def test_trackio_takes_them():
    trackio = pytest.importorskip("trackio", reason="needs trackio: pip install trackio")
    logged, alerts = [], []

    class Run:
        def log(self, metrics, step=None):
            logged.append((metrics, step))

        def alert(self, title, text=None, level=None, webhook_url=None, **options):
            alerts.append((title, text))

    token = trackio.context_vars.current_run.set(Run())
    try:
        train(trackio)
        as_alert(trackio)("varshift VS402", "the text")
    finally:
        trackio.context_vars.current_run.reset(token)
    assert [metrics["varshift/step"] for metrics, _ in logged][-1] == 40
    assert all(step is None for _, step in logged)
    assert alerts == [("varshift VS402", "the text")]


def test_trackio_without_init_is_left_alone_and_the_report_says_so():
    trackio = pytest.importorskip("trackio", reason="needs trackio: pip install trackio")
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with vs.watch(net, sink=trackio) as watch:
        for _ in range(6):
            optimizer.zero_grad()
            net(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
            watch.step()
    assert watch.report.history.steps == 6
    (limit,) = watch.report.limits
    assert "Call trackio.init() before trackio.log()" in limit
