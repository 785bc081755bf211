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

# Of losses near 10, and of weights and running statistics up to 100
LOSS_BOUND = dict(rtol=2e-6, atol=0)
WEIGHT_BOUND = dict(rtol=5e-5, atol=1e-5)


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
        torch.testing.assert_close(losses, expected[0], **LOSS_BOUND)
        for key, weight in weights.items():
            torch.testing.assert_close(
                weight, expected[1][key], **WEIGHT_BOUND, msg=lambda m, key=key: f'{key}: {m}'
            )
