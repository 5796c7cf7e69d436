import pytest
import torch

from varshift._threads import one_thread


@pytest.fixture(autouse=True)
def single_thread():
    """The tensors of the tests are small: waking other threads costs more than the work."""
    torch.manual_seed(0)
    with one_thread():
        yield
