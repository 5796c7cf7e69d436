import os
from pathlib import Path

import pytest

# The suite runs a process on every core: with several threads each they would wait for one another. Programs
# that tests start take it over.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

# On processors with AVX2 and without AVX-512, oneDNN's kernel for the gradient of strided 1x1 convolutions
# with channels innermost (brgconv_strided:avx2, torch 2.13) writes over memory that is not its own, and the
# process aborts in some later backward pass. oneDNN reads the variable at its first call.
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")


@pytest.fixture(scope="session")
def data_folder():
    """The folder with the public data sets; it lies beside the checkout or where VARSHIFT_DATA says."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VARSHIFT_DATA", default))
    if not (folder / "cifar10" / "data_batch_1.npz").is_file():
        pytest.skip(f"needs the data sets in {folder} (or set VARSHIFT_DATA)")
    return folder


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """A prediction or a comparison that fails is an error here, and not only a limit of the report."""
    monkeypatch.setenv("VARSHIFT_STRICT", "1")


@pytest.fixture
def lenient(strict, monkeypatch):
    """As a user has it: a check goes on without what it can do without."""
    monkeypatch.delenv("VARSHIFT_STRICT")
