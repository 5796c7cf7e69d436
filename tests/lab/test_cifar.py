import hashlib

import pytest

from varshift_lab.data import cifar10


@pytest.mark.data
def test_pixels_are_those_of_the_original(data_folder):
    images = cifar10(data_folder / "cifar10", train=False)
    assert images.pixels.shape == (10000, 3, 32, 32)
    digest = hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest()
    assert digest == "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56"
    assert images.labels.bincount().tolist() == [1000] * 10
    assert images.normalised().std().item() == pytest.approx(1, abs=0.02)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.npz is missing"):
        cifar10(tmp_path)


def test_number_of_files_is_checked(tmp_path):
    with pytest.raises(ValueError, match="batches=6"):
        cifar10(tmp_path, batches=6)
