import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope

from ..analysis.tables import markdown_table
from .timing import interleaved_timings, peak_memory


def benchmark_detectors(
    configs: Sequence[str], data_root: str, index: int, scale: tuple[int, int], repeats: int
) -> str:
    """Compares a training step and an inference of detectors, with fresh weights, on a real image.

    Args:
        configs: Config files, or `mmdet::swin/...` for one that an installed library brings.
        data_root: Folder of COCO.
        index: Which of its training images.
        scale: Longest and shortest side that the image is resized to, keeping its ratio.
        repeats: Timed calls.

    Returns:
        A Markdown table: medians with half the inter-quartile range, ratios to the first config, and
        the peak of memory beyond the weights.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    steps, inferences, shape = {}, {}, None
    for name in configs:
        cfg = get_config(name) if '::' in name else Config.fromfile(name)
        init_default_scope(cfg.default_scope)
        step, inference, shape = _contender(cfg, data_root, index, scale, device)
        steps[name], inferences[name] = step, inference
    lines = [
        f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, float32, '
        f'one image of {shape[0]}x{shape[1]}, medians of {repeats}',
        '',
    ]
    cells = {name: [name] for name in configs}
    for contenders in (steps, inferences):
        timings = interleaved_timings(contenders, repeats)
        base = timings[configs[0]].median
        for name, function in contenders.items():
            timing = timings[name]
            cells[name] += [
                f'{timing.median:.2f} ± {timing.spread:.2f} s',
                f'{timing.median / base:.2f}',
                f'{peak_memory(function, device) / 2**20:.0f} MiB',
            ]
    times = ('training step', 'ratio', 'peak memory', 'inference', 'ratio', 'peak memory')
    return '\n'.join([*lines, markdown_table(('config', *times), cells.values())])


def _contender(
    cfg: Config, data_root: str, index: int, scale: tuple[int, int], device: torch.device
) -> tuple[Callable, Callable, tuple[int, int]]:
    from mmdet.registry import DATASETS, MODELS

    dataset_cfg = cfg.train_dataloader.dataset
    dataset_cfg.data_root = str(Path(data_root))
    dataset_cfg.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', scale=scale, keep_ratio=True),
        dict(type='PackDetInputs'),
    ]
    sample = DATASETS.build(dataset_cfg)[index]
    model: BaseModel = MODELS.build(ConfigDict(cfg.model)).to(device)
    data = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])

    def step():
        model.train().zero_grad(set_to_none=True)
        losses = model(**model.data_preprocessor(data, training=True), mode='loss')
        model.parse_losses(losses)[0].backward()

    @torch.no_grad()
    def inference():
        model.eval().zero_grad(set_to_none=True)
        model(**model.data_preprocessor(data), mode='predict')

    return step, inference, sample['data_samples'].img_shape
