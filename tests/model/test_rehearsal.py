"""A training step is rehearsed without a trace: model, optimisers, all that the step holds, random states."""

from __future__ import annotations

import copy
import functools
import io
import queue
import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from state_digest import Digest, process_state
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import varshift as vs
from varshift.model import Rehearsal, Unsafe


class Net(nn.Module):
    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.second = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for block in (self.first, self.second):
            x = checkpoint(block, x, use_reentrant=False) if self.recompute and self.training else block(x)
        return self.head(x)


def batches(size: int = 16) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 6, generator=generator), torch.randint(3, (96,), generator=generator)
    return DataLoader(TensorDataset(x, y), size, shuffle=True, generator=torch.Generator().manual_seed(1))


def loss_of(model, batch):
    return F.cross_entropy(model.train()(batch[0]), batch[1])


# -- steps as people write them ---------------------------------------------------------------------------


class WithMomentum:
    def __init__(self, model) -> None:
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        self.norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
        self.losses: list[float] = []

    def __call__(self, model, batch) -> None:
        self.optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        for norm in self.norms:
            norm.momentum = 0.2
        self.optimizer.step()
        self.losses.append(loss.item())


def closure(model):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    average = copy.deepcopy(model).eval()
    count, seen = 0, []
    note = seen.append

    def update() -> None:
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.5)

    def step(net, batch):
        nonlocal count
        count += 1
        optimizer.zero_grad(set_to_none=False)
        loss_of(net, batch).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        update()
        note(float(torch.rand(())))

    return step


def scaled(model):
    optimizer, scaler = torch.optim.Adam(model.parameters()), torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(net, batch):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(net, batch)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


class Trainer:
    def __init__(self, model) -> None:
        self.model, self.step_count = model, 0
        self.optimizer = torch.optim.RMSprop(model.parameters(), momentum=0.5)
        self.pieces = 4

    def train_step(self, model, batch):
        self.optimizer.zero_grad()
        for x, y in zip(batch[0].chunk(self.pieces), batch[1].chunk(self.pieces), strict=True):
            (loss_of(self.model, (x, y)) / self.pieces).backward()  # its own model, not the one handed over
        self.optimizer.step()
        self.step_count += 1


def method(model):
    return Trainer(model).train_step


def partial(model):
    def step(optimizer, net, batch):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()

    return functools.partial(step, torch.optim.Adagrad(model.parameters()))


class Sharpness(torch.optim.Optimizer):
    def __init__(self, parameters, rho: float = 0.5) -> None:
        super().__init__(parameters, {"rho": rho})
        self.base = torch.optim.SGD(self.param_groups, 0.1, momentum=0.9)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old"] = p.data.clone()
                    p.add_(p.grad * group["rho"])

    @torch.no_grad()
    def second_step(self) -> None:
        for p, state in self.state.items():
            if "old" in state:
                p.data = state["old"]
        self.base.step()


def sharpness(model):
    optimizer = Sharpness(model.parameters())

    def step(net, batch):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.first_step()
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.second_step()

    return step


def with_globals(model):
    """A script: model, optimiser and counter are global variables."""
    scope = {"torch": torch, "F": F, "__name__": "script"}
    code = (
        "def forward(batch):\n    return model.train()(batch[0])\n"
        "def step(net, batch):\n    global count\n    count += 1\n    optimizer.zero_grad()\n"
        "    F.cross_entropy(forward(batch), batch[1]).backward()\n    optimizer.step()\n"
        "    history.append(1)\n"
    )
    exec(compile(code, "script.py", "exec"), scope)
    scope.update(model=model, optimizer=torch.optim.Adam(model.parameters()), count=0, history=[])
    step = scope["step"]
    step.__dict__["state"] = scope  # for the digest
    return step


def lazily(model):
    optimizers: dict[int, torch.optim.Optimizer] = {}

    def step(net, batch):
        if id(net) not in optimizers:
            optimizers[id(net)] = torch.optim.SGD(net.parameters(), 0.1, 0.9)
        optimizers[id(net)].zero_grad()
        loss_of(net, batch).backward()
        optimizers[id(net)].step()

    return step


STEPS = [WithMomentum, closure, scaled, method, partial, sharpness, with_globals, lazily]


def prepared(make, recompute: bool = False):
    """A model in the middle of its training: gradients and state of the optimiser are there."""
    torch.manual_seed(0)
    model = Net(recompute)
    step = make(model)
    for batch, _ in zip(batches(), range(3), strict=False):
        step(model, batch)
    assert any(p.grad is not None for p in model.parameters())
    return model, step


def everything(model, step, loader) -> Digest:
    held = [cell.cell_contents for cell in getattr(step, "__closure__", None) or ()]
    held += [step.func, *step.args] if isinstance(step, functools.partial) else []
    scope = getattr(step, "state", {})
    held += [scope[name] for name in ("model", "optimizer", "count", "history") if name in scope]
    roots = {f"held{number}": item for number, item in enumerate(held)}
    return Digest(model=model, step=step, data=loader.dataset, **roots)


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("make", STEPS)
def test_a_step_is_run_and_leaves_no_trace(make, recompute):
    model, step = prepared(make, recompute)
    loader = batches()
    generator = loader.generator.get_state()
    model.eval()
    before, process = everything(model, step, loader), process_state()
    report = vs.check(model, loader, step=step, select=["VS305"])
    assert before.differences(everything(model, step, loader)) == []
    assert process_state() == process
    assert torch.equal(generator, loader.generator.get_state())
    assert not [limit for limit in report.limits if "step" in limit]
    assert {run.name: run.ran for run in report.evidence}["step"]


@pytest.mark.parametrize("make", STEPS)
def test_training_goes_on_as_if_nothing_had_been(make):
    def trained(checks: bool) -> nn.Module:
        model, step = prepared(make)
        if checks:
            vs.check(model, batches(), step=step, select=["VS305"])
        torch.manual_seed(5)
        for batch in batches():
            step(model, batch)
        return model

    one, other = trained(False).state_dict(), trained(True).state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def rehearsed(model, step, loader) -> None:
    with Rehearsal(model, step, seed=0) as rehearsal:
        for batch in loader:
            rehearsal.step(rehearsal.network, batch)


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("make", STEPS)
def test_a_step_that_raises_leaves_no_trace_either(make, error):
    model, step = prepared(make)
    inner = nn.Linear.forward
    loader = batches()
    before, process = everything(model, step, loader), process_state()
    count = 0

    def failing(module, x):
        nonlocal count
        count += 1
        if count > 4:
            raise error
        return inner(module, x)

    nn.Linear.forward = failing
    try:
        with pytest.raises(type(error)):
            rehearsed(model, step, loader)
    finally:
        nn.Linear.forward = inner
    assert count > 4
    assert before.differences(everything(model, step, loader)) == []
    assert process_state() == process


def test_an_error_of_the_step_is_a_limit():
    model = Net()

    def step(net, batch):
        loss_of(net, batch).backward()
        raise ValueError("shapes do not fit")

    report = vs.check(model, batches(), step=step, select=["VS305"])
    assert any(
        "The training step failed" in limit and "shapes do not fit" in limit for limit in report.limits
    )
    assert report.findings == ()


# -- what is refused --------------------------------------------------------------------------------------


OPTIMIZER: torch.optim.Optimizer | None = None


class UsesGlobal:
    def __call__(self, model, batch):
        loss_of(model, batch).backward()
        OPTIMIZER.step()


def uses_global(model, tmp_path):
    global OPTIMIZER
    OPTIMIZER = torch.optim.SGD(model.parameters(), 0.1)
    return UsesGlobal()


def saves(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step(net, batch):
        loss_of(net, batch).backward()
        optimizer.step()
        torch.save(net.state_dict(), tmp_path / "model.pt")

    return step


def logs_to_a_file(model, tmp_path):
    file = io.StringIO()

    def step(net, batch):
        print(loss_of(net, batch).item(), file=file)

    return step


def draws_batches(model, tmp_path):
    more = iter(batches())

    def step(net, batch):
        loss_of(net, next(more)).backward()

    return step


def starts_a_generator(model, tmp_path):
    rates = (0.1 for _ in range(10))

    def step(net, batch):
        loss_of(net, batch).backward()
        next(rates)

    return step


def queues(model, tmp_path):
    waiting: queue.Queue = queue.Queue()

    def step(net, batch):
        waiting.put(loss_of(net, batch).item())

    return step


def has_a_thread(model, tmp_path):
    thread = threading.Thread(target=print)

    def step(net, batch):
        loss_of(net, batch).backward()
        thread.start()

    return step


@pytest.mark.parametrize(
    "make",
    [uses_global, saves, logs_to_a_file, draws_batches, starts_a_generator, queues, has_a_thread],
)
def test_a_step_that_could_leave_a_trace_is_not_run(make, tmp_path):
    model = Net()
    step = make(model, tmp_path)
    before, process = Digest(model=model, step=step, optimizer=OPTIMIZER), process_state()
    with pytest.raises(Unsafe), Rehearsal(model, step, seed=0):
        pass
    report = vs.check(model, batches(), step=step, select=["VS305"])
    assert any("The training step was not run: it " in limit for limit in report.limits), report.limits
    assert before.differences(Digest(model=model, step=step, optimizer=OPTIMIZER)) == []
    assert process_state() == process
    assert not (tmp_path / "model.pt").exists()


def test_what_a_step_reaches_on_hidden_ways_is_put_back_and_said():
    model = Net()
    hidden = types.ModuleType("hidden_state")
    hidden.optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss_of(model, next(iter(batches()))).backward()
    hidden.optimizer.step()
    sys.modules["hidden_state"] = hidden

    def step(net, batch):
        loss_of(net, batch).backward()
        sys.modules["hidden_state"].optimizer.step()

    try:
        before, process = Digest(model=model, state=vars(hidden.optimizer)), process_state()
        report = vs.check(model, batches(), step=step, select=["VS305"])
        assert before.differences(Digest(model=model, state=vars(hidden.optimizer))) == []
        assert process_state() == process
        assert any("ways of its own" in limit for limit in report.limits), report.limits
        assert not {run.name: run.ran for run in report.evidence}["step"]
    finally:
        del sys.modules["hidden_state"]


def test_a_step_is_a_function_and_needs_batches():
    with pytest.raises(vs.VarshiftError, match="must be a function of model and batch"):
        vs.check(Net(), batches(), step=3)
    report = vs.check(Net(), step=WithMomentum(Net()), select=["VS305"])
    assert {run.code: run.reason for run in report.rules}["VS305"] == "needs step (no data were given)"
