"""Folders of images, decoded."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from varshift import DataError
from varshift_lab.data import dataset, image_folder, imagenet

Image = pytest.importorskip("PIL.Image")


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for place, name in enumerate(["n02", "n01"]):
        for number in range(3):
            write(
                tmp_path / "train" / name / f"{number}.png",
                generator.integers(0, 256, (8, 8, 3), dtype=np.uint8) // 2 + 100 * place,
            )
    write(tmp_path / "val" / "n01" / "a.JPEG", np.full((40, 60, 3), 200, np.uint8))
    write(tmp_path / "val" / "n02" / "b.png", np.full((30, 16), 50, np.uint8))
    (tmp_path / "train" / "n01" / "notes.txt").write_text("not an image")
    return tmp_path


def test_images_of_the_right_size_are_read_as_they_are(folder):
    images = image_folder(folder / "train", size=8)
    assert images.classes == ("n01", "n02")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.name == "train"
    stored = np.asarray(Image.open(folder / "train" / "n02" / "1.png"))
    assert np.array_equal(images.pixels[4].permute(1, 2, 0).numpy(), stored)
    assert images.mean == pytest.approx((images.pixels.double() / 255).mean((0, 2, 3)).tolist())


def test_the_middle_is_cut_out(tmp_path):
    values = np.zeros((8, 16, 3), np.uint8)
    values[:, 4:12] = 255
    write(tmp_path / "a" / "wide.png", values)
    write(tmp_path / "a" / "tall.png", values.transpose(1, 0, 2).copy())
    assert (image_folder(tmp_path, size=8, mean=(0.5,) * 3, std=(0.5,) * 3).pixels == 255).all()
    half = image_folder(tmp_path, size=4, resize=2.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert (half.pixels == 255).all()


def test_imagenet_has_both_splits_in_one_numbering(folder):
    train, val = imagenet(folder, size=8), imagenet(folder, train=False, size=8)
    assert train.classes == val.classes == ("n01", "n02")
    assert val.labels.tolist() == [0, 1]
    assert (val.pixels[0].int() - 200).abs().max() <= 2
    assert (val.pixels[1] == 50).all()
    assert val.mean == train.mean == (0.485, 0.456, 0.406)
    assert len(dataset("imagenet", folder, size=8, per_class=2)) == 4
    some = imagenet(folder, size=8, classes=["n02"])
    assert torch.equal(some.pixels, train.pixels[3:])


def test_what_is_missing_damaged_or_too_much_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' is missing"):
        image_folder(folder / "nowhere", size=8)
    with pytest.raises(FileNotFoundError, match=r"train' is missing: expected a folder for each class"):
        imagenet(folder / "val", size=8)
    with pytest.raises(FileNotFoundError, match=r"n03' is missing"):
        imagenet(folder, size=8, classes=["n03"])
    with pytest.raises(DataError, match="has no folders"):
        image_folder(folder / "val" / "n01", size=8)
    with pytest.raises(DataError, match=r"6 images of 8 x 8 pixels take 0\.0 GB, more than"):
        imagenet(folder, size=8, max_gigabytes=1e-9)
    with pytest.raises(ValueError, match=r"resize=0\.5 must be at least 1"):
        image_folder(folder / "train", size=8, resize=0.5)
    with pytest.raises(ValueError, match="size=0 must be"):
        image_folder(folder / "train", size=0)
    broken = folder / "train" / "n01" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"1\.png cannot be decoded"):
        imagenet(folder, size=8)
    (folder / "train" / "n00").mkdir()
    with pytest.raises(DataError, match=r"n00' has no images"):
        imagenet(folder, size=8)


def test_without_pillow_the_remedy_is_said(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="needs pillow: pip install pillow"):
        imagenet(folder, size=8)
