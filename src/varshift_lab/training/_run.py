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
from varshift.data._epochs import generator_of
from varshift_lab.data import EpochLoader, Images
from varshift_lab.studies import TrialError, Workbench
from varshift_lab.training._checkpoints import Checkpoints
from varshift_lab.training._cost import flops_per_sample
from varshift_lab.training._history import History
from varshift_lab.training._launch import make_fabric
from varshift_lab.training._probe import look
from varshift_lab.training._settings import TrainingSettings
from varshift_lab.training._treatment import Treatment

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Apart from the numbers that the same seed and epoch give the order and the augmentation.
_MASKS = 0x6D61736B73


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
        self.history = History()
        self._images = images.to(self.fabric.device)
        # The layout of tensor cores; processors gain nothing by it.
        self._channels_last = self.fabric.device.type == "cuda"
        layout = torch.channels_last if self._channels_last else torch.preserve_format
        network.to(device=self.fabric.device, memory_format=layout).train()
        flops = flops_per_sample(network, self._images)
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
        for name, one in self._kept.items() if saved else ():
            one.load_state_dict(saved[name])
        self.model, self.optimizer = self.fabric.setup(self._compiled(network), optimizer)
        self._sizes: list[int] = []
        self._began = 0.0

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

    def _compiled(self, network: nn.Module) -> nn.Module:
        if not self._workbench.compile:
            return network
        # Recorded graphs of launches help small networks, which launch more than they compute.
        graphs = self.fabric.device.type == "cuda" and self.fabric.world_size == 1
        return torch.compile(network, mode="reduce-overhead" if graphs else "default")  # type: ignore[return-value]

    def _name(self) -> str:
        shapes = {name: tuple(one.shape) for name, one in self._network.state_dict().items()}
        told = (self._settings, self._seed, self._treatment, len(self._images), shapes)
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def _passed_over(self, name: str, reason: str) -> None:
        self._record(event="checkpoint passed over", file=name, reason=reason)

    def _record(self, **event: Any) -> None:
        if self.fabric.is_global_zero:
            self._workbench.record(event)

    # ------------------------------------------------------------------ an epoch

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The steps of an epoch: inputs, labels and ids; the learning rate is set before each."""
        self._began, self._sizes = time.perf_counter(), []
        self._network.train()
        self._loader.set_epoch(epoch)
        if hasattr(self._memory, "set_epoch"):
            self._memory.set_epoch(epoch)
        masks = generator_of(self._seed ^ _MASKS, (epoch << 20) + self.fabric.global_rank)
        torch.manual_seed(masks.initial_seed())
        for step, ((inputs, labels), ids) in enumerate(self._loader, epoch * len(self._loader)):
            share = self._settings.rate(step, self._steps) / self._settings.learning_rate
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
            self._sizes.append(len(labels))
            yield inputs, labels, ids

    def loss(self, outputs: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The treatment's loss, or that of the settings."""
        found = self._treatment.loss(outputs, labels, ids, self._memory)
        if found is None:
            return F.cross_entropy(outputs, labels, label_smoothing=self._settings.label_smoothing)
        return found

    def end_epoch(self, epoch: int, losses: list[Tensor], hits: list[Tensor]) -> None:
        """Adds up an epoch, where the device is waited for the first time, probes and saves.

        Raises:
            TrialError: If the loss is not finite, or a checkpoint cannot be written.
        """
        history, settings = self.history, self._settings
        found = torch.stack([torch.stack(losses).float(), torch.stack(hits).float()]).cpu().double()
        sizes = torch.tensor(self._sizes, dtype=torch.float64)
        totals = torch.stack([found[0] @ sizes, found[1].sum(), sizes.sum()])
        if self.fabric.world_size > 1:
            totals = self.fabric.all_reduce(totals.to(self.fabric.device), reduce_op="sum").cpu()  # type: ignore[union-attr]
            self._average_buffers()
            if hasattr(self._memory, "synchronise"):
                self._memory.synchronise()
        seconds = time.perf_counter() - self._began
        loss, error = float(totals[0] / totals[2]), 100 * (1 - float(totals[1] / totals[2]))
        rate = settings.rate((epoch + 1) * len(self._loader) - 1, self._steps)
        if not totals[0].isfinite():
            bad = (~found[0].isfinite()).nonzero()
            first = f", first in step {int(bad[0]) + 1} of {len(losses)}" if len(bad) else ""
            raise TrialError(
                f"training diverged in epoch {epoch + 1} of {settings.epochs}: the loss is {loss}{first}, at a "
                f"learning rate of {rate:g}. Use one below {settings.learning_rate:g}, or clip_norm."
            )
        history.loss.append(loss)
        history.error.append(error)
        history.rate.append(rate)
        history.seconds.append(seconds)
        speed = float(totals[2]) / seconds
        self._record(
            event="epoch",
            epoch=epoch + 1,
            loss=loss,
            error=error,
            rate=rate,
            seconds=seconds,
            images_per_second=speed,
        )
        self._look(epoch + 1)
        if self.fabric.is_global_zero:
            state = {name: one.state_dict() for name, one in self._kept.items()}
            self._checkpoints.save(epoch + 1, state)

    def _look(self, epochs: int) -> None:
        settings = self._settings
        if not settings.probe_every or (epochs % settings.probe_every and epochs < settings.epochs):
            return
        try:
            probe = look(self._network, self._images, settings.probe_samples, settings.batch_size, epochs)
        except VarshiftError as error:
            self._record(event="probe failed", epoch=epochs, reason=str(error))
            return
        self.history.probes.append(probe)
        self._record(
            event="probe",
            epoch=epochs,
            shift=probe.shift,
            train_mode_error=probe.train_mode_error,
            eval_mode_error=probe.eval_mode_error,
        )

    def _average_buffers(self) -> None:
        """Running statistics become the means over the processes, so that all go on and evaluate alike."""
        for buffer in self._network.buffers():
            if buffer.is_floating_point():
                buffer.copy_(self.fabric.all_reduce(buffer, reduce_op="mean"))  # type: ignore[arg-type]
