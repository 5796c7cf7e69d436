import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tensors are small: more threads only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
