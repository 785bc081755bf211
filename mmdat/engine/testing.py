"""The options of `tools/test.py`, for each of the three libraries."""

from copy import deepcopy

from mmengine.config import Config, ConfigDict

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


def enable_visualization(cfg: Config, show: bool, show_dir: str | None) -> None:
    """Draws predictions, on the screen or into a folder.

    Raises:
        PreflightError: If the config has no visualization hook.
    """
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise PreflightError('--show and --show-dir need `default_hooks.visualization` in the config')
    hook.show = show
    if cfg.default_scope == 'mmpretrain':
        hook.update(enable=True, out_dir=show_dir)
    else:
        hook.draw = True
        if cfg.default_scope == 'mmdet':
            hook.test_out_dir = show_dir
        elif show_dir:
            cfg.visualizer.save_dir = show_dir


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
