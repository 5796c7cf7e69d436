import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _torchvision_imports():
    from varshift.integrations import declare_torchvision_operators

    declare_torchvision_operators()


@pytest.fixture
def images():
    """Two batches of 32 colour images: blurred noise, whose neighbouring pixels agree as in pictures."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(64, 3, 8, 8, generator=generator)
    fine = torch.randn(64, 3, 32, 32, generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, size=32, mode="bilinear") + 0.3 * fine
    labels = torch.randint(10, (64,), generator=generator)
    return [(pictures[:32], labels[:32]), (pictures[32:], labels[32:])]
