import os

import torch
from mmengine.config import Config
from mmengine.logging import print_log

# What DAT's models use and PyTorch, as `torch.use_deterministic_algorithms` lists it, or mmcv adds up in no
# fixed order on GPUs.
NONDETERMINISTIC_ON_GPUS = (
    'the gradients of F.grid_sample (deformable attention, where no Triton kernel serves), F.interpolate '
    "(segmentation heads) and AdaptiveAvgPool2d (UperNet), the 2d NLLLoss (segmentation), and mmcv's RoIAlign"
)


def make_deterministic(cfg: Config) -> None:
    """Lets runs of the same config and number of processes and threads end in the same bits, on CPUs.

    On GPUs only what `NONDETERMINISTIC_ON_GPUS` names remains; PyTorch warns at each of its own.

    Args:
        cfg: Changed in place. A seed that it lacks becomes 0.
    """
    randomness = cfg.get('randomness', {})
    if randomness.get('seed') is None:
        cfg.randomness = {**randomness, 'seed': 0}
    cfg.env_cfg.cudnn_benchmark = False
    torch.backends.cudnn.deterministic = True
    os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    on_gpus = torch.cuda.is_available()
    # `randomness.deterministic` of MMEngine would end a training on GPUs at the first such operation
    torch.use_deterministic_algorithms(True, warn_only=on_gpus)
    if on_gpus:
        print_log(f'--deterministic: not deterministic on GPUs are {NONDETERMINISTIC_ON_GPUS}')
