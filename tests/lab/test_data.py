"""The digits and the loader."""

from __future__ import annotations

import pytest
import torch

from varshift_lab.data import digits, tensor_loader


def test_digits_are_split_once_and_for_all():
    data, again = digits(), digits()
    assert data.train_images.shape == (1348, 1, 8, 8)
    assert data.test_images.shape == (449, 1, 8, 8)
    assert torch.equal(data.test_labels, again.test_labels)
    assert data.train_images.dtype == torch.float32
    assert data.train_images.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_images.std().item() == pytest.approx(1, abs=1e-5)
    assert data.test_labels.bincount().min() > 35
    assert data.train_labels.bincount().min() > 120


def test_no_held_out_digit_is_trained_on():
    data = digits()
    seen = {tuple(image.flatten().tolist()) for image in data.train_images}
    assert not any(tuple(image.flatten().tolist()) in seen for image in data.test_images)


def test_loader_shuffles_by_seed_and_anew_in_each_epoch():
    images, labels = torch.arange(10.0).view(10, 1), torch.arange(10)

    def orders(seed):
        loader = tensor_loader(images, labels, 4, shuffle=True, seed=seed)
        return [torch.cat([target for _, target in loader]).tolist() for _ in range(2)]

    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    first, second = orders(0)
    assert first != second
    assert sorted(first) == sorted(second) == list(range(10))


def test_loader_keeps_images_with_their_labels_and_can_drop_the_last_batch():
    images, labels = torch.arange(10.0).view(10, 1), torch.arange(10)
    batches = list(tensor_loader(images, labels, 4, shuffle=True, drop_last=True))
    assert [len(target) for _, target in batches] == [4, 4]
    assert all(torch.equal(image[:, 0].long(), target) for image, target in batches)
    assert [len(target) for _, target in tensor_loader(images, labels, 4)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("count", "labels", "batch_size", "drop_last", "message"),
    [
        (3, 2, 1, False, "images has 3 and labels 2 entries"),
        (0, 0, 1, False, "images has 0 and labels 0 entries"),
        (3, 3, 0, False, "batch_size=0 must be between 1 and the 3 images"),
        (3, 3, 4, True, "batch_size=4 must be between 1 and the 3 images"),
    ],
)
def test_bad_arguments_name_argument_value_and_rule(count, labels, batch_size, drop_last, message):
    with pytest.raises(ValueError, match=message):
        tensor_loader(torch.zeros(count, 1), torch.zeros(labels), batch_size, drop_last=drop_last)
