"""A run under way: all that training changes, set up, saved and taken up again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varshift import VarshiftError
from varshift.trials import TrialError, Workbench
from varshift_lab.data import EpochLoader, Images
from varshift_lab.training._checkpoints import Checkpoints
from varshift_lab.training._cost import flops_per_sample
from varshift_lab.training._history import History
from varshift_lab.training._launch import make_fabric
from varshift_lab.training._probe import look
from varshift_lab.training._random import seed_masks
from varshift_lab.training._settings import TrainingSettings
from varshift_lab.training._tally import Tally
from varshift_lab.training._treatment import Treatment

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Run:
    """What `fit` works on.

    Nothing random is kept from epoch to epoch: order, augmentation and masks of an epoch follow from the seed
    and its number. So a run that was interrupted goes on, from the beginning of the epoch that it was in, to
    the very same weights.

    Attributes:
        fabric: The device, or devices, and the precision.
        model: The network as it is called in training: compiled, or shared by processes.
        optimizer: The optimiser, in fabric's wrapper.
        history: What happened so far.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Images,
        settings: TrainingSettings,
        seed: int,
        treatment: Treatment,
        workbench: Workbench,
    ) -> None:
        self._network, self._settings, self._seed = network, settings, seed
        self._treatment, self._workbench = treatment, workbench
        self.fabric: Fabric = make_fabric(workbench)
        self._images = images.to(self.fabric.device)
        self._move_network()
        self.history = History()
        flops = flops_per_sample(network, self._images, max(settings.batch_size // self.fabric.world_size, 1))
        treatment.prepare(network)
        optimizer = settings.make_optimizer(network)
        parts = treatment.attach(network, optimizer, settings)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._memory: Any = treatment.remember(self._images, settings)
        self._loader = self._make_loader()
        self._steps = settings.epochs * len(self._loader)
        self.history.pflop = flops * len(self._loader) * settings.batch_size / 1e15
        self._kept: dict[str, Any] = {"network": network, "optimizer": optimizer, "history": self.history}
        self._kept |= {f"part {number}": part for number, part in enumerate(parts)}
        self._kept |= {} if self._memory is None else {"memory": self._memory}
        self._checkpoints = Checkpoints(workbench.folder, self._name(), self._passed_over)
        saved = self._checkpoints.latest()
        if saved is not None:
            for name, one in self._kept.items():
                one.load_state_dict(saved[name])
        self.model, self.optimizer = self.fabric.setup(self._called(), optimizer)
        self._began = 0.0

    # ------------------------------------------------------------------ setting up

    @property
    def _channels_last(self) -> bool:
        """Convolutions are faster with channels innermost, on tensor cores and on processors."""
        return self.fabric.device.type in ("cuda", "cpu")

    def _move_network(self) -> None:
        self._network.to(self.fabric.device).train()
        if self._channels_last:
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _make_loader(self) -> EpochLoader:
        settings, processes = self._settings, self.fabric.world_size
        if settings.batch_size % processes:
            raise ValueError(
                f"batch_size={settings.batch_size} must be a multiple of the {processes} processes that "
                "share it."
            )
        sampler = self._treatment.sampler(self._images, settings, self._seed, self._memory)
        return EpochLoader(
            self._images,
            settings.batch_size // processes,
            order=settings.order if sampler is None else sampler,
            augmentation=settings.augmentation,
            drop_last=settings.drop_last,
            seed=self._seed,
            channels_last=self._channels_last,
            ids=True,
        )

    def _called(self) -> Any:
        if not self._workbench.compile:
            return self._network
        # Recorded graphs of launches help small networks, which launch more than they compute.
        graphs = self.fabric.device.type == "cuda" and self.fabric.world_size == 1
        return torch.compile(self._network, mode="reduce-overhead" if graphs else "default")

    def _name(self) -> str:
        shapes = {name: tuple(one.shape) for name, one in self._network.state_dict().items()}
        told = (self._settings, self._seed, self._treatment, len(self._images), shapes)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ an epoch

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The steps of an epoch: inputs, labels and ids; the learning rate is set before each."""
        self._began = time.perf_counter()
        self._network.train()
        self._loader.set_epoch(epoch)
        if hasattr(self._memory, "set_epoch"):
            self._memory.set_epoch(epoch)
        seed_masks(self._seed, epoch, self.fabric.global_rank)
        for step, ((inputs, labels), ids) in enumerate(self._loader, epoch * len(self._loader)):
            share = self._settings.rate(step, self._steps) / self._settings.learning_rate
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
            yield inputs, labels, ids

    def loss(self, outputs: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The treatment's loss, or that of the settings."""
        found = self._treatment.loss(outputs, labels, ids, self._memory)
        if found is None:
            return F.cross_entropy(outputs, labels, label_smoothing=self._settings.label_smoothing)
        return found

    def end_epoch(self, epoch: int, tally: Tally) -> None:
        """Adds up an epoch, probes the network and saves it.

        Raises:
            TrialError: If the loss is not finite, or a checkpoint cannot be written.
        """
        loss, error, samples = tally.close(self.fabric)
        seconds = time.perf_counter() - self._began
        rate = self._settings.rate((epoch + 1) * len(self._loader) - 1, self._steps)
        if loss - loss != 0:
            raise TrialError(
                f"training diverged in epoch {epoch + 1} of {self._settings.epochs}: the loss is {loss}"
                f"{tally.first_bad()}, at a learning rate of {rate:g}. Use one below "
                f"{self._settings.learning_rate:g}, or clip_norm."
            )
        if self.fabric.world_size > 1:
            self._agree()
        self.history.add(loss, error, rate, seconds)
        notes = self._treatment.note(self._network, self._images, self._memory)
        for name, value in notes.items():
            self.history.notes.setdefault(name, []).append(float(value))
        figures = {"loss": loss, "error": error, "rate": rate, "images_per_second": samples / seconds}
        self._record("epoch", epoch=epoch + 1, seconds=seconds, **figures, **notes)
        self._look(epoch + 1)
        if self.fabric.is_global_zero:
            self._checkpoints.save(epoch + 1, {name: one.state_dict() for name, one in self._kept.items()})

    def _agree(self) -> None:
        """Running statistics become their means over the processes, so that all go on and evaluate alike."""
        for buffer in self._network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.as_tensor(self.fabric.all_reduce(buffer, reduce_op="mean")))
        if hasattr(self._memory, "synchronise"):
            self._memory.synchronise()

    def _look(self, epochs: int) -> None:
        every, last = self._settings.probe_every, epochs == self._settings.epochs
        if not every or (epochs % every and not last):
            return
        try:
            probe = look(
                self._network, self._images, self._settings.probe_samples, self._settings.batch_size, epochs
            )
        except VarshiftError as error:  # a network with a dead layer may be worth the training, still
            self._record("probe failed", epoch=epochs, reason=str(error))
            return
        self.history.probes.append(probe)
        self._record("probe", **probe.state_dict())

    # ------------------------------------------------------------------ events

    def _passed_over(self, name: str, reason: str) -> None:
        self._record("checkpoint passed over", file=name, reason=reason)

    def _record(self, event: str, **figures: Any) -> None:
        if self.fabric.is_global_zero:
            self._workbench.record({"event": event, **figures})
