"""Networks for the tests of cures."""

import pytest
import torch
from sick_networks import Sick, data, trained


@pytest.fixture(scope="session")
def sick_weights():
    """Weights of a sick network, and the state of the optimiser that made them."""
    torch.manual_seed(0)
    network, optimizer = trained(Sick())
    return network.state_dict(), optimizer.state_dict()


@pytest.fixture
def sick(sick_weights):
    """A sick network, its optimiser and its loader."""
    network = Sick()
    network.load_state_dict(sick_weights[0])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    optimizer.load_state_dict(sick_weights[1])
    return network, optimizer, data()


@pytest.fixture
def healthy():
    """A healthy network and its loader."""
    torch.manual_seed(0)
    return trained(Sick(rate=0.0))[0], data()
