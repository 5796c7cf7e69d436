"""The training loop."""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from varshift.data import ActiveBias, ActiveBiasSampler
from varshift.optim import WeightRescaling
from varshift.trials import TrialError, Workbench
from varshift_lab.data import Augmentation, EpochLoader
from varshift_lab.training import Treatment, evaluate, fit


def test_training_learns_and_tells_of_each_epoch(build, images, settings):
    events = []
    network = build(0.1)
    history = fit(network, images, replace(settings, epochs=8), workbench=Workbench(record=events.append))
    assert history.loss[-1] < 0.7 * history.loss[0]
    assert history.error[-1] < history.error[0]
    assert len(history.loss) == len(history.error) == len(history.seconds) == history.epochs == 8
    assert history.rate == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    assert network.training
    assert [event["event"] for event in events] == ["epoch"] * 8
    assert [event["loss"] for event in events] == history.loss
    assert history.measurements()["seconds"] == sum(history.seconds)


def test_the_loop_is_plain_sgd(build, images, settings):
    """Without noise, the same as the loop that everyone writes, on the same batches."""
    network, twin = build(0.0), build(0.0)
    history = fit(network, images, settings, seed=7)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3)
    loader = EpochLoader(images, 16, seed=7)
    losses = []
    for epoch in range(4):
        for group in optimizer.param_groups:
            group["lr"] = (0.1, 0.1, 0.01, 0.001)[epoch]
        total = 0.0
        for inputs, labels in loader:
            loss = F.cross_entropy(twin(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        losses.append(total / 96)
    assert history.loss == pytest.approx(losses, rel=1e-5)
    for (name, one), two in zip(network.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6, msg=name)


def test_training_is_repeatable_and_leaves_the_random_state_alone(build, images, settings, same):
    networks = []
    for start in range(3):
        torch.manual_seed(start)
        before = torch.random.get_rng_state()
        networks.append(build())
        fit(networks[-1], images, settings, seed=start // 2)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert same(networks[0], networks[1])
    assert not same(networks[0], networks[2])


def test_epochs_have_masks_of_their_own(images, settings):
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.masks = []

        def forward(self, x):
            mask = F.dropout(torch.ones(16, 64), 0.5)
            if torch.is_grad_enabled():
                self.masks.append(mask)
            return self.linear(x.flatten(1) * mask)

    network = Watched()
    fit(network, images, replace(settings, epochs=2))
    masks = network.masks[-12:]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 12


class Waits(TorchDispatchMode):
    """Counts what makes the processor wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "unique", "_unique2"):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [{}, {"clip_norm": 1.0}, {"augmentation": Augmentation(1, flip=0.5, cutout=3)}, {"label_smoothing": 0.1}],
    ids=str,
)
def test_steps_wait_for_nothing(build, images, settings, changes):
    found = []
    for size in (32, 8, 4):  # 3, 12 and 24 steps
        with Waits() as waits:
            fit(build(), images, replace(settings, epochs=1, batch_size=size, **changes))
        found.append(waits.count)
    assert found[0]  # so that the test sees something: at the end of the epoch
    assert found[0] == found[1] == found[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_steps_wait_for_nothing_on_a_gpu(build, images, settings):
    from varshift_lab.training._run import Run

    run = Run(build().cuda(), images, settings, 0, Treatment(), Workbench(device="cuda"))
    for step, (inputs, labels, ids) in enumerate(run.batches(0)):
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            loss = run.loss(run.model(inputs), labels, ids)
            run.fabric.backward(loss)
            run.optimizer.step()
            run.optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_gradients_are_clipped(build, images, settings):
    seen = []

    @dataclass(frozen=True)
    class Look(Treatment):
        def attach(self, model, optimizer, settings):
            def note(optimizer, args, kwargs):
                grads = [one.grad for group in optimizer.param_groups for one in group["params"]]
                seen.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

            optimizer.register_step_pre_hook(note)
            return ()

    fit(build(), images, replace(settings, epochs=1, clip_norm=0.25), treatment=Look())
    assert max(seen) == pytest.approx(0.25, rel=1e-4)
    seen.clear()
    fit(build(), images, replace(settings, epochs=1), treatment=Look())
    assert max(seen) > 0.3


def test_probes_do_not_disturb(build, images, settings, same):
    events = []
    bare, probed = build(), build()
    fit(bare, images, settings)
    often = replace(settings, probe_every=3, probe_samples=40)
    history = fit(probed, images, often, workbench=Workbench(record=events.append))
    assert same(bare, probed)
    assert [probe.epoch for probe in history.probes] == [3, 4]
    assert [len(probe.shift) for probe in history.probes] == [1, 1]
    assert history.probes[1].shift[0] > 1.2  # dropout right in front of the norm
    found = history.measurements()
    assert found["probe_epochs"] == [3, 4]
    assert found["probe_shift"] == [probe.shift for probe in history.probes]
    assert [event["event"] for event in events] == ["epoch"] * 3 + ["probe", "epoch", "probe"]


def test_a_probe_that_fails_is_told_and_training_goes_on(images, settings):
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm, self.head = nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 10)

        def forward(self, x):
            return self.head(self.norm(self.linear(x.flatten(1)) * (1 if self.training else torch.inf)))

    events = []
    history = fit(Dead(), images, replace(settings, probe_every=2), workbench=Workbench(record=events.append))
    failed = [event for event in events if event["event"] == "probe failed"]
    assert [event["epoch"] for event in failed] == [2, 4]
    assert "norm 'norm' has no variance shift" in failed[0]["reason"]
    assert history.epochs == 4


@pytest.mark.parametrize("kind", ["inputs", "rate"])
def test_divergence_names_epoch_step_and_rate(build, images, settings, kind):
    class Blowing(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network, self.steps = network, 0

        def forward(self, x):
            self.steps += self.training and torch.is_grad_enabled()
            # one step counts what a step costs; then six in each epoch
            return self.network(x) * (float("nan") if self.steps == 10 else 1)

    network, changes = (build(), {"learning_rate": 1e30}) if kind == "rate" else (Blowing(build()), {})
    if kind == "inputs":
        message = (
            r"diverged in epoch 2 of 4: the loss is nan, first in step \d of 6, at a learning rate of 0.1"
        )
    else:
        message = (
            r"diverged in epoch 1 of 4: the loss is .*at a learning rate of 1e\+30. Use one below 1e\+30"
        )
    with pytest.raises(TrialError, match=message):
        fit(network, images, replace(settings, **changes))


@dataclass(frozen=True)
class Rescaled(Treatment):
    target: float

    def prepare(self, model):
        nn.init.constant_(model[0].bias, 0.5)

    def attach(self, model, optimizer, settings):
        rescaling = WeightRescaling([(model[0], model[2])], target=self.target)
        rescaling.rescale_()
        rescaling.attach(optimizer)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        return [rescaling]


@dataclass(frozen=True)
class Biased(Treatment):
    burn_in: int
    draws: bool = False

    def remember(self, images, settings):
        return ActiveBias(len(images), burn_in=self.burn_in)

    def sampler(self, images, settings, seed, state):
        return ActiveBiasSampler(state, seed=seed) if self.draws else None

    def loss(self, outputs, labels, ids, state):
        weights = state(ids, outputs.detach(), labels)
        return (weights * F.cross_entropy(outputs, labels, reduction="none")).mean()


def test_a_treatment_acts_on_network_optimiser_and_loss(build, images, settings):
    network = build()
    fit(network, images, settings, treatment=Rescaled(2.0))
    norms = network[0].weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((6,), 2.0))


@pytest.mark.parametrize("draws", [False, True])
def test_samples_are_remembered(build, images, settings, draws, same):
    plain, biased, late = build(), build(), build()
    fit(plain, images, settings)
    fit(biased, images, settings, treatment=Biased(1, draws))
    assert not same(plain, biased)
    if not draws:  # weights of 1 throughout
        fit(late, images, settings, treatment=Biased(9))
        assert same(plain, late)


def test_single_shuffle_repeats_its_batches(images, settings):
    class Ids(Treatment):
        def __init__(self):
            object.__setattr__(self, "seen", [])

        def loss(self, outputs, labels, ids, state):
            self.seen.append(ids.tolist())

    def network():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    single, fresh = Ids(), Ids()
    fit(network(), images, replace(settings, order="single", epochs=2), treatment=single)
    fit(network(), images, replace(settings, epochs=2), treatment=fresh)
    assert single.seen[:6] == single.seen[6:]
    assert fresh.seen[:6] != fresh.seen[6:]
    assert sorted(place for batch in fresh.seen[6:] for place in batch) == list(range(96))


def test_precision_and_layout_reach_the_network(build, images, settings):
    seen = []

    class Look(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            hidden = self.network[0](x)
            seen.append((hidden.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return self.network(x)

    network = Look(build())
    history = fit(network, images, replace(settings, epochs=1), workbench=Workbench(precision="bf16-mixed"))
    assert seen[-1] == (torch.bfloat16, True)
    assert network.network[0].weight.dtype == torch.float32
    assert history.loss[0] < 3


def test_a_compiled_network_trains_alike(build, images, settings, monkeypatch):
    modes, real = [], torch.compile

    def traced(model, *, mode="again, by fabric", **options):
        modes.append(mode)
        # to generate machine code takes half a minute and is torch's affair
        return real(model, **{**options, "backend": "aot_eager"})

    monkeypatch.setattr(torch, "compile", traced)
    plain, compiled = build(0.0), build(0.0)
    short = replace(settings, epochs=1)
    expected = fit(plain, images, short)
    found = fit(compiled, images, short, workbench=Workbench(compile=True))
    assert modes == ["default", "again, by fabric"]
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    torch.testing.assert_close(dict(compiled.state_dict()), dict(plain.state_dict()), rtol=1e-3, atol=1e-4)


def test_the_work_is_counted(images, settings):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    history = fit(network, images, settings)
    # forward and the gradient of the weight; the inputs want none
    assert history.pflop * 1e15 == 96 * 2 * (2 * 64 * 10)
    assert history.measurements()["pflop"] == pytest.approx(4 * history.pflop)


def test_what_cannot_be_trained_is_refused(build, images, settings):
    with pytest.raises(ValueError, match="batch_size=97 leaves no full batch"):
        fit(build(), images, replace(settings, batch_size=97))
    if not torch.cuda.is_available():
        with pytest.raises(TrialError, match="device='cuda' is not there"):
            fit(build(), images, settings, workbench=Workbench(device="cuda"))


def test_evaluation_leaves_everything_as_it_was(build, images, same):
    network, twin = build(), build()
    network.train()
    network[2].eval()
    flags = [module.training for module in network.modules()]
    loader = EpochLoader(images, 32, order="stored")
    result = evaluate(network, loader)
    noisy = [evaluate(network, loader, train_mode=True, seed=seed) for seed in (1, 1, 2)]
    assert [module.training for module in network.modules()] == flags
    assert same(network, twin)
    network.eval()
    with torch.no_grad():
        outputs = network(images.normalised())
    assert result.loss == pytest.approx(F.cross_entropy(outputs, images.labels).item(), rel=1e-5)
    right = (outputs.argmax(1) == images.labels).float().mean()
    assert result.error == pytest.approx(100 * (1 - right.item()))
    assert result.losses.shape == (96,)
    assert torch.equal(noisy[0].losses, noisy[1].losses)
    assert not torch.equal(noisy[0].losses, noisy[2].losses)
    with pytest.raises(ValueError, match="loader yields nothing"):
        evaluate(network, [])
