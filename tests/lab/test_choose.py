"""Images, parts of sets, wrong labels."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import varshift_lab.data
from varshift import DataError
from varshift_lab.data import Images, digit_images, digits, subset, with_label_noise


def images_of(labels):
    labels = torch.tensor(labels)
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 3, 3)
    return Images(pixels.contiguous(), labels)


@pytest.mark.parametrize("samples", [1, 7, 40, 99])
@pytest.mark.parametrize("seed", [None, 0, 3])
def test_a_balanced_subset_has_as_many_of_each_class_up_to_one(samples, seed):
    images = images_of([place * place % 4 if place % 3 else 2 for place in range(190)] + [3] * 60)
    part = subset(images, samples, seed=seed)
    counts = part.labels.bincount(minlength=4)[images.labels.unique()]
    assert len(part) == samples
    assert counts.max() - counts.min() <= 1
    places = part.pixels[:, 0, 0, 0].long()
    assert len(places.unique()) == samples
    assert (part.mean, part.std) == (images.mean, images.std)


def test_a_subset_follows_its_seed_and_keeps_the_order():
    images = images_of([0, 1] * 50)
    first, again, other = (subset(images, 10, seed=seed).pixels[:, 0, 0, 0].tolist() for seed in (1, 1, 2))
    assert first == again == sorted(first)
    assert first != other
    assert subset(images, 10, seed=None).pixels[:, 0, 0, 0].tolist() == list(range(10))
    assert len(set(subset(images, 60, balanced=False).pixels[:, 0, 0, 0].tolist())) == 60


def test_a_subset_of_noisy_images_is_balanced_by_the_true_labels():
    noisy = with_label_noise(images_of([0, 1, 2, 3] * 25), 0.5)
    part = subset(noisy, 40)
    assert part.true_labels.bincount().tolist() == [10] * 4
    assert part.wrong.any()


def test_what_is_not_there_cannot_be_taken():
    images = images_of([0] * 9 + [1])
    with pytest.raises(DataError, match=r"takes 2 images of class 1, of which there are 1"):
        subset(images, 4)
    with pytest.raises(DataError, match="samples=11 must be at most the 10 images"):
        subset(images, 11, balanced=False)
    with pytest.raises(ValueError, match="samples=0 must be"):
        subset(images, 0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 1.0])
def test_label_noise_makes_exactly_this_share_wrong(rate):
    images = images_of(list(range(10)) * 20)
    noisy = with_label_noise(images, rate, seed=3)
    assert int(noisy.wrong.sum()) == round(rate * 200)
    assert torch.equal(noisy.true_labels, images.labels)
    assert torch.equal(noisy.labels[~noisy.wrong], images.labels[~noisy.wrong])
    assert noisy.labels.min() >= 0
    assert noisy.labels.max() < 10
    assert not images.wrong.any()


def test_wrong_labels_are_drawn_from_all_other_classes_alike():
    images = images_of([0, 1, 2, 3] * 5000)
    noisy = with_label_noise(images, 1.0)
    for label in range(4):
        counts = noisy.labels[images.labels == label].bincount(minlength=4)
        others = counts[torch.arange(4) != label].double()
        assert counts[label] == 0
        # three classes of 5000 / 3 each, within 4.5 standard deviations
        assert (others - 5000 / 3).abs().max() < 4.5 * (5000 * 2 / 9) ** 0.5
    any_class = with_label_noise(images, 1.0, to="any")
    assert abs(float(any_class.wrong.double().mean()) - 0.75) < 4.5 * (0.75 * 0.25 / 20000) ** 0.5


def test_label_noise_follows_its_seed_and_comes_on_top():
    images = images_of([0, 1, 2] * 40)
    first, again, other = (with_label_noise(images, 0.3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)
    twice = with_label_noise(first, 0.3, seed=5)
    assert torch.equal(twice.true_labels, images.labels)
    assert twice.wrong.sum() > first.wrong.sum()
    for bad, message in ((1.5, "rate=1.5 must be in"), (-0.1, "rate=-0.1 must be in")):
        with pytest.raises(ValueError, match=message):
            with_label_noise(images, bad)
    with pytest.raises(ValueError, match="to='all' must be"):
        with_label_noise(images, 0.1, to="all")
    with pytest.raises(DataError, match="images have 1 class"):
        with_label_noise(images_of([0, 0]), 0.1)


@pytest.mark.parametrize("count", [1, 3, 5000])
def test_moments_are_those_of_the_pixels(count):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 5, 4), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.zeros(count, dtype=torch.int64))
    values = pixels.double() / 255
    assert images.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-12)
    assert images.std == pytest.approx(values.std((0, 2, 3), unbiased=False).tolist(), rel=1e-9)


def test_a_constant_channel_has_no_deviation_to_divide_by():
    images = Images(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    assert images.std == (1.0,)
    assert images.normalised().abs().max() < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pixels": torch.zeros(2, 1, 3, 3)}, r"pixels are torch\.float32 of shape \(2, 1, 3, 3\)"),
        ({"pixels": torch.zeros(2, 3, 3, dtype=torch.uint8)}, "expected uint8"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels are torch\.int64 of shape \(3,\)"),
        ({"labels": torch.zeros(2)}, r"labels are torch\.float32"),
        ({"true_labels": torch.zeros(2)}, r"true_labels are torch\.float32"),
        ({"mean": (0.5,)}, "one number for each of 1 channels"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "one number for each"),
        ({"mean": (0.5,), "std": (0.0,)}, "deviations above 0"),
    ],
)
def test_what_is_no_set_of_images_is_refused(changes, message):
    arguments = {
        "pixels": torch.zeros(2, 1, 3, 3, dtype=torch.uint8),
        "labels": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(DataError, match=message):
        Images(**{**arguments, **changes})


def test_digits_as_bytes_are_the_digits():
    old = digits()
    for train, values, labels in (
        (True, old.train_images, old.train_labels),
        (False, old.test_images, old.test_labels),
    ):
        images = digit_images(train=train)
        assert torch.equal(images.labels, labels)
        # the old deviation divides by one less than the number of values
        torch.testing.assert_close(images.normalised(), values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [found.name for found in pkgutil.iter_modules(varshift_lab.data.__path__, "varshift_lab.data.")]
)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
