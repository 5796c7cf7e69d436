"""Augmentation against a slow restatement, one image and one pixel at a time."""

from __future__ import annotations

import pytest
import torch

from varshift_lab.data import Augmentation, Images, pad_crop_flip
from varshift_lab.data import _augment as module

MEAN, STD = (0.5, 0.25, 0.4), (0.2, 0.3, 0.25)


def random_images(count=24, height=7, width=9, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count) % 4, MEAN[:channels], STD[:channels])


def outside(place, length, border):
    """Which pixel of a line stands at a place outside of it; None for none."""
    if 0 <= place < length:
        return place
    if border == "edge":
        return 0 if place < 0 else length - 1
    if border == "wrap":
        return place + length if place < 0 else place - length
    if border == "reflect":
        return -place if place < 0 else 2 * (length - 1) - place
    return None


def restated(images, augmentation, draws, place):
    """One image, as the words say it."""
    pixels = images.pixels[place]
    channels, height, width = pixels.shape
    out = torch.empty(channels, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            kept = width - 1 - column if draws.flipped[place] else column
            source_row = row + int(draws.rows[place]) - augmentation.pad
            source_column = kept + int(draws.columns[place]) - augmentation.pad
            from_row = outside(source_row, height, augmentation.border)
            from_column = outside(source_column, width, augmentation.border)
            top = int(draws.cut_rows[place]) - augmentation.cutout // 2
            left = int(draws.cut_columns[place]) - augmentation.cutout // 2
            cut = top <= row < top + augmentation.cutout and left <= column < left + augmentation.cutout
            for channel in range(channels):
                if from_row is None or from_column is None:
                    mean = round(255 * images.mean[channel])
                    value = mean if augmentation.border == "mean" else 0
                else:
                    value = int(pixels[channel, from_row, from_column])
                normal = (value / 255 - images.mean[channel]) / images.std[channel]
                out[channel, row, column] = 0 if cut else normal
    return out


@pytest.mark.parametrize("border", ["zero", "mean", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    ("pad", "flip", "cutout"), [(0, 0.0, 0), (2, 0.0, 0), (0, 0.5, 0), (0, 0.0, 3), (3, 0.5, 4), (6, 1.0, 20)]
)
def test_each_image_is_what_the_words_say(border, pad, flip, cutout):
    images = random_images()
    augmentation = Augmentation(pad=pad, border=border, flip=flip, cutout=cutout)
    made = augmentation.epoch(images, seed=3, epoch=2)
    draws = augmentation.draws(images, 3, 2)
    expected = torch.stack([restated(images, augmentation, draws, place) for place in range(len(images))])
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


def test_nothing_but_normalisation_by_default():
    images = random_images()
    assert torch.equal(Augmentation().epoch(images, seed=0, epoch=0), images.normalised())
    expected = (images.pixels.double() / 255 - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(
        STD
    ).double().view(3, 1, 1)
    torch.testing.assert_close(images.normalised().double(), expected, rtol=1e-5, atol=1e-5)


def test_pieces_of_any_size_give_the_same(monkeypatch):
    images, augmentation = random_images(), pad_crop_flip(2, border="reflect", cutout=3)
    whole = augmentation.epoch(images, seed=1, epoch=1)
    monkeypatch.setattr(module, "_CHUNK", {"cpu": 1, "other": 1})
    assert torch.equal(augmentation.epoch(images, seed=1, epoch=1), whole)
    draws = augmentation.draws(images, 1, 1)
    some = torch.tensor([5, 5, 0, 23])
    assert torch.equal(augmentation.apply(images, some, draws), whole[some])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("channels_last", [False, True])
def test_types_and_layouts_change_nothing_else(dtype, channels_last):
    images, augmentation = random_images(), pad_crop_flip(2, cutout=3)
    plain = augmentation.epoch(images, seed=1, epoch=1)
    made = augmentation.epoch(images, seed=1, epoch=1, dtype=dtype, channels_last=channels_last)
    assert torch.equal(made, plain.to(dtype))
    assert made.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert made[3:7].is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )


def test_input_in_any_layout_gives_the_same():
    images = random_images()
    other = Images(
        images.pixels.contiguous(memory_format=torch.channels_last), images.labels, images.mean, images.std
    )
    augmentation = pad_crop_flip(2, cutout=3)
    assert torch.equal(
        augmentation.epoch(images, seed=1, epoch=1), augmentation.epoch(other, seed=1, epoch=1)
    )


def test_the_seed_and_the_epoch_decide_and_nothing_else():
    images, augmentation = random_images(), pad_crop_flip(2)
    before = torch.random.get_rng_state()
    first = augmentation.epoch(images, seed=1, epoch=1)
    torch.manual_seed(123)
    assert torch.equal(augmentation.epoch(images, seed=1, epoch=1), first)
    assert not torch.equal(augmentation.epoch(images, seed=2, epoch=1), first)
    assert not torch.equal(augmentation.epoch(images, seed=1, epoch=2), first)
    torch.random.set_rng_state(before)
    augmentation.epoch(images, seed=1, epoch=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_setting_does_not_change_the_others():
    images = random_images()
    plain, cut = (Augmentation(pad=2, flip=0.5, cutout=c).draws(images, 0, 0) for c in (0, 5))
    assert torch.equal(plain.rows, cut.rows)
    assert torch.equal(plain.flipped, cut.flipped)
    assert torch.equal(Augmentation(flip=0.5).draws(images, 0, 0).flipped, plain.flipped)


def test_crops_flips_and_cutouts_are_uniform_and_independent():
    samples, pad = 90_000, 1
    augmentation = Augmentation(pad=pad, flip=0.3, cutout=1)
    draws = augmentation.draw(samples, 3, 4, torch.Generator().manual_seed(0))
    for values, places in (
        (draws.rows, 3), (draws.columns, 3), (draws.cut_rows, 3), (draws.cut_columns, 4),
        (3 * draws.rows + draws.columns, 9), (4 * draws.cut_rows + draws.cut_columns, 12),
        (3 * draws.rows + draws.cut_rows, 9),
    ):  # fmt: skip
        counts = values.bincount(minlength=places).double()
        expected = samples / places
        assert len(counts) == places
        # chi-squared: mean places - 1, variance twice that
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < (places - 1) + 5 * (2 * (places - 1)) ** 0.5
    share, error = draws.flipped.double().mean(), (0.3 * 0.7 / samples) ** 0.5
    assert abs(share - 0.3) < 4 * error
    joint = (draws.flipped & (draws.rows == 0)).double().mean()
    assert abs(joint - 0.1) < 4 * (0.09 / samples) ** 0.5


def test_probabilities_of_0_and_1_are_exact():
    images = random_images(500)
    assert not Augmentation(flip=0.0).draws(images, 0, 0).flipped.any()
    assert Augmentation(flip=1.0).draws(images, 0, 0).flipped.all()


def test_no_images_give_no_images():
    images = random_images().take([])
    assert pad_crop_flip(2, cutout=2).epoch(images, seed=0, epoch=0).shape == (0, 3, 7, 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad": -1}, "pad=-1 must be a whole number of at least 0"),
        ({"pad": 1.5}, "pad=1.5 must be a whole number"),
        ({"flip": 1.1}, r"flip=1.1 must be in \[0, 1\]"),
        ({"flip": float("nan")}, "flip=nan must be finite"),
        ({"cutout": -2}, "cutout=-2 must be"),
        ({"border": "black"}, "border='black' must be one of zero, mean, reflect, edge, wrap"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)


@pytest.mark.parametrize("border", ["reflect", "wrap"])
def test_more_padding_than_image_is_refused(border):
    with pytest.raises(ValueError, match="pad=7 must be below the 7 pixels"):
        Augmentation(pad=7, border=border).epoch(random_images(), seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"dtype=torch\.uint8 must be a floating-point"):
        Augmentation().epoch(random_images(), seed=0, epoch=0, dtype=torch.uint8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_makes_the_same_images_to_the_bit(dtype):
    images, augmentation = random_images(500), pad_crop_flip(2, border="reflect", cutout=3)
    here = augmentation.epoch(images, seed=1, epoch=1, dtype=dtype)
    there = augmentation.epoch(images.to("cuda"), seed=1, epoch=1, dtype=dtype)
    assert there.is_cuda
    assert torch.equal(there.cpu(), here)
