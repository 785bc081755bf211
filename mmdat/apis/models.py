from collections.abc import Mapping
from copy import deepcopy
from logging import WARNING
from os import PathLike

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from ..checkpoint import load_model
from ..errors import UserError
from ..hub import find_config
from ..quiet import quiet


def init_model(
    config: str | PathLike | Config, checkpoint: str | PathLike, device: str | torch.device | None = None
) -> nn.Module:
    """Builds a detector, segmentor or classifier and loads its weights, strictly and without running them.

    Args:
        config: A path; the name of a config of a package, such as `mmdat::mask_rcnn/dat_t_3x_coco.py`; or a
            config. Its `load_generation` is heeded, see `load_pretrained`.
        checkpoint: A path, an `http(s)://` address, `mmdat://NAME` or `hf://ORG/REPO/FILE`, of a file with
            all weights of the model.
        device: Where the model goes. By default a GPU if there is one, else the CPU.

    Returns:
        The model, ready to predict. `cfg` is its config, and `dataset_meta` has what is known of the data
        set: `classes`, `palette`, and for segmentors `reduce_zero_label` and `label_map`.

    Raises:
        UserError: If there is no such config or device.
        CheckpointError: If the checkpoint cannot be read or does not fit the model.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(find_config(str(config)))
    device = _find_device(device)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        settings = deepcopy(cfg.model)
        if cfg.get('data_preprocessor') is not None:
            settings.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
        with quiet():
            model = revert_sync_batchnorm(MODELS.build(settings))
        content = load_model(model, str(checkpoint), cfg.get('load_generation'))
    model.dataset_meta = _describe_data_set(content.get('meta') or {}, cfg, count_classes(model))
    model.cfg = cfg
    return model.to(device).eval()


def _find_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'device {str(device)!r} cannot be used: {reason}') from error
    return found


def find_data(cfg: Config, loader: str = 'test_dataloader') -> dict:
    """The settings of the data set of a loader of a config, without wrappers; empty if there is none."""
    node = (cfg.get(loader) or {}).get('dataset') or {}
    while 'dataset' in node or 'datasets' in node:
        node = node['dataset'] if 'dataset' in node else node['datasets'][0]
    return node


def count_classes(model: nn.Module) -> int | None:
    """How many classes the heads of a model tell apart, if they say so."""
    for name in ('decode_head', 'roi_head.bbox_head', 'roi_head.bbox_head.0', 'bbox_head', 'head'):
        try:
            head = model.get_submodule(name)
        except AttributeError:
            continue
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        if isinstance(number := getattr(head, 'num_classes', None), int):
            return number
    return None


def _describe_data_set(of_file: Mapping, cfg: Config, num_classes: int | None) -> dict:
    """What the checkpoint says of its data set, or else the config, as far as it fits the model."""
    meta = of_file.get('dataset_meta')
    if not isinstance(meta, Mapping):  # of mmdet 2.x, mmseg 0.x and mmcls 0.x
        meta = {key: of_file[key] for key in ('CLASSES', 'PALETTE') if of_file.get(key)}
    meta = {key.lower(): value for key, value in meta.items()}
    own = _describe_test_data(cfg)
    if not meta.get('classes'):
        meta = own
    elif list(meta['classes']) == list(own.get('classes') or ()):
        meta = own | meta
    elif 'reduce_zero_label' in own:
        meta = {'reduce_zero_label': own['reduce_zero_label']} | meta

    classes = meta.get('classes')
    if num_classes is not None and len(classes or ()) != num_classes:
        meta = {key: meta[key] for key in ('reduce_zero_label',) if key in meta}
        classes = [f'class {i}' for i in range(num_classes)]
    if classes:
        meta['classes'] = tuple(classes)
        palette = meta.get('palette')
        if not isinstance(palette, list | tuple) or len(palette) != len(classes):
            meta.pop('palette', None)
    return meta


def _describe_test_data(cfg: Config) -> dict:
    """`metainfo` of the config's test data set, which is built without its files."""
    settings = deepcopy(find_data(cfg))
    if not settings:
        return {}
    try:
        with quiet(), DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            return dict(DATASETS.build(settings | dict(lazy_init=True, pipeline=[])).metainfo)
    except Exception as error:  # some data sets need their files even so
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
        print_log(f'classes are not read from the test data of the config ({reason})', 'current', WARNING)
        return dict(settings.get('metainfo') or {})
