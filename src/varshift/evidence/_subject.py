"""The network under examination and what its user passed with it: the live objects that providers share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from varshift.flow import recognise_norms
from varshift.model import Call, Forward, Norm, Reader, Shadow, find_norms
from varshift.moments import most_samples
from varshift.probe import FewRunner, batch_size_of, draw_batches, model_device, try_readings

if TYPE_CHECKING:
    from varshift.evidence._history import History
    from varshift.flow import Capture, RecognisedNorms
    from varshift.probe import Loss, Progress

Shape = Sequence[int]
_Item = TypeVar("_Item")
# What a step of the gap costs at least, as a share of the loss and in standard errors, to be looked into.
GATE_SHARE, GATE_ERRORS = 0.05, 2.0
_EXAMPLES = 64  # samples made up for a shape; a capture uses as many as suit their size


@dataclass(eq=False)
class Subject:
    """A network, its inputs and the settings of a check; see `varshift.check` for what is not described here.

    Attributes:
        network: The unwrapped network.
        norms: Its norms; once there is a capture, those too that are known by what they do only.
        recognised: What the capture says of the norms, None without one.
        shadow: What passes run on in place of the network, while evidence is made.
        batches: The batches that were drawn from the loader.
        deploy_batches: Those that were drawn from the loader of deployment.
        reader: Makes calls of them.
        captured: The capture, once there is one, with the example and the number of samples that it used.
    """

    network: nn.Module
    loader: Iterable[Any] | None = None
    example_inputs: Any = None
    shape: Shape | Sequence[Shape] | None = None
    forward: Forward | None = None
    loss: Loss | None = None
    max_batches: int = 16
    device: torch.device | str | None = None
    estimator: Literal["pooled", "ema"] = "pooled"
    seed: int = 0
    progress: Progress | None = None
    deploy: Iterable[Any] | None = None
    intended: Sequence[str] = ()
    references: tuple[nn.Module, ...] = ()
    step: Callable[[nn.Module, Any], Any] | None = None
    optimizer: torch.optim.Optimizer | None = None
    history: History | None = None

    def __post_init__(self) -> None:
        self.device = self.device or model_device(self.network)
        self.norms: tuple[Norm, ...] = find_norms(self.network)
        self.shadow: Shadow
        self.batches: tuple[Any, ...] = ()
        self.deploy_batches: tuple[Any, ...] = ()
        self.reader = Reader(self.network, self.forward)
        self._settled: set[bool] = set()
        self.recognised: RecognisedNorms | None = None
        self.captured: Capture | None = None
        self.captured_example: Call | None = None
        self.captured_samples = 0

    @property
    def has_inputs(self) -> bool:
        """Whether there is anything to run the network on."""
        return any(value is not None for value in (self.loader, self.example_inputs, self.shape))

    @property
    def learned(self) -> bool:
        """Whether some norm has learned its statistics."""
        return any(norm.readable and not norm.never_moved for norm in self.norms)

    def draw(self, count: int) -> None:
        """Draws the first batches, at most `max_batches`; a loader is gone through once only.

        Raises:
            DataError: If the loader yields nothing, or inputs that are not finite or of an unknown structure.
        """
        if count and self.loader is not None and not self.batches:
            self.batches = draw_batches(self.loader, min(count, self.max_batches), self.device)

    def draw_deployed(self) -> None:
        """Draws the batches of deployment, as many as of the loader."""
        if self.deploy is not None and not self.deploy_batches:
            self.deploy_batches = draw_batches(self.deploy, self.max_batches, self.device)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The batches that were drawn, each split and counted."""
        return tuple(map(self.reader.read, self.batches))

    @property
    def deploy_calls(self) -> tuple[Call, ...]:
        """The batches of deployment, likewise."""
        return tuple(map(self.reader.read, self.deploy_batches))

    def settle(self, limits: list[str], *, measures: bool) -> None:
        """Finds out by a trial how batches are to be read, before anything costly runs on them.

        Args:
            limits: What to say of it is added here.
            measures: Whether all states will run, so that the model must run and targets must fit.

        Raises:
            ModelError: If the model does not run on the first batch, or `loss` fails on its outputs.
            DataError: If its targets do not fit.
        """
        if not self.batches or measures in self._settled or True in self._settled:
            return
        self._settled.add(measures)
        trial = try_readings(
            self.shadow,
            self.reader,
            self.batches,
            forward=self.forward,
            loss=self.loss,
            batch_size=batch_size_of(self.loader),
            compares=measures,
        )
        limits.extend(limit for limit in trial.limits if limit not in limits)
        if trial.default_loss:
            self.loss = None
        if trial.error is not None and measures:
            raise trial.error

    def example(self) -> Call:
        """One batch to capture the network with: the first of the loader, the example, or one made up."""
        if self.batches:
            return self.reader.read(self.batches[0])
        example = self.example_inputs if self.shape is None else self._made_up(self.shape)
        # An example has no targets: what the network can take of it are inputs.
        readings = self.reader.readings(example)
        alone = (reading for reading in readings if reading is None or reading.target is None)
        return self.reader.read_as(next(alone, readings[0]), example)

    def runner(self) -> FewRunner:
        """Runs the shadow on other batches than those that were drawn."""
        call = self.reader.read(self.batches[0])
        return FewRunner(self.shadow, self.recognise(), call, forward=self.forward, loss=self.loss)

    def recognise(self) -> RecognisedNorms:
        """The norms written by hand: as the capture recognised them, else looked for now."""
        if self.recognised is None:
            call = self.reader.read(self.batches[0])
            self.recognised = recognise_norms(self.shadow.network, call, self.forward)
            self.shadow.fresh()
        return self.recognised

    def announce(self, stage: str) -> None:
        """Says what is being done now, where somebody wants to know."""
        if self.progress is not None:
            self.progress(stage, 0, None)

    def _made_up(self, shape: Any) -> Any:
        shapes = [shape] if all(isinstance(size, int) for size in shape) else list(shape)
        count = min(_EXAMPLES, most_samples(shapes)) if self.learned else 2
        parameter = next((p for p in self.network.parameters() if p.is_floating_point()), None)
        dtype = parameter.dtype if parameter is not None else torch.float32
        examples = tuple(torch.randn(count, *sizes, device=self.device).to(dtype) for sizes in shapes)
        return examples[0] if len(examples) == 1 else examples


def evenly(items: Sequence[_Item], count: int) -> list[_Item]:
    """Some of the items, spread evenly over all of them."""
    if len(items) <= count:
        return list(items)
    return [items[round(number * (len(items) - 1) / (count - 1))] for number in range(count)]
