"""The data of the shuffling experiments: vectors, drawn, projected or written down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from varshift.data import generator_of
from varshift.trials import Workbench
from varshift_lab.data import Images, dataset, subset


class Vectors(NamedTuple):
    """Training and test samples ``(n, features)`` with class indices ``(n,)``."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


@dataclass(frozen=True, slots=True)
class GaussianSigns:
    """Gaussian vectors; the class is the sign of the first feature, with some noise on it.

    Attributes:
        samples: Training samples.
        features: Features, of which all but one say nothing.
        noise: Deviation of what is added to the first feature before its sign is taken.
        test: Test samples.
    """

    samples: int = 48
    features: int = 32
    noise: float = 0.5
    test: int = 2000

    def load(self, seed: int, workbench: Workbench) -> Vectors:
        """Draws both sets."""
        generator = generator_of(seed, 0)
        count = self.samples + self.test
        x = torch.randn(count, self.features, generator=generator)
        y = (x[:, 0] + self.noise * torch.randn(count, generator=generator) > 0).long()
        x, y = x.to(workbench.device), y.to(workbench.device)
        return Vectors(x[: self.samples], y[: self.samples], x[self.samples :], y[self.samples :], 2)


@dataclass(frozen=True, slots=True)
class ImageVectors:
    """Images as vectors, or their leading principal components.

    The components are those of the training samples, divided by one number so that their mean square is 1.

    Attributes:
        name: Name of the data set.
        train: Training samples, a balanced subset; None for all.
        test: Test samples; None for all.
        components: How many components; None for the pixels themselves, from -1 to 1 as in the paper's code.
    """

    name: str = "cifar10"
    train: int | None = 512
    test: int | None = 2000
    components: int | None = 128

    def load(self, seed: int, workbench: Workbench) -> Vectors:
        """Reads both sets; they are the same for every seed."""
        return _image_vectors(self, workbench.data_folder, workbench.device)


@lru_cache(maxsize=2)
def _image_vectors(choice: ImageVectors, folder: Path | None, device: str) -> Vectors:
    sets = [
        images if count is None else subset(images, count)
        for images, count in (
            (dataset(choice.name, folder, train=True), choice.train),
            (dataset(choice.name, folder, train=False), choice.test),
        )
    ]
    x, test_x = (_flat(images) for images in sets)
    if choice.components is not None:
        centre = x.mean(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the directions that the randomised decomposition starts from
            _, _, basis = torch.svd_lowrank(x - centre, q=choice.components + 32, niter=4)
        basis = basis[:, : choice.components]
        x, test_x = (x - centre) @ basis, (test_x - centre) @ basis
        scale = x.square().mean().sqrt()
        x, test_x = x / scale, test_x / scale
    train, test = sets
    return Vectors(
        x.to(device), train.labels.to(device), test_x.to(device), test.labels.to(device), train.num_classes
    )


def _flat(images: Images) -> Tensor:
    return images.pixels.flatten(1).float().mul_(2 / 255).sub_(1)


@dataclass(frozen=True, slots=True)
class PlaneToy:
    """The authors' set of ``2 blocks + 6`` points in the plane (``toy_data_gpu3.py`` of their code).

    In stored order, in batches of two, single shuffle goes along ``(-1, 1)``, where two far points lie on the
    wrong side.

    Attributes:
        blocks: Points in each of two clusters.
    """

    blocks: int = 10

    def points(self) -> tuple[Tensor, Tensor]:
        """Samples ``(n, 2)`` and signs ``(n,)``, in stored order."""
        first = torch.linspace(-2.2, -1.8, self.blocks, dtype=torch.float64)
        second = torch.linspace(1.8, 2.2, self.blocks, dtype=torch.float64)
        cluster = torch.stack([first, second], 1)
        pair = torch.tensor([[-3, 1.5], [1, -0.5]], dtype=torch.float64)
        far = torch.tensor([[300.0, 110.0]], dtype=torch.float64)
        x = torch.cat([pair, cluster, -pair, -cluster, far, -far])
        one, many = torch.ones(1, dtype=torch.float64), torch.ones(self.blocks, dtype=torch.float64)
        return x, torch.cat([one, -one, many, -one, one, -many, one, -one])


@dataclass(frozen=True, slots=True)
class BlockToy:
    """The authors' six points in six dimensions (``CharlieDataset`` of their code).

    Each pair of points has its own pair of features; the others are small, and batches of two blow them up.
    """

    def points(self) -> tuple[Tensor, Tensor]:
        """Samples ``(6, 6)`` and signs ``(6,)``, in stored order."""
        # Signs of the small entries of each pair of points in the pairs of features that are not its own.
        signs = ((0, 1, -1, 1, -1), (1, 1, -1, -1, 1), (2, 1, -1, 1, -1))
        columns = []
        for own, *others in signs:
            rows = torch.empty(6, 2, dtype=torch.float64)
            rest = [row for row in range(6) if row // 2 != own]
            rows[2 * own : 2 * own + 2] = torch.eye(2, dtype=torch.float64)
            for row, sign in zip(rest, others, strict=True):
                rows[row] = 0.01 * torch.tensor([sign, -sign], dtype=torch.float64)
            columns.append(rows)
        return torch.cat(columns, 1).T.contiguous(), torch.tensor(
            [1.0, 1, 1, -1, -1, -1], dtype=torch.float64
        )

    def load(self, seed: int, workbench: Workbench) -> Vectors:
        """The points as a training set, and as the test set, too."""
        x, sign = self.points()
        x, y = x.float().to(workbench.device), (sign > 0).long().to(workbench.device)
        return Vectors(x, y, x, y, 2)
