"""Networks and data as plain values."""

import pytest
import torch

from varshift.trials import Workbench, decode, encode
from varshift_lab.data import Images, digit_images
from varshift_lab.training import DataChoice, Network
from varshift_lab.training._data_choice import resized


def test_a_network_fits_its_data():
    images = digit_images()
    network = Network.of("preresnet", depth=8, width=4).build(images)
    assert network(images.normalised()[:2]).shape == (2, 10)
    flat = Network.of("linear_bn", depth=2, width=5).build(images)
    assert flat(images.normalised()[:2]).shape == (2, 10)
    large = Images(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 4]))
    assert Network.of("vgg", width=4).build(large)(large.normalised()).shape == (2, 5)
    assert Network.of("vgg", width=4, num_classes=3).build(large)(large.normalised()).shape == (2, 3)


def test_a_network_survives_the_store_with_its_mappings():
    one = Network.of("preresnet", depth=8, norm="group", norm_options={"num_groups": 2, "eps": 0.5})
    assert decode(encode(one)) == one
    assert one == Network.of("preresnet", norm_options={"eps": 0.5, "num_groups": 2}, norm="group", depth=8)
    norms = [part for part in one.build(digit_images()).modules() if isinstance(part, torch.nn.GroupNorm)]
    assert norms
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(2, 0.5)}


def test_other_peoples_networks_are_named_by_their_module():
    one = Network.of("torch.nn:Linear", in_features=64, out_features=7)
    assert one.build(digit_images()).out_features == 7


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("prenet", {}, "family='prenet' is unknown: use one of binary_resnet, "),
        ("nowhere.at:all", {}, "family='nowhere.at:all' cannot be imported"),
        ("torch:__version__", {}, "is no function"),
        ("preresnet", {"dept": 20}, "preresnet takes no argument dept: it has depth"),
    ],
)
def test_unknown_networks_and_arguments_are_named(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        Network.of(family, **arguments)


def test_parts_of_the_digits():
    train, test = DataChoice("digits", train=100, test=50, size=4, label_noise=0.2, seed=3).load(Workbench())
    assert train.pixels.shape == (100, 1, 4, 4)
    assert test.pixels.shape == (50, 1, 4, 4)
    assert int(train.wrong.sum()) == 20
    assert not test.wrong.any()
    assert train.normalised().mean().abs() < 1e-3
    assert test.mean == train.mean
    assert DataChoice("digits").load(Workbench())[0].pixels.shape == (1348, 1, 8, 8)


def test_block_means_and_other_sizes():
    pixels = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert resized(pixels, 2).flatten().tolist() == [2, 4, 10, 12]  # 2.5, 4.5, 10.5, 12.5 to the even
    flat = torch.full((3, 2, 9, 9), 200, dtype=torch.uint8)
    assert torch.equal(resized(flat, 4), torch.full((3, 2, 4, 4), 200, dtype=torch.uint8))
    assert isinstance(DataChoice("digits", size=5).load(Workbench())[0], Images)


def test_bad_choices_are_refused():
    with pytest.raises(ValueError, match="name='mnist' must be one of digits"):
        DataChoice("mnist")
    with pytest.raises(ValueError, match="train=0 must be"):
        DataChoice("digits", train=0)
    with pytest.raises(ValueError, match="label_noise=2 must be in"):
        DataChoice("digits", label_noise=2)


@pytest.mark.data
def test_the_data_folder_is_that_of_the_workbench(data_folder):
    train, test = DataChoice("fashion_mnist", train=20, test=10).load(Workbench(data_folder=data_folder))
    assert train.labels.bincount().tolist() == [2] * 10
    assert len(test) == 10
