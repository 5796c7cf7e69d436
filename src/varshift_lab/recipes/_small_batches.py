"""Norms that see few samples of a batch: what the papers on filter response norm and Kalman norm share.

Both papers cut the batch that a gradient is made of into what a norm sees: the images of one of 8 devices, or
slices of a batch of 128. So do these trials, by the `splits` of a norm; nothing else differs between two
sizes. At the scales smoke and laptop the two recipes ask for the same trials, which run once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from varshift.nn import RenormClipping
from varshift_lab.data import Augmentation
from varshift_lab.studies import Series
from varshift_lab.training import DataChoice, Network, TrainingSettings, TrainingTrial, Treatment

SmallScale = Literal["smoke", "laptop"]


@dataclass(frozen=True, slots=True)
class SmallBatches:
    """What is trained with every norm.

    Attributes:
        network: The network, its norm left open.
        data: The data.
        settings: The training; its batch is what is cut.
        seeds: One trial each.
        sizes: Samples that a norm sees, from small to large; the largest is the paper's for large batches.
        groups: Groups of group norm.
        clipping: Limits of batch renormalisation.
        renorm_momentum: Its weight of a batch in the running statistics.
        note: How the scale was chosen.
    """

    network: Network
    data: DataChoice
    settings: TrainingSettings
    seeds: tuple[int, ...]
    sizes: tuple[int, ...]
    groups: int
    clipping: RenormClipping
    renorm_momentum: float
    note: str

    @property
    def epochs(self) -> tuple[float, ...]:
        """The epochs, counted from 1."""
        return tuple(float(epoch) for epoch in range(1, self.settings.epochs + 1))

    def trials(
        self, norm: str, size: int | None = None, *, treatment: Treatment | None = None, **options: Any
    ) -> tuple[TrainingTrial, ...]:
        """The trials with a norm, one per seed.

        Args:
            norm: As the networks know it.
            size: Samples that it sees; None for norms that see each sample by itself.
            treatment: What else is done.
            options: Further arguments of the norm.
        """
        options = {**self._options(norm), **options}
        if size is not None:
            options["splits"] = self.settings.batch_size // size
        arguments = {**dict(self.network.arguments), "norm": norm}
        if options:
            arguments["norm_options"] = options
        network = Network.of(self.network.family, **arguments)
        return tuple(
            TrainingTrial(seed, network, self.data, self.settings, treatment=treatment) for seed in self.seeds
        )

    def errors(self, norm: str, size: int | None = None, **options: Any) -> Series:
        """Their test errors."""
        return Series(self.trials(norm, size, **options), "test_error")

    def with_settings(self, **changes: Any) -> SmallBatches:
        """The same with other settings of the training."""
        return replace(self, settings=replace(self.settings, **changes))

    def _options(self, norm: str) -> dict[str, Any]:
        if norm == "group":
            return {"num_groups": self.groups}
        if norm == "renorm":
            return {"clipping": self.clipping, "momentum": self.renorm_momentum}
        return {}


def published_weight(size: int) -> float:
    """The weight of the prediction in batch Kalman norm: 0.9 for few samples, 0.05 for many.

    Published are 0.9 for 2 samples and 0.05 for 128, and none between.
    """
    return 0.9 if size <= 8 else 0.05


def small_batches(scale: SmallScale) -> SmallBatches:
    """What both recipes train at the scales smoke and laptop."""
    if scale == "smoke":
        settings = TrainingSettings(
            epochs=3,
            batch_size=32,
            learning_rate=0.1,
            schedule="cosine",
            warmup=0.1,
            weight_decay=5e-4,
            decay_norms=False,
        )
        return SmallBatches(
            Network.of("preresnet", depth=8, width=4),
            DataChoice("digits", train=640),
            settings,
            seeds=(0, 1),
            sizes=(2, 32),
            groups=4,
            clipping=renorm_clipping(60),
            renorm_momentum=0.1,
            note="A small network, briefly trained on 8x8 digits: shows that all of it runs, not what the "
            "papers claim.",
        )
    epochs, train, batch = 8, 4000, 32
    settings = TrainingSettings(
        epochs=epochs,
        batch_size=batch,
        learning_rate=0.1,
        schedule="cosine",
        warmup=0.1,
        weight_decay=5e-4,
        decay_norms=False,
        augmentation=Augmentation(pad=2, flip=0.5),
    )
    return SmallBatches(
        Network.of("preresnet", depth=8, width=8),
        DataChoice("cifar10", train=train, test=4000, size=16),
        settings,
        seeds=(0, 1, 2),
        sizes=(2, 4, 32),
        groups=4,
        clipping=renorm_clipping(epochs * (train // batch)),
        renorm_momentum=0.1,
        note="PreResNet-8 of half the width on 4,000 images of CIFAR-10 at 16 x 16 pixels, 8 epochs with "
        "batches of 32 that the norms see in slices.",
    )


def renorm_clipping(steps: int) -> RenormClipping:
    """Limits 3 and 5 of batch renormalisation, opened in the published proportions within 0.4 of training.

    Published are steps 5,000 (start), 25,000 (shift) and 40,000 (scale); of how many is not known.
    """
    return RenormClipping(
        warmup=round(0.05 * steps), scale_end=round(0.4 * steps), shift_end=round(0.25 * steps)
    )
