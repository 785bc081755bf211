"""Data-parallel training equals single-process training with the same total batch.

The cases are those in which the libraries themselves average losses alike in any number of processes: over
pixels, proposals and images, of which each process has as many as the others, or over the positives of all
processes (`reduce_mean`). Where they divide by the positives of a process (RetinaNet, mask heads), or by its
pixels that are not ignored, the average of the processes' losses is another loss.
"""

import pytest
import torch
from helpers.processes import run_together
from helpers.random_images import CASES, train


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_processes_train_as_one(case, tmp_path, trials):
    steps = trials(4, 20)
    expected = None
    for world_size in trials((1, 2), (1, 2, 4)):
        folder = tmp_path / str(world_size)
        losses = torch.tensor(run_together(train, world_size, folder, case, steps, 4, str(folder))).mean(0)
        weights = torch.load(folder / f'iter_{steps}.pth', weights_only=False)['state_dict']
        if expected is None:
            expected = losses, weights
            continue
        torch.testing.assert_close(losses, expected[0], rtol=5e-6, atol=0)
        for key, weight in weights.items():
            # running statistics are those of regions whose corners are rounded, too
            bound = 1e-4 if 'running' in key else 1e-5
            scale = expected[1][key].abs().max().clamp(min=1)
            assert (weight - expected[1][key]).abs().max() < bound * scale, key
