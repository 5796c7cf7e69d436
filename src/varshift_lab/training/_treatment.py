"""What a paper adds to training, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from varshift.data import EpochSampler
from varshift_lab.data import Images
from varshift_lab.training._settings import TrainingSettings


class Part(Protocol):
    """What is kept in checkpoints, beside the network and the optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Goes on from there."""
        ...


@dataclass(frozen=True)
class Treatment:
    """What a paper adds to training; this one adds nothing.

    A paper's is a frozen dataclass of plain values that derives from it and overrides what it needs. The
    methods are called in this order, all but the last two once per run:

    1. `prepare`, with the network on its device and nothing else there yet;
    2. `attach`, with the optimiser of the settings;
    3. `remember`, with the training images;
    4. `sampler`;
    5. `loss`, in every step;
    6. `note`, after every epoch.
    """

    def prepare(self, model: nn.Module) -> None:
        """Changes the network in place before training, such as its weights."""

    def attach(self, model: nn.Module, optimizer: Optimizer, settings: TrainingSettings) -> Sequence[Part]:
        """Adds parts to the optimiser and returns those that have a state; groups may be changed, too."""
        return ()

    def remember(self, images: Images, settings: TrainingSettings) -> Part | None:
        """Makes what is remembered of each sample, such as `varshift.data.ActiveBias`; None for nothing.

        If it has a method ``set_epoch``, it is told the number of each epoch, and if it has one
        ``synchronise``, it is called after each.
        """
        return None

    def sampler(
        self, images: Images, settings: TrainingSettings, seed: int, state: Any
    ) -> EpochSampler | None:
        """The order of training; None for that of the settings.

        Args:
            images: The training images.
            settings: The settings.
            seed: Seed of the order.
            state: What `remember` made.
        """
        return None

    def loss(self, outputs: Tensor, labels: Tensor, ids: Tensor, state: Any) -> Tensor | None:
        """The loss of a step, without a wait for the device; None for the cross-entropy of the settings.

        Args:
            outputs: ``(N, classes)``, float32.
            labels: ``(N,)``.
            ids: ``(N,)``, places of the samples in the training set.
            state: What `remember` made.
        """
        return None

    def note(self, model: nn.Module, images: Images, state: Any) -> Mapping[str, float]:
        """Figures of its own after an epoch, always of the same names; the network stays as it is.

        The last ones become measurements, and all of them lists with ``_history`` behind the name.

        Args:
            model: The network.
            images: The training images, with `Images.wrong` labels known.
            state: What `remember` made.
        """
        return {}
