"""Reading data sets: the standard archives in small, and the real files where they are."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch

from varshift import DataError
from varshift_lab.data import cifar10, cifar100, data_folder, dataset, fashion_mnist
from varshift_lab.data._files import unpickle


def random_cifar(count, seed=0, **labels):
    values = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {b"data": values, **{key.encode(): value for key, value in labels.items()}}


def archive(path, **members):
    with tarfile.open(path, "w:gz") as opened:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"cifar-python/{name}")
            entry.size = len(content)
            opened.addfile(entry, io.BytesIO(content))
    return path


def python_2_pickle(values, labels):
    """A batch as Python 2 wrote it: byte strings, and numpy where it kept its functions then."""
    shape = b"".join(b"M" + struct.pack("<H", size) for size in values.shape)
    content = values.tobytes()
    return (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01" + shape + b"\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<I", len(content)) + content + b"tb"
        b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu."
    )


def five_batches(writer=lambda batch: pickle.dumps(batch, protocol=2)):
    batches = [random_cifar(3, seed, labels=[seed, 9, 0]) for seed in range(5)]
    return batches, {f"data_batch_{place + 1}": writer(batch) for place, batch in enumerate(batches)}


def test_the_archive_of_cifar10_is_read_in_order(tmp_path):
    batches, contents = five_batches()
    path = archive(tmp_path / "cifar-10-python.tar.gz", **contents)
    for place in (tmp_path, path):
        images = cifar10(place, verify=False)
        expected = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        assert images.pixels.dtype == torch.uint8
        assert np.array_equal(images.pixels.numpy(), expected)
        assert images.labels.tolist() == [0, 9, 0, 1, 9, 0, 2, 9, 0, 3, 9, 0, 4, 9, 0]
    assert images.classes[9] == "truck"
    assert len(cifar10(tmp_path, batches=2, verify=False)) == 6


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_extracted_batches_of_any_protocol_are_read(tmp_path, protocol):
    folder = tmp_path / "cifar10"
    folder.mkdir()
    batch = random_cifar(4, labels=[0, 1, 2, 3])
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    for place in (tmp_path, folder):
        images = cifar10(place, train=False, verify=False)
        assert images.labels.tolist() == [0, 1, 2, 3]
        assert np.array_equal(images.pixels.numpy().reshape(4, -1), batch[b"data"])


def test_batches_of_python_2_are_read(tmp_path):
    values = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(python_2_pickle(values, [3, 4]))
    images = cifar10(tmp_path, train=False, verify=False)
    assert np.array_equal(images.pixels.numpy().reshape(2, -1), values)
    assert images.labels.tolist() == [3, 4]


def test_the_archive_of_cifar100_has_classes_and_superclasses(tmp_path):
    batch = random_cifar(2, fine_labels=[99, 5], coarse_labels=[19, 2])
    names = {
        b"fine_label_names": [b"fine%d" % place for place in range(100)],
        b"coarse_label_names": [b"coarse%d" % place for place in range(20)],
    }
    content = {"test": pickle.dumps(batch), "meta": pickle.dumps(names)}
    archive(tmp_path / "cifar-100-python.tar.gz", **content)
    fine, coarse = (cifar100(tmp_path, train=False, coarse=c, verify=False) for c in (False, True))
    assert (fine.labels.tolist(), fine.classes[99], fine.num_classes) == ([99, 5], "fine99", 100)
    assert (coarse.labels.tolist(), coarse.classes[19], coarse.num_classes) == ([19, 2], "coarse19", 20)
    assert fine.name == "CIFAR-100"
    with pytest.raises(DataError, match="does not hold train: it is not the archive of CIFAR-100"):
        cifar100(tmp_path, verify=False)


class Nasty:
    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize(
    ("function", "arguments"),
    [(exec, ("raise SystemExit",)), (np.load, ("x",)), (getattr, ("", "join")), (bytearray, (5,))],
)
def test_pickles_that_ask_for_more_than_arrays_are_refused(tmp_path, function, arguments):
    batch = {"data": Nasty(function, *arguments), "labels": []}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match="only arrays, bytes and dicts are read"):
        cifar10(tmp_path, train=False, verify=False)


def test_a_pickle_of_something_else_is_refused():
    with pytest.raises(pickle.UnpicklingError, match="holds a list and not a dict"):
        unpickle(pickle.dumps([1, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: b"", "is damaged"),
        (lambda content: b"not a pickle", "is damaged"),
        (lambda content: pickle.dumps({"labels": [1]}), "is damaged"),
        (lambda content: pickle.dumps(random_cifar(2, labels=[1])), "2 images and 1 labels"),
        (lambda content: pickle.dumps(random_cifar(2, labels=[1, 10])), "in 0 to 9"),
        (lambda content: pickle.dumps(random_cifar(2, labels=[1, -1])), "in 0 to 9"),
        (lambda content: pickle.dumps(random_cifar(2, labels=[0.5, 1.0])), "is damaged"),
        (
            lambda content: pickle.dumps({"data": np.zeros((2, 7), np.uint8), "labels": [0, 1]}),
            "3,072 values",
        ),
    ],
)
def test_damaged_batches_are_named(tmp_path, change, message):
    content = pickle.dumps(random_cifar(2, labels=[0, 1]))
    (tmp_path / "test_batch").write_bytes(change(content))
    with pytest.raises(DataError, match=f"test_batch .*{message}"):
        cifar10(tmp_path, train=False, verify=False)


def test_what_is_not_the_original_fails_its_checksum(tmp_path):
    (tmp_path / "test_batch").write_bytes(pickle.dumps(random_cifar(2, labels=[0, 1])))
    with pytest.raises(DataError, match=r"md5 checksum .* not 40351d58"):
        cifar10(tmp_path, train=False)
    zeros = np.zeros((3, 2, 32, 32), np.uint8)
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "test_batch.npz", residual=zeros, labels=np.zeros(2, np.uint8))
    with pytest.raises(DataError, match=r"sha256 checksum .* not 177777c3"):
        cifar10(tmp_path / "npz", train=False)


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_a_cut_archive_is_named(tmp_path, cut):
    path = archive(tmp_path / "cifar-10-python.tar.gz", **five_batches()[1])
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz cannot be read .* is damaged"):
        cifar10(tmp_path, verify=False)


def test_damaged_arrays_are_named(tmp_path):
    path = tmp_path / "test_batch.npz"
    np.savez_compressed(
        path, residual=random_cifar(2)[b"data"].reshape(3, 2, 32, 32), labels=np.zeros(2, np.uint8)
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test_batch\.npz cannot be read"):
        cifar10(tmp_path, train=False, verify=False)
    np.savez(path, residual=np.array([{"a": 1}], dtype=object), labels=np.zeros(2, np.uint8))
    with pytest.raises(DataError, match=r"test_batch\.npz cannot be read .*allow_pickle"):
        cifar10(tmp_path, train=False, verify=False)


def idx(values):
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_idx_files_of_fashion_mnist_are_read(tmp_path, ending, folder):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([9, 0, 1, 2, 3], np.uint8)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if ending else bytes
    (tmp_path / folder / f"t10k-images-idx3-ubyte{ending}").write_bytes(pack(idx(pixels)))
    (tmp_path / folder / f"t10k-labels-idx1-ubyte{ending}").write_bytes(pack(idx(labels)))
    images = fashion_mnist(tmp_path, train=False, verify=False)
    assert np.array_equal(images.pixels[:, 0].numpy(), pixels)
    assert images.labels.tolist() == labels.tolist()
    assert images.classes[9] == "Ankle boot"
    with pytest.raises(DataError, match="checksum"):
        fashion_mnist(tmp_path, train=False)
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz is missing"):
        fashion_mnist(tmp_path, verify=False)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (idx(np.zeros((2, 28, 28), np.uint8))[:-1], idx(np.zeros(2, np.uint8)), "images-idx3-ubyte cannot"),
        (idx(np.zeros((2, 28, 28), np.uint8)), b"\0\0\x0b\x01", "labels-idx1-ubyte cannot"),
        (idx(np.zeros((2, 28, 27), np.uint8)), idx(np.zeros(2, np.uint8)), "expected uint8"),
        (idx(np.zeros((2, 28, 28), np.uint8)), idx(np.zeros(3, np.uint8)), "3 labels"),
        (idx(np.zeros((2, 28, 28), np.uint8)), idx(np.full(2, 10, np.uint8)), "in 0 to 9"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, images, labels, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(DataError, match=message):
        fashion_mnist(tmp_path, verify=False)


def test_the_folder_of_data_sets_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VARSHIFT_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "test_batch").write_bytes(pickle.dumps(random_cifar(1, labels=[7])))
    assert dataset("cifar10", train=False, verify=False).labels.tolist() == [7]
    monkeypatch.setenv("VARSHIFT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere' is missing\. Set VARSHIFT_DATA"):
        data_folder()


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="name='mnist' must be one of digits, cifar10"):
        dataset("mnist")


@pytest.mark.data
def test_real_fashion_mnist(data_folder):
    images = fashion_mnist(data_folder, train=False)
    assert images.pixels.shape == (10000, 1, 28, 28)
    assert images.labels.bincount().tolist() == [1000] * 10
    digest = hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest()
    assert digest == "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a"
    assert images.normalised().std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.data
def test_the_real_subset_of_cifar100_says_that_it_is_one(data_folder):
    images = cifar100(data_folder, train=False)
    assert images.pixels.shape == (2500, 3, 32, 32)
    assert images.labels.bincount().tolist() == [25] * 100
    assert images.name == "CIFAR-100 subset, 25 test images per class"
    coarse = cifar100(data_folder / "cifar100_subset", train=False, coarse=True)
    assert coarse.labels.bincount().tolist() == [125] * 20
    names = json.loads((data_folder / "class_names.json").read_text())
    assert list(images.classes) == names["cifar100_fine"]
    assert len(coarse.classes) == 20
