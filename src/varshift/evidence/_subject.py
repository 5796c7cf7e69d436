"""The network under examination and what its user passed with it: the live objects that providers share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from varshift.model import Forward, Norm, find_norms
from varshift.probe import draw_batches, model_device

if TYPE_CHECKING:
    from varshift.flow import Capture
    from varshift.probe import Loss, Progress

Shape = Sequence[int]
_EXAMPLES = 64  # samples made up for a shape; a capture uses as many as suit their size


@dataclass(eq=False)
class Subject:
    """A network, its inputs and the settings of a check; see `varshift.check` for what is not described here.

    Attributes:
        network: The unwrapped network.
        norms: Its norms.
        batches: The batches that were drawn from the loader.
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

    def __post_init__(self) -> None:
        self.device = self.device or model_device(self.network)
        self.norms: tuple[Norm, ...] = find_norms(self.network)
        self.batches: tuple[Any, ...] = ()
        self.captured: Capture | None = None
        self.captured_example: Any = None
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

    def example(self) -> Any:
        """One batch to capture the network with: the first of the loader, the example, or one made up."""
        if self.batches:
            return self.batches[0]
        return self.example_inputs if self.shape is None else self._made_up(self.shape)

    def announce(self, stage: str) -> None:
        """Says what is being done now, where somebody wants to know."""
        if self.progress is not None:
            self.progress(stage, 0, None)

    def _made_up(self, shape: Any) -> Any:
        count = _EXAMPLES if self.learned else 2
        shapes = [shape] if all(isinstance(size, int) for size in shape) else list(shape)
        parameter = next((p for p in self.network.parameters() if p.is_floating_point()), None)
        dtype = parameter.dtype if parameter is not None else torch.float32
        examples = tuple(torch.randn(count, *sizes, device=self.device).to(dtype) for sizes in shapes)
        return examples[0] if len(examples) == 1 else examples
