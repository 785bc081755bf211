"""The options of `tools/test.py`, for each of the three libraries."""

import os
import os.path as osp
from copy import deepcopy

import mmcv
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend

from .errors import PreflightError

_FLIP = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
_DET_META_KEYS = (
    'img_id',
    'img_path',
    'ori_shape',
    'img_shape',
    'scale_factor',
    'flip',
    'flip_direction',
)


def enable_tta(cfg: Config) -> None:
    """Test-time augmentation: the config's `tta_model` and `tta_pipeline`, or else horizontal flips.

    Raises:
        PreflightError: If the config has none and its library has no default, or for masks, which
            mmdet cannot merge.
    """
    if cfg.default_scope == 'mmdet' and 'mask_head' in cfg.model.get('roi_head', {}):
        raise PreflightError('mmdet cannot merge the masks of augmented images: run without --tta')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' not in cfg or 'tta_model' not in cfg:
        pack = deepcopy(dataset.pipeline[-1])
        if cfg.default_scope == 'mmdet':
            pack.meta_keys = _DET_META_KEYS
            nms = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
            model = dict(type='DetTTAModel', tta_cfg=nms)
        elif cfg.default_scope == 'mmpretrain':
            model = dict(type='AverageClsScoreTTA')
        else:
            raise PreflightError('--tta needs `tta_model` and `tta_pipeline` in the config')
        flips = dict(type='TestTimeAug', transforms=[_FLIP, [pack]])
        cfg.setdefault('tta_model', ConfigDict(model))
        cfg.setdefault('tta_pipeline', [*dataset.pipeline[:-1], ConfigDict(flips)])
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def enable_visualization(cfg: Config, show: bool, show_dir: str | None, wait_time: float = 0.0) -> None:
    """Draws the predictions of all images, on the screen or into a folder.

    With several processes the libraries draw the images of the first only.

    Args:
        cfg: Changed in place.
        show: Whether to open a window for each picture.
        show_dir: Where pictures go, each under its image's name; relative to the current directory. It is
            made here, so that a wrong path does not cost a run.
        wait_time: Seconds for which a picture is shown; with 0 it waits for a key.

    Raises:
        PreflightError: If the config has no visualization hook, or the folder cannot be made.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise PreflightError('--show and --show-dir need `default_hooks.visualization` in the config')
    if show_dir is not None:
        show_dir = osp.abspath(show_dir)  # mmdet would join it to the work directory, again for each batch
        try:
            os.makedirs(show_dir, exist_ok=True)
        except OSError as error:
            raise PreflightError(f'--show-dir {show_dir} cannot be made: {error.strerror}') from error
    hook.update(show=show, wait_time=wait_time)
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, interval=1)
    else:
        hook.draw = True
    if cfg.default_scope == 'mmdet':
        hook.test_out_dir = show_dir
    elif show_dir is not None:
        # mmseg's hook has no folder. mmpretrain's swaps red and blue: it takes the network's input for RGB.
        is_bgr = cfg.default_scope == 'mmpretrain'
        cfg.visualizer.vis_backends = [dict(type='PictureFolder', save_dir=show_dir, is_bgr=is_bgr)]


@VISBACKENDS.register_module()
class PictureFolder(BaseVisBackend):
    """Writes what the hooks of mmseg and mmpretrain draw into a folder, and nothing else.

    Args:
        save_dir: The folder.
        is_bgr: Whether the pictures come as BGR, instead of RGB.
    """

    def __init__(self, save_dir: str, is_bgr: bool):
        super().__init__(save_dir)
        self.is_bgr = is_bgr

    def _init_env(self) -> None:
        pass

    @property
    def experiment(self) -> 'PictureFolder':
        return self

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs) -> None:
        path = osp.join(self._save_dir, name.removeprefix('test_'))  # mmseg's prefix
        mmcv.imwrite(image if self.is_bgr else mmcv.rgb2bgr(image), path)


def dump_predictions_to(cfg: Config, path: str) -> None:
    """Adds an evaluator that pickles all predictions.

    Raises:
        PreflightError: If `path` does not end in `.pkl` or `.pickle`.
    """
    if not path.endswith(('.pkl', '.pickle')):
        raise PreflightError(f'--out writes a pickle file, its name must end in .pkl, got {path}')
    type_ = 'DumpDetResults' if cfg.default_scope == 'mmdet' else 'DumpResults'
    evaluators = cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    cfg.test_evaluator = [*evaluators, dict(type=type_, out_file_path=path)]
