"""mmdat's configs by name, `mmdat::mask_rcnn/dat_t_3x_coco.py`, for MMEngine's configs and hub."""

import os
import os.path as osp
import re
from functools import cache, wraps

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from .errors import UserError
from .spelling import did_you_mean


def register_package() -> None:
    """Adds mmdat to the packages whose configs MMEngine finds, in `_base_`, `get_config` and `get_model`.

    MMEngine looks names up in `mmdat/.mim`, so mmdat has to be installed.
    """
    if 'mmdat' in MODULE2PACKAGE:
        return
    MODULE2PACKAGE['mmdat'] = 'mmdat'
    MODULE2PACKAGE['mmseg'] = 'mmseg'  # "mmsegmentation" is not what the maintained line calls its package
    Config._get_cfg_path = staticmethod(_without_scope(Config._get_cfg_path))


def find_config(name: str) -> str:
    """The path of a config.

    Args:
        name: A path, which comes back as it is, or `PACKAGE::CONFIG` of a package of OpenMMLab, for instance
            `mmdat::mask_rcnn/dat_t_3x_coco.py`.

    Raises:
        UserError: If there is no such file.
    """
    path = name
    if '::' in name:
        try:
            path = Config._get_cfg_path(name, '')[0]
        except (AssertionError, ImportError, OSError, ValueError) as error:
            missing = re.fullmatch(r'file "(.*)" does not exist', str(error))
            if not missing:
                reason = str(error) or type(error).__name__
                raise UserError(f'config {name} cannot be found: {reason}') from error
            path = missing[1]
    if not osp.isfile(path):
        folder, file = osp.split(path)
        names = os.listdir(folder or '.') if osp.isdir(folder or '.') else []
        hint = did_you_mean(file, [other for other in names if other.endswith('.py')])
        raise UserError(f'config {name} does not exist{hint}')
    return path


def _without_scope(get_cfg_path):
    """MMEngine has all that a base defines built from the registries of the base's package.

    Those of mmdat hold the backbone only: what its configs name is of the library in `default_scope`.
    """

    # MMEngine reads all metafiles of a package for each name: most of the time that a config takes to load.
    find = cache(lambda name: get_cfg_path(name, ''))

    @wraps(get_cfg_path)
    def get(cfg_path: str, filename: str) -> tuple[str, str | None]:
        path, scope = find(cfg_path) if '::' in cfg_path else get_cfg_path(cfg_path, filename)
        return path, None if scope == 'mmdat' else scope

    return get
