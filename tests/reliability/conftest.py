from pathlib import Path

import pytest
from helpers.small_data import write_small_data


@pytest.fixture
def root(tmp_path) -> Path:
    """The folder of a data set of six images for all three libraries."""
    write_small_data(tmp_path)
    return tmp_path
