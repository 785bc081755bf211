"""Memory does not creep, and nothing is compiled for ever, where images are of ever other sizes."""

import pytest
from helpers.processes import run_together
from helpers.random_images import train_at_random_sizes


@pytest.mark.slow
def test_resident_memory_is_flat_after_warm_up(tmp_path, trials):
    """Without oneDNN, which keeps what it compiled for up to 1024 shapes of convolutions."""
    steps = trials(60, 500)
    (memory,) = run_together(train_at_random_sizes, 1, tmp_path, 'atss', steps)
    warm, half = steps // 5, steps // 2
    assert max(memory[half:]) - max(memory[warm:half]) < 40, memory
