"""The trials of the shuffling experiments: networks with batch norm under each order of the data."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varshift.data import RandomReshuffleSampler, SingleShuffleSampler, generator_of
from varshift.trials import Measurements, Trial, TrialError, Workbench
from varshift_lab.networks import linear_bn
from varshift_lab.recipes._shuffling_data import BlockToy, GaussianSigns, ImageVectors, PlaneToy, Vectors
from varshift_lab.recipes._shuffling_optima import (
    distorted,
    full_batch_optimum,
    normalised,
    reshuffle_optimum,
    separation,
    single_shuffle_optimum,
)
from varshift_lab.training import Checkpoints

Order = Literal["single", "reshuffle", "batches", "replacement"]

# Streams of random numbers apart from the data's, which is 0.
_WEIGHTS, _BATCHES, _REPLACEMENT, _FRESH = 1, 2, 3, 4
_FRESH_PARTITIONS = 4


@dataclass(frozen=True)
class ShufflingTrial(Trial):
    """Trains a linear or ReLU network with batch norms by plain SGD and compares its losses on the way.

    Three losses on the same training set: on its own batches (the partition of the first epoch, batch
    statistics), which is what single shuffle minimises; with statistics of the whole set in one batch, the
    training risk ("GD risk") of the paper; and in eval mode.

    Attributes:
        data: The data.
        depth: Linear layers; 1 is batch norm and one linear layer, of a single output for two classes.
        width: Units of hidden layers.
        relu: ReLU behind each hidden batch norm.
        order: ``"single"``: one permutation for ever; ``"reshuffle"``: a fresh one each epoch;
            ``"batches"``: fixed batches, in an order drawn anew each epoch; ``"replacement"``: every batch
            drawn anew with replacement.
        batch_size: Samples per batch.
        learning_rate: Learning rate, constant.
        epochs: Epochs under this order.
        cure: Epochs of ``"reshuffle"`` behind them.
        points: How often the losses are measured, at equal distances.
        shift: Whether batch norms have a bias, as torch's do; the theory has none.
        eps: Of the batch norms.
    """

    data: GaussianSigns | ImageVectors | BlockToy
    depth: int = 1
    width: int = 256
    relu: bool = False
    order: Order = "reshuffle"
    batch_size: int = 4
    learning_rate: float = 0.05
    epochs: int = 300
    cure: int = 0
    points: int = 20
    shift: bool = True
    eps: float = 1e-5

    @property
    def title(self) -> str:
        """Network, batch size and order."""
        kind = "ReLU" if self.relu else "linear"
        return f"{kind} {self.depth}, batches of {self.batch_size}, {self.order}, seed {self.seed}"

    @property
    def measured_at(self) -> tuple[float, ...]:
        """Numbers of epochs after which the losses are measured."""
        total = self.epochs + self.cure
        points = min(self.points, total)
        return tuple(float(round(total * (point + 1) / points)) for point in range(points))

    def run(self, workbench: Workbench) -> Measurements:
        """Trains it and measures; losses, errors in %, and how each went, under names that end in `_history`.

        ``own_loss``, ``full_batch_loss`` and ``eval_loss`` are those above; ``printed_loss`` is the mean over
        the last epoch's steps, as a training loop prints it; ``full_batch_lowest`` the lowest training risk
        on the way; ``memorisation`` the loss on partitions drawn anew minus that on the last one;
        ``norm``, for depth 1, that of the weights times the norm's scales.
        """
        data = self.data.load(self.seed, workbench)
        model = self._network(data).to(workbench.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        first = self._batches(0, len(data.x), workbench.device)
        saved = Checkpoints(workbench.folder, self.key, lambda *_: None)
        state = saved.latest() or {"epoch": 0, "history": {}, "model": model.state_dict()}
        model.load_state_dict(state["model"])
        history: dict[str, list[float]] = state["history"]
        for epoch in range(state["epoch"], self.epochs + self.cure):
            batches = self._batches(epoch, len(data.x), workbench.device)
            model.train()
            printed = torch.zeros((), device=workbench.device)
            for batch in batches:
                loss = _loss(model(data.x[batch]), data.y[batch])
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    printed += loss
                    torch._foreach_add_(parameters, gradients, alpha=-self.learning_rate)  # pyright: ignore
            if epoch + 1 in self.measured_at:
                now = {"printed_loss": float(printed) / len(batches), **self._losses(model, data, first)}
                if not all(math.isfinite(value) for value in now.values()):
                    raise TrialError(
                        f"training diverged by epoch {epoch + 1}: use a learning rate below "
                        f"{self.learning_rate:g}."
                    )
                workbench.record({"epoch": epoch + 1, **now})
                for name, value in now.items():
                    history.setdefault(f"{name}_history", []).append(value)
                saved.save(epoch + 1, {"epoch": epoch + 1, "history": history, "model": model.state_dict()})
        batches = self._batches(self.epochs + self.cure - 1, len(data.x), workbench.device)
        return {
            **{name.removesuffix("_history"): values[-1] for name, values in history.items()},
            **history,
            "full_batch_lowest": min(history["full_batch_loss_history"]),
            "memorisation": self._memorisation(model, data, batches),
        }

    def _network(self, data: Vectors) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_of(self.seed, _WEIGHTS).initial_seed())
            model = linear_bn(
                self.depth,
                1 if data.classes == 2 else data.classes,
                in_features=data.x.shape[1],
                width=self.width,
                activation="relu" if self.relu else None,
                norm_options={"eps": self.eps},
            )
            for layer in model.modules():
                if isinstance(layer, nn.Linear) and self.depth == 1:
                    nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                if isinstance(layer, nn.BatchNorm1d) and not self.shift:
                    layer.bias.requires_grad_(False)
        return model

    def _batches(self, epoch: int, samples: int, device: str) -> list[Tensor]:
        """The batches of an epoch; samples that do not fill a last one are left out."""
        if epoch >= self.epochs or self.order == "reshuffle":
            order = _permutation(RandomReshuffleSampler(samples, seed=self.seed), epoch)
        elif self.order == "replacement":
            order = torch.randint(samples, (samples,), generator=self._stream(_REPLACEMENT, epoch))
        else:
            order = _permutation(SingleShuffleSampler(samples, seed=self.seed), epoch)
        full = order[: samples - samples % self.batch_size].view(-1, self.batch_size)
        if self.order == "batches" and epoch < self.epochs:
            full = full[torch.randperm(len(full), generator=self._stream(_BATCHES, epoch))]
        return list(full.to(device))

    def _stream(self, stream: int, epoch: int) -> torch.Generator:
        return generator_of(generator_of(self.seed, stream).initial_seed(), epoch)

    @torch.no_grad()
    def _losses(self, model: nn.Module, data: Vectors, first: list[Tensor]) -> dict[str, float]:
        copied = copy.deepcopy(model).eval()
        outputs, test_outputs = copied(data.x), copied(data.test_x)
        losses = {
            "eval_loss": float(_loss(outputs, data.y)),
            "eval_error": _error(outputs, data.y),
            "test_loss": float(_loss(test_outputs, data.test_y)),
            "test_error": _error(test_outputs, data.test_y),
            "own_loss": _over(copied, data, first),
        }
        whole = copied.train()(data.x)
        losses |= {"full_batch_loss": float(_loss(whole, data.y)), "full_batch_error": _error(whole, data.y)}
        if self.depth == 1:
            losses["norm"] = float(_collapsed(model).norm())
        return losses

    @torch.no_grad()
    def _memorisation(self, model: nn.Module, data: Vectors, latest: list[Tensor]) -> float:
        """Loss on batches that are drawn anew minus that on the batches used last; weights stand still."""
        copied = copy.deepcopy(model)
        fresh = [
            torch.randperm(len(data.x), generator=self._stream(_FRESH, number)).to(data.x.device)
            for number in range(_FRESH_PARTITIONS)
        ]
        batches = [batch for order in fresh for batch in order.split(self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        return _over(copied, data, full) - _over(copied, data, latest)


def _collapsed(model: nn.Module) -> Tensor:
    """``M = W Gamma`` of a network of depth 1."""
    (norm,) = (module for module in model.modules() if isinstance(module, nn.BatchNorm1d))
    (linear,) = (module for module in model.modules() if isinstance(module, nn.Linear))
    return linear.weight * norm.weight


def _permutation(sampler: Any, epoch: int) -> Tensor:
    sampler.set_epoch(epoch)
    return torch.tensor(list(sampler))


def _loss(outputs: Tensor, classes: Tensor) -> Tensor:
    if outputs.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(outputs[:, 0], classes.to(outputs.dtype))
    return F.cross_entropy(outputs, classes)


def _error(outputs: Tensor, classes: Tensor) -> float:
    chosen = (outputs[:, 0] > 0).long() if outputs.shape[1] == 1 else outputs.argmax(1)
    return 100 * float((chosen != classes).double().mean())


def _over(model: nn.Module, data: Vectors, batches: list[Tensor]) -> float:
    """Mean loss over batches, in training mode."""
    model.train()
    return float(torch.stack([_loss(model(data.x[b]), data.y[b]) for b in batches]).double().mean())


@dataclass(frozen=True)
class RegressionTrial(Trial):
    """Linear regression behind a batch norm by SGD: which of the optima does it reach?

    Inputs are Gaussian, the target is their sum. The network ``W Gamma BN(x)`` starts at ``W = 0``,
    ``Gamma = I``; the learning rate at epoch e is ``learning_rate / (1 + e / 200)``.

    Attributes:
        samples: Samples, a multiple of the batch size.
        features: Features.
        batch_size: Samples per batch.
        order: ``"single"`` or ``"reshuffle"``.
        learning_rate: Learning rate at the start.
        epochs: Epochs.
    """

    samples: int = 120
    features: int = 10
    batch_size: int = 4
    order: Literal["single", "reshuffle"] = "reshuffle"
    learning_rate: float = 0.02
    epochs: int = 2000

    def run(self, workbench: Workbench) -> Measurements:
        """Trains it and measures relative distances, in per cent, to the three optima; always on the CPU."""
        generator = generator_of(self.seed, 0)
        x = torch.randn(self.samples, self.features, generator=generator, dtype=torch.float64)
        y = x.sum(1, keepdim=True)
        kind = SingleShuffleSampler if self.order == "single" else RandomReshuffleSampler
        sampler = kind(self.samples, seed=self.seed)
        weight = torch.zeros(self.features, dtype=torch.float64)
        scale = torch.ones_like(weight)
        for epoch in range(self.epochs):
            order = _permutation(sampler, epoch)
            rate = 2 * self.learning_rate / (1 + epoch / 200) / self.batch_size
            inputs = normalised(x[order].unflatten(0, (-1, self.batch_size)))
            targets = y[order].view(-1, self.batch_size)
            for z, target in zip(inputs, targets, strict=True):
                slope = (z @ (weight * scale) - target) @ z * rate
                weight, scale = weight - slope * scale, scale - slope * weight
        reached = (weight * scale)[None]
        own = _permutation(SingleShuffleSampler(self.samples, seed=self.seed), 0)
        optima = {
            "to_single": single_shuffle_optimum(x, y, own, self.batch_size),
            "to_reshuffle": reshuffle_optimum(x, y, self.batch_size, torch.Generator().manual_seed(0)),
            "to_full_batch": full_batch_optimum(x, y),
        }
        return {name: 100 * float((reached - m).norm() / m.norm()) for name, m in optima.items()}


@dataclass(frozen=True)
class ScalarOptimaTrial(Trial):
    """Single-shuffle optima of one Gaussian feature that is its own target, over random partitions.

    Attributes:
        samples: Samples.
        batch_size: Samples per batch.
        partitions: Partitions.
    """

    samples: int = 1024
    batch_size: int = 4
    partitions: int = 200

    def run(self, workbench: Workbench) -> Measurements:
        """Bias against the optimum of full batches, in per cent, and the deviation over partitions."""
        generator = generator_of(self.seed, 0)
        x = torch.randn(self.samples, generator=generator, dtype=torch.float64)
        full = self.samples - self.samples % self.batch_size
        orders = torch.rand(self.partitions, self.samples, generator=generator).argsort(1)[:, :full]
        batches = x[orders].view(self.partitions, -1, self.batch_size)
        optima = batches.std(2, correction=0).mean(1)
        whole = x.std(correction=0)
        return {"bias": 100 * float(optima.mean() / whole - 1), "deviation": float(optima.std())}


@dataclass(frozen=True)
class SeparabilityTrial(Trial):
    """How often single shuffle makes a toy set separable, and in a direction that is wrong for the set.

    Attributes:
        toy: The toy set.
        batch_size: Samples per batch.
        orders: Random permutations; None for all of them, whatever the seed.
    """

    toy: PlaneToy | BlockToy
    batch_size: int = 2
    orders: int | None = None

    def run(self, workbench: Workbench) -> Measurements:
        """Shares of the permutations, in per cent; always on the CPU."""
        x, sign = self.toy.points()
        whole = normalised(x) * sign[:, None]
        generator = generator_of(self.seed, 0)
        if self.orders is None:
            orders = [torch.tensor(order) for order in permutations(range(len(x)))]
        else:
            orders = [torch.randperm(len(x), generator=generator) for _ in range(self.orders)]
        kinds, against = [], 0
        for order in orders:
            order = order[: len(x) - len(x) % self.batch_size]
            found = separation(distorted(x, order, self.batch_size) * sign[order, None])
            kinds.append(found.kind)
            against += bool((whole @ found.direction < -1e-9).any())
        shares = {kind.replace(" ", "_"): 100 * kinds.count(kind) / len(kinds) for kind in _KINDS}
        return {**shares, "against": 100 * against / len(kinds)}


_KINDS = ("separable", "partly separable", "inseparable")
