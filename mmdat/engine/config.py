import os.path as osp
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..hub import find_config
from .checks.names import check_options, check_top_level
from .errors import in_one_line
from .own_data import follow_data, place_data, settings_of


def load_config(
    path: str,
    cfg_options: dict | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
) -> Config:
    """Reads a config file and applies the command line to it.

    Args:
        path: Config file, or `mmdat::` and the name of a config of the package, as in MMEngine.
        cfg_options: Settings to override, with dotted keys. `data_root` moves every path below the
            config's data root, so that a data set elsewhere needs one option.
        work_dir: Where logs and checkpoints go. By default the config's `work_dir`, or else
            `work_dirs/mask_rcnn/dat_t_3x_coco` for `configs/mask_rcnn/dat_t_3x_coco.py`, and
            `work_dirs/` and the config's name for a file that is not below a folder `configs`.
        launcher: `'none' | 'pytorch' | 'slurm' | 'mpi'`.

    Raises:
        UserError: If there is no such file, if it cannot be read, or for names that look misspelt.
    """
    path = find_config(path)
    with in_one_line(path):
        cfg = Config.fromfile(path)
    options = dict(cfg_options or {})
    check_options(dict(cfg.items()), options)
    with in_one_line('--cfg-options'):
        if 'data_root' in options and 'data_root' in cfg:
            old, new = (osp.join(root, '') for root in (cfg.data_root, options['data_root']))
            for key, value in list(cfg.items()):
                cfg[key] = _move(value, old, new)
        cfg.merge_from_dict(options)
    check_top_level(cfg.keys(), settings_of(cfg))
    place_data(cfg, options)
    cfg.work_dir = work_dir or cfg.get('work_dir') or osp.join('work_dirs', name_run(path))
    cfg.launcher = launcher
    return cfg


def load_trained_config(path: str, checkpoint: str, cfg_options: dict | None = None) -> Config:
    """The config of a trained model: `load_config`, with the classes of the checkpoint, see `follow_data`."""
    cfg = load_config(path, cfg_options)
    cfg.load_from = checkpoint
    follow_data(cfg, training=False)
    return cfg


def name_run(path: str) -> str:
    """The config's path below the nearest folder `configs`, without suffix."""
    *folders, name = Path(osp.abspath(path)).with_suffix('').parts
    below = folders[::-1].index('configs') if 'configs' in folders else 0
    return osp.join(*folders[len(folders) - below :], name)


def _move(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str) and osp.join(value, '').startswith(old):
        return new + value[len(old) :]
    if isinstance(value, dict):
        for key in value:
            value[key] = _move(value[key], old, new)
        return value
    if isinstance(value, list | tuple):
        return type(value)(_move(item, old, new) for item in value)
    return value
