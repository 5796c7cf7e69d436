import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder():
    """The folder with the public data sets; it lies beside the checkout or where VARSHIFT_DATA says."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("VARSHIFT_DATA", default))
    if not (folder / "cifar10" / "data_batch_1.npz").is_file():
        pytest.skip(f"needs the data sets in {folder} (or set VARSHIFT_DATA)")
    return folder
