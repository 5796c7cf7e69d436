"""VS303 and VS304: on hand-made evidence, and on networks that learned their batches."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import varshift as vs
from varshift.evidence import BatchOrder, Purity, Redrawn

PURE, MIXED = Purity("label", 1.0, 0.2, 0.01, 10), Purity("label", 0.22, 0.2, 0.01, 10)
GROUP = Purity("recording", 1.0, 0.1, 0.01, 20)


def redrawn(before=0.5, after=0.8, stderr=0.01, alike=1.0, source="batches"):
    return Redrawn(source, 16, before, after, stderr, alike)


def found(build, code, order, **facts):
    losses = dict.fromkeys(("train", "clean", "clean_eval"), 0.5)
    losses |= dict.fromkeys(("recalibrated", "recalibrated_noisy", "eval"), 0.6)
    gap = build.gap(
        states=losses,
        batches={name: (value,) * 8 for name, value in losses.items()},
        sizes=(8,) * 8,
        accuracy={"eval": 0.9},
    )
    measurement = build.measurement(build.layer(), gap=gap)
    return build.findings(code, build.evidence(build.facts(**facts), measurement=measurement, order=order))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (BatchOrder(listed=True, fixed=1.0, reordered=False, labels=MIXED, redrawn=redrawn()), "error"),
        (BatchOrder(fixed=1.0, reordered=True, labels=MIXED, redrawn=redrawn(after=0.54)), "warning"),
        (BatchOrder(fixed=1.0, reordered=True, labels=MIXED, redrawn=redrawn(after=0.5)), "advice"),
        (BatchOrder(fixed=1.0, reordered=True), "advice"),
        (BatchOrder(listed=True, fixed=1.0, reordered=False), None),
        (BatchOrder(listed=True, fixed=1.0, reordered=False, redrawn=redrawn(after=0.5)), None),
        (BatchOrder(listed=True, fixed=1.0, reordered=False, redrawn=redrawn(stderr=0.2)), None),
        (BatchOrder(shuffles=False, fixed=1.0, reordered=False), None),
        (BatchOrder(fixed=0.0, reordered=True, redrawn=redrawn()), None),
        (BatchOrder(redrawn=redrawn()), None),
        (BatchOrder(fixed=1.0, labels=PURE, redrawn=redrawn()), None),
        (BatchOrder(fixed=1.0, labels=MIXED, redrawn=redrawn(alike=5.0)), None),
    ],
)
def test_batches_that_stay_the_same_count_by_what_they_cost(build, order, expected):
    findings = found(build, "VS303", order)
    assert [one.severity for one in findings] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (BatchOrder(shuffles=False, labels=PURE, redrawn=redrawn(2.2, 2.18)), ("error", "certain")),
        (BatchOrder(listed=True, fixed=1.0, labels=PURE, redrawn=redrawn(2.2, 2.18)), ("warning", "certain")),
        (BatchOrder(listed=True, fixed=1.0, labels=PURE, redrawn=redrawn()), ("error", "measured")),
        (BatchOrder(shuffles=False, labels=PURE, redrawn=redrawn(2.2, 0.2)), ("advice", "certain")),
        (BatchOrder(labels=PURE), ("warning", "certain")),
        (BatchOrder(groups=(GROUP,), redrawn=redrawn()), ("error", "measured")),
        (BatchOrder(groups=(GROUP,), redrawn=redrawn(after=0.5)), ("advice", "certain")),
        (BatchOrder(labels=MIXED, redrawn=redrawn()), ("error", "measured")),
        (BatchOrder(listed=True, fixed=1.0, redrawn=redrawn(alike=5.0)), ("error", "measured")),
        (BatchOrder(listed=True, fixed=1.0, redrawn=redrawn()), None),
        (BatchOrder(labels=MIXED, redrawn=redrawn(after=0.51)), None),
        (BatchOrder(labels=MIXED), None),
        (BatchOrder(labels=Purity("label", 0.98, 0.97, 0.01, 2)), None),
        (None, None),
    ],
)
def test_batch_mates_count_by_their_labels_and_by_what_they_cost(build, order, expected):
    findings = found(build, "VS304", order)
    assert [(one.severity, one.confidence) for one in findings] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("share", "chance", "one_kind"),
    [(1.0, 0.57, True), (0.75, 0.2, True), (0.25, 0.2, False), (0.6, 0.3, False), (0.99, 0.95, False)],
)
def test_batches_of_one_kind_are_told_from_chance_and_from_batches_of_a_few_classes(share, chance, one_kind):
    assert Purity("label", share, chance, 0.01, 10).one_kind == one_kind


def test_a_network_that_never_looks_at_the_batch_does_not_mind(build):
    sorted_batches = BatchOrder(shuffles=False, labels=PURE, redrawn=redrawn())
    assert found(build, "VS304", sorted_batches, live=False) == ()
    fixed = BatchOrder(fixed=1.0, reordered=True, redrawn=redrawn())
    assert found(build, "VS303", fixed, live=False) == ()


# -- networks ---------------------------------------------------------------------------------------------


def perceptron(inputs, outputs, width=48):
    layers = [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(
        nn.Flatten(),
        *layers,
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def convnet(outputs, width=12):
    def layer(inputs):
        return nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )

    return nn.Sequential(
        layer(1),
        nn.MaxPool2d(2),
        layer(width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, outputs),
    )


def trained(net, batches, epochs, loss=F.cross_entropy, rate=3e-3):
    optimizer = torch.optim.Adam(net.parameters(), rate)
    net.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
    return net


def pictures(count, classes=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=draw)
    prototypes = torch.randn(classes, 1, 6, 6, generator=torch.Generator().manual_seed(9))
    return prototypes[y] + 1.5 * torch.randn(count, 1, 6, 6, generator=draw), y


def codes(report):
    return {finding.code: finding.severity for finding in report.findings if finding.severity != "advice"}


class Shuffled(Sampler):
    """The same batches in every epoch, in random order."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        yield from random.sample(self.batches, len(self.batches))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: perceptron(36, 4), "list"),
        (lambda: perceptron(36, 4), "sampler"),
        (lambda: perceptron(36, 4), "fresh"),
        (lambda: convnet(4, 24), "list"),
    ],
    ids=["perceptron, a list", "perceptron, a sampler", "perceptron, drawn again", "convnet, a list"],
)
def test_batches_that_were_learned_with_their_statistics(make, kind):
    torch.manual_seed(0)
    random.seed(0)
    x, y = pictures(96)
    y = torch.randint(
        4, (96,), generator=torch.Generator().manual_seed(5)
    )  # nothing to learn but the samples
    data, cut = TensorDataset(x, y), torch.randperm(96).split(8)
    loader = {
        "list": [(x[i], y[i]) for i in cut],
        "sampler": DataLoader(data, batch_sampler=Shuffled([i.tolist() for i in cut])),
        "fresh": DataLoader(data, 8, shuffle=True),
    }[kind]
    net = trained(make(), loader, 40, rate=6e-3)
    report = vs.check(net, loader)
    if kind == "fresh":
        assert not {"VS303", "VS304"} & set(codes(report))
        return
    (finding,) = [one for one in report.findings if one.code == "VS303"]
    assert finding.severity == "error"
    assert finding.cost == pytest.approx(finding.evidence["loss_step"])
    assert not {"VS302", "VS304"} & {one.code for one in report.findings}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: perceptron(36, 1), lambda: convnet(1)], ids=["perceptron", "convnet"]
)
def test_a_critic_that_sees_one_kind_at_a_time(make, mixed):
    torch.manual_seed(0)
    real, _ = pictures(512)
    fake = 0.8 * pictures(512, seed=1)[0] + 0.3
    x, y = torch.cat([real, fake]), torch.cat([torch.ones(512), torch.zeros(512)])
    if mixed:
        batches = DataLoader(TensorDataset(x, y), 32, shuffle=True)
    else:
        turns = [torch.arange(i, i + 32) + kind for i in range(0, 512, 32) for kind in (0, 512)]
        batches = [(x[i], y[i]) for i in turns]

    def loss(out, y):
        return F.binary_cross_entropy_with_logits(out[:, 0], y)

    net = trained(make(), batches, 6, loss)
    report = vs.check(net, batches, loss=loss)
    assert ("VS304" in codes(report)) != mixed
    if not mixed:
        assert report.findings[0].code == "VS304"


class Recording(nn.Module):
    """Tells how far a value is from the middle of its recording, which only the batch knows."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("grouped", [True, False])
def test_batches_of_one_recording_each(grouped):
    torch.manual_seed(0)
    recording = torch.arange(640) // 32
    offset = 3 * torch.randn(20, 3)
    inner = torch.randn(640, 3)
    x, y = inner + offset[recording], inner.sum(1)
    order = torch.arange(640) if grouped else torch.randperm(640)
    batches = [{"x": x[i], "y": y[i], "recording": recording[i]} for i in order.split(32)]

    def forward(model, batch):
        return F.mse_loss(model(batch["x"])[:, 0], batch["y"])

    net = Recording()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(20):
        for batch in batches:
            optimizer.zero_grad()
            forward(net, batch).backward()
            optimizer.step()
    report = vs.check(net, batches, forward=forward)
    assert codes(report).get("VS304") == ("error" if grouped else None)
    if grouped:
        (finding,) = [one for one in report.findings if one.code == "VS304"]
        assert finding.evidence["purity_of"] == "recording"
        assert finding.evidence["batch_mates_alike"] > 2


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    "make", [lambda: perceptron(36, 4), lambda: convnet(4)], ids=["perceptron", "convnet"]
)
def test_a_sorted_data_set_is_an_error_for_the_network_that_was_trained_on_it(make, shuffle):
    torch.manual_seed(0)
    x, y = pictures(512)
    order = y.argsort(stable=True)
    data = TensorDataset(x[order], y[order])
    net = trained(make(), DataLoader(data, 32, shuffle=shuffle), 6)
    report = vs.check(net, DataLoader(data, 32))
    (finding,) = [one for one in report.findings if one.code == "VS304"]
    # A sound network that was handed a sorted test set is told about the loader only.
    assert finding.severity == ("advice" if shuffle else "error")
    assert "VS302" not in codes(report)
    if shuffle:
        assert not finding.cures
        assert not [one for one in report.findings if one.severity == "error"]
