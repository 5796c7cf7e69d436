"""The measured figures against restatements with hooks, copies and float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import varshift as vs
from varshift.flow import capture
from varshift.probe import draw_batches, measure

ORDER = ["train", "clean", "clean_eval", "recalibrated", "recalibrated_noisy", "eval"]
EPS = 1e-5


class Chequer(nn.Module):
    """Noise without chance: in training every other unit is dropped, always the same ones."""

    def forward(self, x):
        if not self.training:
            return x
        mask = (torch.arange(x[0].numel()) % 2).reshape(x[0].shape) * 2.0
        return x * mask


@pytest.fixture
def chequered():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        Chequer(),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    for norm in (model[2], model[5]):
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.2, 0.6)
    return model


def run_state(model, batches, *, noise, batch_statistics):
    """Losses per batch and pooled moments of each norm's input in one state, on a copy."""
    model = copy.deepcopy(model).train(noise)
    inputs: dict[str, list] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(batch_statistics)
            module.register_forward_pre_hook(
                lambda m, args, name=name: inputs.setdefault(name, []).append(
                    args[0].double().movedim(1, 0).flatten(1)
                )
            )
    with torch.no_grad():
        losses = [float(F.cross_entropy(model(x), y)) for x, y in batches]
    pooled = {name: torch.cat(values, 1) for name, values in inputs.items()}
    return losses, {name: (values.mean(1), values.var(1)) for name, values in pooled.items()}


def with_statistics(model, statistics):
    model = copy.deepcopy(model)
    for name, (mean, var) in statistics.items():
        model.get_submodule(name).running_mean.copy_(mean)
        model.get_submodule(name).running_var.copy_(var)
    return model


@pytest.fixture
def restated(chequered, batches):
    found = {
        "train": run_state(chequered, batches, noise=True, batch_statistics=True),
        "clean": run_state(chequered, batches, noise=True, batch_statistics=True),
        "clean_eval": run_state(chequered, batches, noise=False, batch_statistics=True),
        "eval": run_state(chequered, batches, noise=False, batch_statistics=False),
    }
    for name, source in (("recalibrated", "clean_eval"), ("recalibrated_noisy", "train")):
        cured = with_statistics(chequered, found[source][1])
        found[name] = run_state(cured, batches, noise=False, batch_statistics=False)
    return found


def test_ratios_are_as_defined(chequered, batches, restated):
    measured = measure(chequered, batches)
    for name in ("2", "5"):
        layer = measured.layer(name)
        var = {state: restated[state][1][name][1].mean().item() for state in ORDER}
        moving = chequered.get_submodule(name).running_var.mean().item()
        assert layer.moving_var == pytest.approx(moving, rel=1e-6)
        assert layer.real_var == pytest.approx(var["eval"], rel=1e-5)
        var = {state: value + EPS for state, value in var.items()}
        assert layer.ratio == pytest.approx(var["eval"] / (moving + EPS), rel=1e-5)
        assert layer.local_ratio == pytest.approx(var["clean_eval"] / var["train"], rel=1e-5)
        assert layer.control_ratio == pytest.approx(var["recalibrated"] / var["clean_eval"], rel=1e-4)
        assert layer.fresh_ratio == pytest.approx(var["recalibrated_noisy"] / var["train"], rel=1e-4)
    assert measured.layer("2").control_ratio == pytest.approx(1, rel=1e-5)


def test_channel_figures_are_as_defined(chequered, batches, restated):
    layer = measure(chequered, batches).layer("5")
    norm = chequered[5]
    mean, var = restated["eval"][1]["5"]
    log_ratio = ((var + norm.eps) / (norm.running_var.double() + norm.eps)).log()
    offset = (mean - norm.running_mean.double()) / (var + norm.eps).sqrt()
    assert layer.channel_log_ratio_rms == pytest.approx(log_ratio.square().mean().sqrt().item(), rel=1e-5)
    assert layer.mean_offset == pytest.approx(offset.square().mean().sqrt().item(), rel=1e-5)


def test_gap_states_and_steps_are_as_defined(chequered, batches, restated):
    flow = capture(chequered, batches[0][0]).train
    assert [site.name for site in flow.noises] == []  # a fixed mask is no noise: it is another function
    gap = measure(chequered, batches, flow=flow).gap
    sizes = torch.tensor([len(x) for x, _ in batches], dtype=torch.float64)
    assert gap.metric == "loss"
    assert list(gap.states) == ORDER
    for state in ORDER:
        losses = restated["train" if state == "clean" else state][0]
        assert gap.batches[state] == pytest.approx(losses, rel=1e-5)
        weighted = float((torch.tensor(losses, dtype=torch.float64) * sizes).sum() / sizes.sum())
        assert gap.states[state] == pytest.approx(weighted, rel=1e-5)
    causes = ["noise", "function", "small-batch", "variance-shift", "statistics"]
    assert [step.cause for step in gap.steps] == causes
    assert gap.steps[0].delta == 0
    assert sum(step.delta for step in gap.steps) == pytest.approx(
        gap.states["eval"] - gap.states["train"], abs=1e-12
    )


def test_without_a_capture_noise_and_function_are_one_step(chequered, batches, restated):
    gap = measure(chequered, batches).gap
    assert list(gap.states) == [state for state in ORDER if state != "clean"]
    assert [step.cause for step in gap.steps] == ["noise", "small-batch", "variance-shift", "statistics"]
    assert sum(step.delta for step in gap.steps) == pytest.approx(
        gap.states["eval"] - gap.states["train"], abs=1e-12
    )


def test_the_error_of_several_steps_is_that_of_their_sum(chequered, batches):
    gap = measure(chequered, batches).gap
    delta, stderr = gap.change("recalibrated", "eval")
    last = gap.steps[-2:]
    assert delta == pytest.approx(sum(step.delta for step in last), abs=1e-12)
    one, two = (torch.tensor(gap.batches[state], dtype=torch.float64) for state in ("recalibrated", "eval"))
    sizes = torch.tensor(gap.sizes, dtype=torch.float64)
    share, changes = sizes / sizes.sum(), two - one
    mean, count = (share * changes).sum(), len(changes)
    expected = ((share * (changes - mean)) ** 2).sum() * count / (count - 1)
    assert stderr == pytest.approx(float(expected.sqrt()), rel=1e-9)


@pytest.mark.parametrize("kind", ["modules", "functions", "attention", "recurrent", "by hand"])
def test_the_noise_step_is_that_of_the_noise_alone(kind, batches):
    """The reference is the same network built without noise; softmax in eval mode is the step after it."""
    torch.manual_seed(1)
    model = Noisy(kind)
    flow = capture(model, batches[0][0]).train
    assert flow.noises
    gap = measure(model, batches, flow=flow).gap
    silent = copy.deepcopy(model)
    silent.rate = 0.0
    for module in silent.modules():
        if isinstance(module, (nn.Dropout, HandWritten)):
            module.p = 0.0
        if isinstance(module, (nn.LSTM, nn.MultiheadAttention)):
            module.dropout = 0.0
    expected = measure(silent, batches, flow=capture(silent, batches[0][0]).train).gap
    assert gap.states["clean"] == pytest.approx(expected.states["train"], rel=1e-5)
    assert gap.states["clean_eval"] == pytest.approx(expected.states["clean_eval"], rel=1e-5)
    assert gap.states["train"] != pytest.approx(gap.states["clean"], rel=1e-4)
    assert abs(gap.steps[1].delta) > 0.01


class HandWritten(nn.Module):
    p = 0.5

    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand_like(x) >= self.p) / (1 - self.p)


class Noisy(nn.Module):
    """Noise of one kind, and a softmax in eval mode only."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.rate = kind, 0.5
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        if kind == "modules":
            self.drop = nn.Dropout(0.5)
        elif kind == "by hand":
            self.drop = HandWritten()
        elif kind == "attention":
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        elif kind == "recurrent":
            self.lstm = nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)
        if self.kind in ("modules", "by hand"):
            x = self.drop(x)
        elif self.kind == "functions":
            x = F.dropout(x, self.rate, self.training)
        elif self.kind == "attention":
            x = self.attention(x, x, x)[0]
        elif self.kind == "recurrent":
            x = self.lstm(x)[0]
        x = self.head(4 * x.mean(1))
        return x if self.training else x.softmax(1)


def test_standard_errors_of_equal_batches_are_the_usual_ones(chequered, batches):
    equal = batches[:4]
    gap = measure(chequered, equal).gap
    first = torch.tensor(run_state(chequered, equal, noise=True, batch_statistics=True)[0])
    second = torch.tensor(run_state(chequered, equal, noise=False, batch_statistics=True)[0])
    expected = float((second - first).std() / 2)
    assert gap.steps[0].stderr == pytest.approx(expected, rel=1e-3)


def test_measuring_changes_nothing(net, batches, fingerprint, assert_same):
    for training in (True, False):
        net.train(training)
        before = fingerprint(net)
        measure(net, batches)
        assert_same(before, fingerprint(net))


def test_failing_measurement_changes_nothing(net, batches, fingerprint, assert_same):
    calls = []

    def hook(module, args):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt

    net[4].register_forward_pre_hook(hook)
    before = fingerprint(net)
    with pytest.raises(KeyboardInterrupt):
        measure(net, batches)
    assert_same(before, fingerprint(net))


def test_same_seed_same_figures(net, batches):
    assert measure(net, batches, seed=3) == measure(net, batches, seed=3)
    assert measure(net, batches, seed=3) != measure(net, batches, seed=4)


def test_healthy_network_reads_one(net, batches):
    net[1].p = 0.0
    vs.recalibrate(net, batches)
    measured = measure(net, batches)
    for layer in measured.layers:
        assert layer.ratio == pytest.approx(layer.control_ratio, rel=1e-5)
        assert layer.local_ratio == pytest.approx(1, rel=1e-9)
    steps = {step.cause: step.delta for step in measured.gap.steps}
    assert steps["noise"] == 0
    assert steps["variance-shift"] == 0
    assert steps["statistics"] == pytest.approx(0, abs=1e-6)


def test_ema_estimator_is_the_papers_protocol(chequered, batches):
    equal = batches[:4]
    layer = measure(chequered, equal, estimator="ema").layer("2")
    average, weight = torch.zeros(8, dtype=torch.float64), 0.0
    with torch.no_grad():
        for x, _ in equal:
            var = chequered[0](x).double().movedim(1, 0).flatten(1).var(1)
            average, weight = 0.9 * average + 0.1 * var, 0.9 * weight + 0.1
    assert layer.real_var == pytest.approx((average / weight).mean().item(), rel=1e-5)


def test_stale_statistics_are_told_from_fresh_ones(net, batches):
    training = copy.deepcopy(net).train()
    training[2].momentum = training[5].momentum = None
    with torch.no_grad():
        for x, _ in batches[:4]:
            training(x)
    fresh = measure(training, batches[:4])
    for layer in fresh.layers:
        assert layer.stale_ratio == pytest.approx(1, abs=0.1)
    training[5].running_var.mul_(4)
    stale = measure(training, batches[:4])
    assert stale.layer("5").stale_ratio == pytest.approx(fresh.layer("5").stale_ratio / 4, rel=0.05)


def test_unreached_norm(net, batches):
    net.extra = nn.BatchNorm2d(4)
    net.forward = lambda x: net[:10](x)
    layer = measure(net, batches).layer("extra")
    assert layer.reached is False
    assert layer.real_var is None
    assert layer.moving_var == 1.0


def test_without_targets_outputs_are_compared(chequered, batches):
    inputs = [x for x, _ in batches]
    gap = measure(chequered, inputs).gap
    assert gap.metric == "relative_l2"
    assert gap.states["recalibrated"] == 0
    assert gap.kl["recalibrated"] == pytest.approx(0, abs=1e-12)
    assert gap.states["eval"] > 0
    assert gap.kl["eval"] > 0
    assert sum(step.delta for step in gap.steps) == pytest.approx(gap.states["eval"] - gap.states["train"])


def test_accuracy_is_counted(chequered, batches):
    gap = measure(chequered, batches).gap
    with torch.no_grad():
        chequered.eval()
        right = sum(int((chequered(x).argmax(1) == y).sum()) for x, y in batches)
    assert gap.accuracy["eval"] == pytest.approx(right / sum(len(x) for x, _ in batches))


def test_own_loss_gets_outputs_and_targets(chequered, batches):
    seen = []

    def loss(outputs, targets):
        seen.append((outputs.shape, targets.shape))
        return F.cross_entropy(outputs, targets)

    default = measure(chequered, batches).gap
    own = measure(chequered, batches, loss=loss).gap
    assert own.states == pytest.approx(default.states)
    assert ((16, 5), (16,)) in seen


class HasLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

    def forward(self, pixel_values, labels=None):
        logits = self.norm(self.linear(pixel_values))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_models_with_their_own_loss():
    torch.manual_seed(0)
    data = [{"pixel_values": torch.randn(8, 4), "labels": torch.randint(3, (8,))} for _ in range(3)]
    model = HasLoss()
    gap = measure(model, data).gap
    model.eval()
    with torch.no_grad():
        expected = sum(float(model(**batch)["loss"]) for batch in data) / 3
    assert gap.metric == "loss"
    assert gap.states["eval"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), F.cross_entropy),
        (torch.zeros(4, 3, 5, 5), torch.zeros(4, 5, 5, dtype=torch.long), F.cross_entropy),
        (torch.ones(4, 1), torch.rand(4), lambda o, t: F.mse_loss(o.flatten(), t)),
        (
            torch.ones(4, 1),
            torch.tensor([0, 1, 1, 0]),
            lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t.float()),
        ),
        (
            torch.ones(4, 3),
            torch.ones(4, 3, dtype=torch.long),
            lambda o, t: F.binary_cross_entropy_with_logits(o, t.float()),
        ),
    ],
)
def test_default_loss(outputs, targets, expected):
    from varshift.model import read_call
    from varshift.probe._loss import batch_loss

    call = read_call(nn.Identity(), (outputs, targets))
    assert batch_loss(outputs, call, None) == pytest.approx(float(expected(outputs, targets)))


def test_targets_that_do_not_fit_are_a_clear_error(chequered, batches):
    with pytest.raises(vs.DataError, match="targets run from 0 to 9, but the model has 5 outputs"):
        measure(chequered, [(x, torch.arange(len(x)) % 10) for x, _ in batches])
    with pytest.raises(vs.DataError, match="Pass loss="):
        measure(chequered, [(x, torch.zeros(3)) for x, _ in batches])


def test_inputs_that_are_not_finite_are_refused(batches):
    batches[2][0][0] = float("nan")
    with pytest.raises(vs.DataError, match="batch 2"):
        draw_batches(batches, None, None)


def test_in_place_input_operations_do_not_leak_between_states(batches):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x.mul_(2)).mean((1, 2, 3)).unsqueeze(1).repeat(1, 5)

    first = batches[0][0].clone()
    layer = measure(InPlace(), batches).layers[0]
    assert torch.equal(batches[0][0], first)
    everything = torch.cat([x for x, _ in batches]).double().movedim(1, 0).flatten(1) * 2
    assert layer.real_var == pytest.approx(everything.var(1).mean().item(), rel=1e-5)


def test_frozen_norms_stay_frozen_in_every_state(chequered, batches):
    class Freezes(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[2].eval()
            return self

    model = Freezes(*chequered)
    layer = measure(model, batches).layer("2")
    # Its input has no norm upstream, so only the noise differs between the states.
    assert layer.control_ratio == pytest.approx(1, rel=1e-6)
    steps = {step.cause: step.delta for step in measure(model, batches).gap.steps}
    assert abs(steps["statistics"]) > 0


def test_norms_stuck_in_training_are_measured_as_deployed(chequered, batches):
    class Stuck(nn.BatchNorm2d):
        def forward(self, x):
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps
            )

    stuck = Stuck(8)
    stuck.load_state_dict(chequered[2].state_dict())
    chequered[2] = stuck
    before = stuck.running_mean.clone()
    report = vs.check(chequered, batches)
    assert torch.equal(stuck.running_mean, before)
    assert report.data.batch_mate_difference > 1e-3


def test_noise_alive_in_eval_is_seen(batches):
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return F.dropout(self.norm(x), 0.5).mean((2, 3))

    inputs = [x for x, _ in batches]
    assert vs.check(Always(), inputs).data.repeat_difference > 0.01


def test_effective_batch_of_repeated_samples_is_small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(50))
    data = [torch.randn(4, 50).repeat(8, 1) for _ in range(12)]  # 32 rows, 4 different ones
    layer = measure(model, data).layers[0]
    assert layer.values_per_channel == 32
    assert layer.effective_batch == pytest.approx(3, rel=0.35)
