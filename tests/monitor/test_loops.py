"""Loops with a fault each, and healthy ones: what a watch says within two epochs."""

import contextlib
import copy
import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

import varshift as vs

SAMPLES, BATCH = 256, 16


def data(seed=0):
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, 8, generator=draw) * 2 + 1
    return inputs, (inputs[:, 0] > 1).long()


class Mlp(nn.Module):
    """Two blocks and a head."""

    def __init__(self, recompute=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
        self.body = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 2)
        self.recompute = recompute

    def forward(self, x):
        x = self.stem(x)
        x = (
            checkpoint(self.body, x, use_reentrant=False)
            if self.recompute and self.training
            else self.body(x)
        )
        return self.head(x)


class Conv(nn.Module):
    """Convolutions with a residual sum."""

    def __init__(self, recompute=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(1, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 6, 3, padding=1)
        )
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout1d(0.1)
        self.head = nn.Linear(6, 2)
        self.recompute = recompute

    def forward(self, x):
        x = self.stem(x[:, None])
        branch = (
            checkpoint(self.body, x, use_reentrant=True) if self.recompute and self.training else self.body(x)
        )
        return self.head(self.drop(self.norm(x + branch)).mean(2))


class Text(nn.Module):
    """Layer norms and dropout: no statistics at all."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Dropout(0.1))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.block(x))


class Loop:
    """A training of two epochs; faults override a part of it."""

    def __init__(self, model, optimizer=None, every=1, given=True, **watch):
        torch.manual_seed(1)
        self.model = model
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer or torch.optim.SGD(trained, lr=0.05, momentum=0.9)
        self.found = []
        self.watch = vs.watch(
            model,
            every=every,
            optimizer=self.optimizer if given else None,
            on_finding=self.found.append,
            strict=True,
            **watch,
        )

    def start_epoch(self):
        self.model.train()

    def batch(self, number, inputs, targets):
        self.optimizer.zero_grad()
        cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()
        self.watch.step()

    def end_epoch(self):
        self.model.eval()
        with torch.no_grad():
            self.model(data()[0][:32])

    def run(self, epochs=2):
        inputs, targets = data()
        with self.watch:
            for _ in range(epochs):
                self.start_epoch()
                for number, (x, y) in enumerate(zip(inputs.split(BATCH), targets.split(BATCH), strict=True)):
                    self.batch(number, x, y)
                self.end_epoch()
        return self

    @property
    def codes(self):
        return {finding.code for finding in self.found if finding.severity != "advice"}


class NeverTrain(Loop):
    def start_epoch(self):
        pass


class Accumulated(Loop):
    each = 4
    in_parts = True

    def batch(self, number, inputs, targets):
        if number % self.each == 0:
            self.optimizer.zero_grad()
        cross_entropy(self.model(inputs), targets).backward()
        last = number % self.each == self.each - 1
        if last:
            self.optimizer.step()
        if last or self.in_parts:
            self.watch.step()


class AccumulatedWhole(Accumulated):
    in_parts = False


class Sharpness(Loop):
    def batch(self, number, inputs, targets):
        self.optimizer.zero_grad()
        cross_entropy(self.model(inputs), targets).backward()
        before = [p.detach().clone() for p in self.model.parameters()]
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.05 * parameter.grad)
        self.optimizer.zero_grad()
        cross_entropy(self.model(inputs), targets).backward()
        with torch.no_grad():
            for parameter, value in zip(self.model.parameters(), before, strict=True):
                parameter.copy_(value)
        self.optimizer.step()
        self.watch.step()


class Infinite(Loop):
    def batch(self, number, inputs, targets):
        inputs = inputs / 0.0 if number == 5 else inputs
        loss = cross_entropy(self.model(inputs), targets)
        self.optimizer.zero_grad()
        if torch.isfinite(loss):  # as a gradient scaler skips the step
            loss.backward()
            self.optimizer.step()
        self.watch.step()


class FrozenOnce(Loop):
    def __init__(self, model, **settings):
        model.train()
        model.stem.requires_grad_(False)
        model.stem.eval()
        super().__init__(model, **settings)


class HalfFrozen(Loop):
    def __init__(self, model, **settings):
        model.stem.requires_grad_(False)
        super().__init__(model, **settings)


class InNoOptimizer(Loop):
    def __init__(self, model, **settings):
        rest = [p for name, p in model.named_parameters() if not name.startswith("stem")]
        super().__init__(model, optimizer=torch.optim.Adam(rest, lr=1e-3), **settings)


class Pretrained(Loop):
    """A trainer's module in training mode around a network in evaluation mode."""

    def __init__(self, model, **settings):
        outer = nn.Sequential(model.eval())
        outer.training = True
        super().__init__(outer, **settings)

    def start_epoch(self):
        pass

    def end_epoch(self):
        pass


class SlowStatistics(Loop):
    def __init__(self, model, **settings):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 1e-3
        super().__init__(model, **settings)

    def run(self, epochs=6):
        return super().run(epochs)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.norm, self.last = nn.BatchNorm1d(16), nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = self.norm(self.second(x)).relu()
        return self.head(self.last(x))


class HeadFirst(nn.Module):
    """The backbone comes last in the list of modules, and first in the forward pass."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 2)
        self.stem = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, x):
        return self.head(self.stem(x))


class Student(nn.Module):
    """A student with its teacher inside."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = Mlp(), Mlp()
        self.teacher.requires_grad_(False)

    def forward(self, x):
        return self.student(x) + 0.1 * self.teacher(x).detach()


class TeacherHeld(Loop):
    def start_epoch(self):
        self.model.train()
        self.model.teacher.eval()


class EvaluatedInTheMiddle(Loop):
    """An evaluation every few steps; `back` is what follows it."""

    back = True

    def batch(self, number, inputs, targets):
        super().batch(number, inputs, targets)
        if number % 5 == 4:
            self.end_epoch()
            self.model.train(self.back)


class LeftInTheMiddle(EvaluatedInTheMiddle):
    back = False


class Twice(nn.Module):
    """A block that uses its norm twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.BatchNorm1d(16)
        self.out = nn.BatchNorm1d(16)

    def forward(self, x):
        return self.out(x + self.norm(self.second(self.norm(self.first(x)).relu())))


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
        self.blocks = nn.Sequential(Twice(), Twice())
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)))


FAULTS = {
    "head first, half frozen": ("VS402", lambda **s: HalfFrozen(HeadFirst(), **s)),
    "a teacher inside in training mode": ("VS402", lambda **s: Loop(Student(), **s)),
    "left in eval by an evaluation in the middle": ("VS402", lambda **s: LeftInTheMiddle(Mlp(), **s)),
    "left in eval in the middle, convolutions": ("VS402", lambda **s: LeftInTheMiddle(Conv(), **s)),
    "eval left on": ("VS402", lambda **s: NeverTrain(Mlp(), **s)),
    "eval left on, convolutions": ("VS402", lambda **s: NeverTrain(Conv(), **s)),
    "eval left on, no norms": ("VS402", lambda **s: NeverTrain(Text(), **s)),
    "accumulated in parts": ("VS305", lambda **s: Accumulated(Mlp(), **s)),
    "accumulated in parts, convolutions": ("VS305", lambda **s: Accumulated(Conv(), **s)),
    "accumulated as a whole": ("VS305", lambda **s: AccumulatedWhole(Mlp(), **s)),
    "checkpointing": ("VS305", lambda **s: Loop(Mlp(recompute=True), **s)),
    "checkpointing, reentrant": ("VS305", lambda **s: Loop(Conv(recompute=True), **s)),
    "perturbed weights": ("VS305", lambda **s: Sharpness(Mlp(), **s)),
    "perturbed weights, convolutions": ("VS305", lambda **s: Sharpness(Conv(), **s)),
    "an infinite batch": ("VS203", lambda **s: Infinite(Mlp(), **s)),
    "an infinite batch, convolutions": ("VS203", lambda **s: Infinite(Conv(), **s)),
    "frozen once": ("VS402", lambda **s: FrozenOnce(Mlp(), **s)),
    "frozen once, convolutions": ("VS402", lambda **s: FrozenOnce(Conv(), **s)),
    "half frozen": ("VS402", lambda **s: HalfFrozen(Mlp(), **s)),
    "half frozen, convolutions": ("VS402", lambda **s: HalfFrozen(Conv(), **s)),
    "in no optimiser": ("VS402", lambda **s: InNoOptimizer(Mlp(), **s)),
    "pretrained in eval": ("VS402", lambda **s: Pretrained(Text(), **s)),
    "pretrained in eval, norms": ("VS402", lambda **s: Pretrained(Mlp(), **s)),
    "one norm reused in each block": ("VS403", lambda **s: Loop(Reused(), **s)),
    "slow statistics": ("VS202", lambda **s: SlowStatistics(Mlp(), **s)),
    "shared norm": ("VS403", lambda **s: Loop(Shared(), **s)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_loop_is_named(name):
    code, loop = FAULTS[name]
    assert loop().run().codes == {code}


# Weights that are written more often than the optimiser writes them are only known with the optimiser.
@pytest.mark.parametrize("name", [name for name in FAULTS if "perturbed" not in name])
def test_a_fault_of_a_loop_is_named_without_the_optimiser(name):
    code, loop = FAULTS[name]
    assert loop(given=False).run().codes == {code}


class HeldFrozen(HalfFrozen):
    def start_epoch(self):
        self.model.train()
        self.model.stem.eval()


class Averaged(Loop):
    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self.average = AveragedModel(model)

    def batch(self, number, inputs, targets):
        super().batch(number, inputs, targets)
        self.average.update_parameters(self.model)

    def end_epoch(self):
        update_bn(data()[0].split(BATCH), self.average)
        super().end_epoch()


class Scheduled(Loop):
    schedule = staticmethod(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=60))

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self.scheduler = self.schedule(self.optimizer)

    def batch(self, number, inputs, targets):
        super().batch(number, inputs, targets)
        self.scheduler.step()


class Warm(Scheduled):
    schedule = staticmethod(lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.01, total_iters=10))


class Autocast(Loop):
    def batch(self, number, inputs, targets):
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(self.model(inputs).float(), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.watch.step()


class TwoViews(Loop):
    """A siamese network: two forward passes, one backward pass."""

    def batch(self, number, inputs, targets):
        self.optimizer.zero_grad()
        first, second = self.model(inputs), self.model(inputs + 0.1 * torch.randn_like(inputs))
        (cross_entropy(first, targets) + cross_entropy(second, targets)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.watch.step()


class ByHand(Loop):
    """An optimiser of the loop's own, that writes past the version counters."""

    def batch(self, number, inputs, targets):
        self.model.zero_grad()
        cross_entropy(self.model(inputs), targets).backward()
        for parameter in self.model.parameters():
            parameter.data.add_(parameter.grad, alpha=-0.05)
        self.watch.step()


class Unfrozen(HalfFrozen):
    """The stem learns from the second epoch on."""

    def __init__(self, model, **settings):
        super().__init__(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), **settings)

    def start_epoch(self):
        self.model.train()
        if self.watch.report.history.moves:
            self.model.stem.requires_grad_(True)
        else:
            self.model.stem.eval()


class NoNormsRecomputed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
        self.body = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Dropout(0.1))
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(checkpoint(self.body, self.stem(x), use_reentrant=False))


class Pair(nn.Module):
    """A generator and a discriminator."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.discriminator = Mlp()


class Adversarial(Loop):
    """Three passes of the discriminator for one of the generator, and two optimisers."""

    def __init__(self, model, **settings):
        parts = model.discriminator.parameters(), model.generator.parameters()
        self.both = [torch.optim.Adam(part, lr=1e-3) for part in parts]
        super().__init__(model, optimizer=self.both[0], **settings)

    def end_epoch(self):
        pass

    def batch(self, number, inputs, targets):
        model = self.model
        fake = model.generator(torch.randn(len(inputs), 4))
        ones = torch.ones(len(inputs), dtype=torch.long)
        self.both[0].zero_grad()
        real, made = model.discriminator(inputs), model.discriminator(fake.detach())
        (cross_entropy(real, ones) + cross_entropy(made, 0 * ones)).backward()
        self.both[0].step()
        self.both[1].zero_grad()
        cross_entropy(model.discriminator(fake), ones).backward()
        self.both[1].step()
        self.watch.step()


class Scaled(Loop):
    """A gradient scaler that skips its first steps."""

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=4)

    def batch(self, number, inputs, targets):
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(inputs), targets)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.watch.step()


class OnlyNorms(Loop):
    """Nothing but the norms is tuned: their statistics belong to it."""

    def __init__(self, model, **settings):
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                module.requires_grad_(False)
        model.head.requires_grad_(True)
        super().__init__(model, **settings)


class OwnTrain(Mlp):
    """A backbone that stays in evaluation mode by an overridden train()."""

    def train(self, mode=True):
        super().train(mode)
        self.stem.eval()
        return self


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


HEALTHY = {
    "plain": lambda **s: Loop(Mlp(), **s),
    "plain, convolutions": lambda **s: Loop(Conv(), **s),
    "no norms": lambda **s: Loop(Text(), **s),
    "AdamW": lambda **s: Loop(model := Conv(), optimizer=adam(model), **s),
    "accumulated without norms": lambda **s: Accumulated(Text(), **s),
    "accumulated, norms held": lambda **s: _held(AccumulatedWhole(Mlp(), **s)),
    "frozen and held": lambda **s: HeldFrozen(Mlp(), **s),
    "frozen and held, convolutions": lambda **s: HeldFrozen(Conv(), **s),
    "averaged, then recalibrated": lambda **s: Averaged(Mlp(), **s),
    "one cycle": lambda **s: Scheduled(Mlp(), **s),
    "warm-up": lambda **s: Warm(Conv(), **s),
    "autocast and clipping": lambda **s: Autocast(Conv(), **s),
    "two views": lambda **s: TwoViews(Mlp(), **s),
    "by hand": lambda **s: ByHand(Mlp(), **s),
    "unfrozen later": lambda **s: Unfrozen(Mlp(), **s),
    "checkpointing without norms": lambda **s: Loop(NoNormsRecomputed(), **s),
    "every third step": lambda **s: Loop(Conv(), every=3, **s),
    "evaluated in the middle": lambda **s: EvaluatedInTheMiddle(Mlp(), **s),
    "a teacher inside in evaluation mode": lambda **s: TeacherHeld(Student(), **s),
    "adversarial": lambda **s: Adversarial(Pair(), **s),
    "a scaler that skips steps": lambda **s: Scaled(Conv(), **s),
    "only norms are tuned": lambda **s: OnlyNorms(Mlp(), **s),
    "only norms are tuned, convolutions": lambda **s: OnlyNorms(Conv(), **s),
    "a train() of its own": lambda **s: HalfFrozen(OwnTrain(), **s),
    "compiled": lambda **s: Loop(torch.compile(Mlp(), backend="eager"), **s),
}


def _held(loop):
    def start():
        loop.model.train()
        for module in loop.model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()

    loop.start_epoch = start
    return loop


@pytest.mark.parametrize("given", [True, False], ids=["optimiser", "alone"])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_loop_gets_no_warning(name, given):
    loop = HEALTHY[name](given=given).run(epochs=3)
    assert not loop.codes, [finding.message for finding in loop.found]


@pytest.mark.parametrize("network", [Mlp, Conv])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_weights_are_the_same_to_the_bit_with_and_without_a_watch(network, every):
    def train(watched):
        torch.manual_seed(3)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        watch = vs.watch(model, every=every, optimizer=optimizer) if watched else contextlib.nullcontext()
        inputs, targets = data()
        with watch:
            batches = zip(inputs.split(4), targets.split(4), strict=True)
            for x, y in itertools.islice(itertools.chain(batches, []), 64):
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()
                if watched:
                    watch.step()
        return model, torch.get_rng_state()

    (bare, state), (watched, other) = train(False), train(True)
    assert torch.equal(state, other)
    assert all(torch.equal(value, watched.state_dict()[name]) for name, value in bare.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())


def test_the_moments_of_a_batch_are_read_out_of_the_buffers():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, momentum=0.03))
    watch = vs.watch(model, strict=True)
    for x in data()[0].split(BATCH):
        model(x)
        watch.step()
        signal = model[0](x).detach().double()
        mean, variance = watch.batch_moments("1")
        torch.testing.assert_close(mean, signal.mean(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variance, signal.var(0), rtol=1e-4, atol=1e-4)


def test_what_raises_in_on_finding_ends_the_watch_and_not_the_training():
    loop = NeverTrain(Mlp())

    def fail(finding):
        raise RuntimeError("a tracker that is not there")

    loop.watch = vs.watch(loop.model, on_finding=fail)
    loop.run()
    assert "a tracker that is not there" in loop.watch.report.limits[-1]
    strict = NeverTrain(Mlp())
    strict.watch = vs.watch(strict.model, on_finding=fail, strict=True)
    with pytest.raises(RuntimeError, match="a tracker"):
        strict.run()


def test_a_finding_comes_once_as_a_warning():
    loop = NeverTrain(Mlp())
    loop.watch = vs.watch(loop.model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.run()
    assert [str(one.message)[:5] for one in caught] == ["VS402"]
    assert all(issubclass(one.category, vs.VarshiftWarning) for one in caught)


def test_a_watch_goes_on_from_a_checkpoint():
    first = HalfFrozen(Mlp()).run()
    assert first.codes == {"VS402"}
    state = copy.deepcopy(first.watch.state_dict())
    again = HalfFrozen(Mlp())
    again.model.load_state_dict(first.model.state_dict())
    again.watch.load_state_dict(state)
    again.run()
    assert again.found == []  # it has been said
    assert again.watch.report.history.steps == 2 * first.watch.report.history.steps
    assert again.watch.report.findings
    with pytest.raises(vs.VarshiftError, match="state_dict"):
        again.watch.load_state_dict({})


def test_the_report_of_a_watch_is_evidence_for_a_check_and_comes_back_from_its_file():
    loop = Accumulated(Mlp()).run()
    report = loop.watch.report
    assert vs.Report.from_json(report.to_json()) == report
    inputs, targets = data()
    batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))
    checked = vs.check(loop.model, batches, history=report, select=["VS305"])
    assert [finding.code for finding in checked.findings] == ["VS305"]
    assert not vs.check(loop.model, batches, select=["VS305"]).findings


def test_rates_that_change_are_in_the_history():
    loop = Loop(Mlp())
    loop.end_epoch = lambda: setattr(loop.model.stem[3], "p", loop.model.stem[3].p + 0.1)
    loop.run()
    (change,) = loop.watch.report.history.rates
    assert (change.module, change.before) == ("stem.3", 0.1)


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_has_to_be_a_number_of_steps(every):
    with pytest.raises(vs.VarshiftError, match="every="):
        vs.watch(Mlp(), every=every)


def test_the_page_of_a_watch_says_what_was_watched():
    text = str(HalfFrozen(Mlp()).run().watch.report)
    assert "varshift watch Mlp" in text
    assert "32 steps of training were watched; 32 of them moved the weights." in text
    assert "VS402" in text
    assert "did not run" not in text
    assert "Nothing found so far." in str(Loop(Mlp()).run().watch.report)
