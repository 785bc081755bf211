"""Sizes of the batches that a training pipeline makes: the usual one, and the largest."""

from mmengine.config import Config

DIVISOR = 32  # to which detectors pad


def batch_size(cfg: Config) -> int:
    """Images of a training step on one GPU."""
    return cfg.train_dataloader.batch_size


def usual_canvas(cfg: Config) -> tuple[int, int]:
    """Height and width: for detectors that of landscapes at the largest scale."""
    if cfg.default_scope != 'mmdet':
        return worst_canvas(cfg)
    return _padded(min(_scale(cfg))), _padded(max(_scale(cfg)))


def worst_canvas(cfg: Config) -> tuple[int, int]:
    """Height and width that a batch can have at most.

    Detectors pad the images of a batch to the largest height and width. Images are grouped into portraits and
    landscapes, but the last batch of an epoch takes what is left of both.
    """
    steps = _steps(cfg.train_dataloader.dataset)
    match cfg.default_scope:
        case 'mmdet':
            long, short = max(_scale(cfg)), min(_scale(cfg))
            return (_padded(long if batch_size(cfg) > 1 else short), _padded(long))
        case 'mmseg':
            return tuple(next(step for step in steps if step.type == 'RandomCrop').crop_size)
        case 'mmpretrain':
            return (next(step for step in steps if step.type == 'RandomResizedCrop').scale,) * 2


def _steps(dataset) -> list:
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    return dataset.pipeline


def _scale(cfg: Config) -> tuple[int, int]:
    """The largest scale of the last resize."""

    def scales(steps) -> list:
        found = []
        for step in steps:
            if step.type == 'RandomChoice':
                found += [scale for branch in step.transforms for scale in scales(branch)]
            elif step.type == 'RandomChoiceResize':
                found += step.scales
            elif step.type == 'Resize':
                found.append(step.scale)
        return found

    return max(scales(_steps(cfg.train_dataloader.dataset)), key=lambda scale: min(scale) * max(scale))


def _padded(size: int) -> int:
    return -(-size // DIVISOR) * DIVISOR
