"""Memory does not creep, and nothing is compiled for ever, where images are of ever other sizes."""

import pytest
from helpers.processes import run_together
from helpers.random_images import compile_at_random_sizes, train_at_random_sizes


@pytest.mark.slow
def test_resident_memory_is_flat_after_warm_up(tmp_path, trials):
    """Without oneDNN, which keeps what it compiled for up to 1024 shapes of convolutions."""
    steps = trials(60, 500)
    (memory,) = run_together(train_at_random_sizes, 1, tmp_path, 'atss', steps)
    warm, half = steps // 5, steps // 2
    assert max(memory[half:]) - max(memory[warm:half]) < 40, memory


@pytest.mark.slow
def test_blocks_are_compiled_once_for_any_size(tmp_path, trials):
    """Three graphs at most for each of the four kinds of block: sizes that a window divides, and few keys."""
    arch = dict(embed_dims=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))
    settings = dict(arch=arch, img_size=64, block_patterns=('LS', 'ND', 'D', 'D'), out_indices=(0, 1))
    (graphs,) = run_together(compile_at_random_sizes, 1, tmp_path, settings, trials(6, 60))
    assert graphs[-1] <= 3 * 4, graphs
