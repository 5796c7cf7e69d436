"""Parts of a set, and sets with wrong labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from varshift import DataError
from varshift._arguments import between, count
from varshift.data import generator_of, whole_seed
from varshift_lab.data._images import Images


def subset(images: Images, samples: int, *, balanced: bool = True, seed: int | None = 0) -> Images:
    """Some of the images, in their stored order.

    Args:
        images: The set.
        samples: How many to take.
        balanced: As many of each class, up to one: of the classes that get one more, which ones is drawn.
            Classes are those of the true labels. Otherwise all images are alike.
        seed: Seed of the choice; None takes the first ones.

    Raises:
        DataError: If there are not as many, of a class where the subset is balanced.

    Example:
        >>> from varshift_lab.data import digit_images, subset
        >>> subset(digit_images(), 100).labels.bincount().tolist()
        [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    """
    samples = count("samples", samples, 1)
    if samples > len(images):
        raise DataError(f"samples={samples} must be at most the {len(images)} images that there are.")
    generator = None if seed is None else generator_of(whole_seed(seed), 0)

    def order(length: int) -> torch.Tensor:
        return torch.arange(length) if generator is None else torch.randperm(length, generator=generator)

    if not balanced:
        return images.take(order(len(images))[:samples].sort().values)
    labels = (images.labels if images.true_labels is None else images.true_labels).cpu()
    present = labels.unique()
    share, rest = divmod(samples, len(present))
    wanted = torch.full((len(present),), share)
    wanted[order(len(present))[:rest]] += 1
    chosen = []
    for label, number in zip(present.tolist(), wanted.tolist(), strict=True):
        places = (labels == label).nonzero()[:, 0]
        if len(places) < number:
            raise DataError(
                f"samples={samples} takes {number} images of class {label}, of which there are "
                f"{len(places)}: take fewer, or pass balanced=False."
            )
        chosen.append(places[order(len(places))[:number]])
    return images.take(torch.cat(chosen).sort().values)


def with_label_noise(
    images: Images, rate: float, *, to: Literal["other", "any"] = "other", seed: int = 0
) -> Images:
    """The images with wrong labels on some of them; the true ones are kept in `true_labels`.

    Of ``N`` images exactly ``round(rate N)`` get a new label, each of the classes it is drawn from equally
    likely.

    Args:
        images: The set; labels that are wrong already are not made right.
        rate: Share of labels to draw anew, in [0, 1].
        to: ``"other"`` draws from the other classes, so that all of them become wrong; ``"any"`` from all,
            so that a share of ``1 / classes`` stays right.
        seed: Seed of which ones and of their labels.

    Raises:
        ValueError: If the rate is out of range or `to` is neither.
        DataError: If there is no other class.

    Example:
        >>> from varshift_lab.data import digit_images, with_label_noise
        >>> noisy = with_label_noise(digit_images(), 0.25)
        >>> int(noisy.wrong.sum()), len(noisy)
        (337, 1348)
    """
    rate = between("rate", rate, 0, 1)
    if to not in ("other", "any"):
        raise ValueError(f"to={to!r} must be 'other' or 'any'.")
    classes = images.num_classes
    if classes < 2:
        raise DataError(f"images have {classes} class: wrong labels need two at least.")
    generator = generator_of(whole_seed(seed), 1)
    hit = torch.randperm(len(images), generator=generator)[: round(rate * len(images))]
    true = images.labels if images.true_labels is None else images.true_labels
    labels = images.labels.cpu().clone()
    if to == "any":
        labels[hit] = torch.randint(classes, (len(hit),), generator=generator)
    else:
        steps = torch.randint(1, classes, (len(hit),), generator=generator)
        labels[hit] = (true.cpu()[hit] + steps) % classes
    return replace(images, labels=labels.to(images.labels.device), true_labels=true)
