"""What can be known about the data before a run: annotation files, label maps and the files they name.

Each format has a file, with what reads its classes and what checks it: `coco.py`, `label_maps.py` and
`class_folders.py`, named as `data_format` names them.
"""

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, DefaultScope

from .class_folders import check_class_folders, read_class_folders
from .coco import check_coco, read_categories
from .data_set import DataSet, data_set_configs, heads
from .label_maps import check_label_maps, find_suffix, read_class_names

__all__ = [
    'check_annotations',
    'data_set_configs',
    'find_suffix',
    'heads',
    'read_categories',
    'read_class_folders',
    'read_class_names',
]

_CHECKS = {
    'CocoDataset': check_coco,
    'BaseSegDataset': check_label_maps,
    'CustomDataset': check_class_folders,
}


def check_annotations(cfg: Config, split: str) -> None:
    """Compares the annotations of a split with its classes, with the model and with the files on disk.

    Serves mmdet's `CocoDataset`, mmsegmentation's `BaseSegDataset`, mmpretrain's `CustomDataset`, and the
    data sets that differ from them in their classes only; others pass. What the libraries leave out without
    a word is printed with its number, and the run goes on.

    Args:
        cfg: The whole config; the folders and annotation files of its data sets exist.
        split: `'train' | 'val' | 'test'`.

    Raises:
        PreflightError: With the first thing that cannot work.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        for config in data_set_configs(cfg, split):
            cls = config['type']
            if isinstance(cls, str):
                with DATASETS.switch_scope_and_registry(None) as registry:
                    cls = registry.get(cls)
            if not isinstance(cls, type) or not issubclass(cls, BaseDataset):
                continue
            kind = next((base.__name__ for base in cls.__mro__ if _reads_as(cls, base)), None)
            if kind is not None:
                metainfo = cls._load_metainfo(dict(config.get('metainfo') or {}))
                _CHECKS[kind](DataSet(cfg, split, config, config.get('classes') or metainfo.get('classes')))


def _reads_as(cls: type, base: type) -> bool:
    """Whether a data set reads its annotations as one of those that are checked."""
    readers = ('load_data_list', 'parse_data_info')
    return base.__name__ in _CHECKS and all(getattr(cls, name) is getattr(base, name) for name in readers)
