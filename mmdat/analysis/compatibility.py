"""DAT in the place of the backbone of the libraries' own configs: does it build, train and predict?"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import chain
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import set_random_seed
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor, nn
from torch.optim import SGD

from ..errors import UserError
from ..spelling import did_you_mean
from .tables import markdown_table

# One for each head or way of training of each library, of those whose backbone returns up to four maps.
STOCK = {
    'mmdet': [
        'atss/atss_r50_fpn_1x_coco',
        'boxinst/boxinst_r50_fpn_ms-90k_coco',
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco',
        'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco',
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco',
        'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance',
        'dab_detr/dab-detr_r50_8xb2-50e_coco',
        'ddod/ddod_r50_fpn_1x_coco',
        'ddq/ddq-detr-4scale_r50_8xb2-12e_coco',
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
        'detr/detr_r50_8xb2-150e_coco',
        'dino/dino-4scale_r50_8xb2-12e_coco',
        'double_heads/dh-faster-rcnn_r50_fpn_1x_coco',
        'dyhead/atss_r50_fpn_dyhead_1x_coco',
        'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco',
        'faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco',
        'foveabox/fovea_r50_fpn_4xb4-1x_coco',
        'free_anchor/freeanchor_r50_fpn_1x_coco',
        'gfl/gfl_r50_fpn_1x_coco',
        'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco',
        'htc/htc-without-semantic_r50_fpn_1x_coco',
        'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco',
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco',
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
        'ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco',
        'paa/paa_r50_fpn_1x_coco',
        'pafpn/faster-rcnn_r50_pafpn_1x_coco',
        'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco',
        'queryinst/queryinst_r50_fpn_1x_coco',
        'reppoints/reppoints-moment_r50_fpn_1x_coco',
        'retinanet/retinanet_r50_fpn_1x_coco',
        'rpn/rpn_r50_fpn_1x_coco',
        'rtmdet/rtmdet_s_8xb32-300e_coco',
        'sabl/sabl-faster-rcnn_r50_fpn_1x_coco',
        'solo/solo_r50_fpn_1x_coco',
        'solov2/solov2_r50_fpn_1x_coco',
        'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco',
        'tood/tood_r50_fpn_1x_coco',
        'vfnet/vfnet_r50_fpn_1x_coco',
        'yolact/yolact_r50_1xb8-55e_coco',
        'yolof/yolof_r50-c5_8xb8-1x_coco',
        'yolox/yolox_s_8xb8-300e_coco',
    ],
    'mmseg': [
        'ann/ann_r50-d8_4xb4-80k_ade20k-512x512',
        'apcnet/apcnet_r50-d8_4xb4-80k_ade20k-512x512',
        'ccnet/ccnet_r50-d8_4xb4-80k_ade20k-512x512',
        'danet/danet_r50-d8_4xb4-80k_ade20k-512x512',
        'deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512',
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
        'dnlnet/dnl_r50-d8_4xb4-80k_ade20k-512x512',
        'encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512',
        'fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512',
        'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512',
        'gcnet/gcnet_r50-d8_4xb4-80k_ade20k-512x512',
        'isanet/isanet_r50-d8_4xb4-80k_ade20k-512x512',
        'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512',
        'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512',
        'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512',
        'psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512',
        'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512',
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
        'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512',
        'upernet/upernet_r50_4xb4-80k_ade20k-512x512',
    ],
    'mmpretrain': [
        'convnext/convnext-tiny_32xb128_in1k',
        'resnet/resnet50_8xb32_in1k',
        'resnet/resnet50_8xb32-mixup_in1k',
        'resnet/resnet50_8xb256-rsb-a1-600e_in1k',
        'swin_transformer/swin-tiny_16xb64_in1k',
    ],
}
# Heads that the paper did not have.
OWN = (
    'mmdat::dino/dat_t_12e_coco',
    'mmdat::dino/dat_pp_t_12e_coco',
    'mmdat::mask2former/dat_t_50e_coco',
    'mmdat::mask2former/dat_pp_t_50e_coco',
    'mmdat::rtmdet/dat_t_100e_coco',
    'mmdat::rtmdet/dat_pp_t_100e_coco',
    'mmdat::segformer/dat_t_160k_ade20k',
    'mmdat::segformer/dat_pp_t_160k_ade20k',
)
NAMES = tuple(f'{library}::{name}' for library, names in STOCK.items() for name in names)

DAT_T = dict(type='mmdat.DAT', arch='tiny')
SWIN_T = dict(type='mmdet.SwinTransformer')
STEPS = 'builds', 'training step', 'prediction'
MARK = '<!-- What follows is written by tools/analysis/check_compatibility.py. -->\n'

_COLUMNS = 'config', '`out_indices`', 'maps used', *STEPS, 'remark'
_NUM_STAGES = 4
_PROBE = 224  # side of the images that tell what a backbone returns, in pixels
_SIZE = 128, 160  # height and width in pixels
_LARGE = 288, 320
_LIMITS = {'num', 'nms_pre', 'max_per_img', 'num_points', 'subdivision_num_points'}
_THRESHOLDS = dict(score_thr=0.0, filter_thr=0.0, mask_thr=0.0, min_bbox_size=-1)  # that filter nothing


@dataclass
class Outcome:
    """What came of a config.

    Attributes:
        out_indices: The stages whose maps the backbone returns.
        used: Those of them that a loss depends on.
        failed: One of `STEPS`, or `None` if all of them worked.
        error: What the failure said, in a line.
        remarks: What was changed beyond channels, and what was expected of the old backbone.
    """

    out_indices: tuple[int, ...] = ()
    used: tuple[int, ...] = ()
    failed: str | None = None
    error: str = ''
    remarks: list[str] = field(default_factory=list)


def try_config(name: str, backbone: Mapping | None = None) -> Outcome:
    """Builds a config with a backbone, makes a training step, and predicts, on two small random images.

    The loss has to be finite. Gradients have to reach all stages of the backbone up to the last one that is
    used, and to be finite. Predictions have to be finite, and not empty: none is filtered by its score or
    size. Weights are random, and seeded.

    Args:
        name: `'LIBRARY::FOLDER/NAME'`, of an installed library.
        backbone: A backbone of four `stages`, without `out_indices`. By default the config keeps its own.

    Returns:
        The outcome. What fails is told there, and not raised.

    Raises:
        UserError: If there is no such config.
    """
    cfg, outcome = _load(name), Outcome()
    set_random_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            for step in _trial(cfg, backbone, outcome):
                outcome.failed = step
        except Exception as error:
            outcome.error = f'{type(error).__name__}: {" ".join(str(error).split())}'
        else:
            outcome.failed = None
    return outcome


def compatibility_row(name: str) -> tuple[str, ...]:
    """The cells of a config in the table.

    Stock configs get DAT-T, and where it fails Swin-T as well. The project's own are tried as they are.

    Args:
        name: As for `try_config`.
    """
    own = name.startswith('mmdat::')
    outcome = try_config(name, None if own else DAT_T)
    remarks = outcome.remarks
    if outcome.failed:
        remarks.append(outcome.error)
        if not own:
            remarks.append(_compare(outcome, try_config(name, SWIN_T)))
    done = STEPS.index(outcome.failed) if outcome.failed else len(STEPS)
    return (
        f'`{name}`',
        ', '.join(map(str, outcome.out_indices)),
        ', '.join(map(str, outcome.used)),
        *('yes' if i < done else 'no' if i == done else '' for i in range(len(STEPS))),
        '; '.join(remarks).replace('|', r'\|'),
    )


def _compare(outcome: Outcome, swin: Outcome) -> str:
    if not swin.failed:
        return 'Swin-T works'
    if (swin.failed, swin.error) == (outcome.failed, outcome.error):
        return 'Swin-T fails alike'
    return f'Swin-T fails otherwise, {swin.failed}: {swin.error}'


def read_rows(page: str | Path) -> dict[str, tuple[str, ...]]:
    """The rows of a page's tables, by config."""
    rows = {}
    for line in Path(page).read_text().partition(MARK)[2].splitlines():
        # a bar inside a cell follows a backslash
        cells = tuple(cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1])
        if len(cells) == len(_COLUMNS) and cells[0].startswith('`'):
            rows[cells[0].strip('`')] = cells
    return rows


def update_page(page: str | Path, rows: Mapping[str, tuple[str, ...]]) -> None:
    """Puts rows into the tables of a page, below its mark. Rows of other configs stay as they are.

    Args:
        page: A Markdown file.
        rows: Of `compatibility_row`, by config.

    Raises:
        UserError: If the page has no mark, or a row is of none of the configs that are listed here.
    """
    page = Path(page)
    introduction, mark, _ = page.read_text().partition(MARK)
    if not mark:
        raise UserError(f'{page} has no line {MARK.strip()!r}, below which the tables go')
    if unlisted := rows.keys() - {*NAMES, *OWN}:
        raise UserError(f'{page} takes the configs of its list only, not {", ".join(sorted(unlisted))}')
    rows = read_rows(page) | rows
    sections = [introduction + mark, f'Run with {_versions()}.\n']
    for title, names in (('Stock configs', NAMES), ("mmdat's own configs", OWN)):
        body = [rows[name] for name in names if name in rows]
        works = sum(row[3:6] == ('yes',) * len(STEPS) for row in body)
        sections.append(f'## {title}: {works} of {len(names)} work\n\n{markdown_table(_COLUMNS, body)}\n')
    new = page.with_suffix('.new')
    new.write_text('\n'.join(sections))
    new.replace(page)  # at once: others may be writing rows of theirs


def _versions() -> str:
    libraries = ('torch', 'mmengine', 'mmcv', *STOCK)
    return ', '.join(f'{name} {import_module(name).__version__}' for name in libraries)


def _trial(cfg: Config, backbone: Mapping | None, outcome: Outcome) -> Iterator[str]:
    """Names each step, then does it."""
    builds, training_step, prediction = STEPS
    yield builds
    settings = cfg.model
    settings.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    if backbone is not None:
        _replace_backbone(settings, backbone, outcome.remarks)
    _forget_pretrained(settings)
    size = _image_size(settings)
    _make_small(settings, size)
    model = revert_sync_batchnorm(MODELS.build(settings))
    model.init_weights()
    outcome.out_indices = tuple(model.backbone.out_indices)
    make_batch = partial(_BATCHES[cfg.default_scope], cfg, size)
    yield training_step
    outcome.used = _train(model, make_batch(), outcome.out_indices)
    yield prediction
    _predict(model, make_batch())


def _load(name: str) -> Config:
    library, _, path = name.partition('::')
    try:
        # MMEngine looks for mmseg in a package whose name is not that of the tested version's
        folder = Path(import_module(library).__file__).parent
    except (ImportError, ValueError) as error:
        raise UserError(f'config {name}: no library {library!r}; names are LIBRARY::FOLDER/NAME') from error
    file = folder / '.mim' / 'configs' / f'{path}.py'
    if not file.is_file():
        raise UserError(f'config {name} does not exist{did_you_mean(name, (*NAMES, *OWN))}')
    return Config.fromfile(file)


def _replace_backbone(model: ConfigDict, backbone: Mapping, remarks: list[str]) -> None:
    """Gives a model a backbone that returns as many maps as its old one, of the last stages.

    What takes the maps, a neck with channels or else the heads, gets the new numbers of channels.

    Raises:
        ValueError: If the old backbone returns more maps than there are stages.
    """
    old = _maps(model.backbone)
    if len(old) > _NUM_STAGES:
        raise ValueError(f'the backbone returns {len(old)} maps, more than the {_NUM_STAGES} of DAT')
    stages = tuple(range(_NUM_STAGES))[-len(old) :]
    model.backbone = ConfigDict(backbone, out_indices=stages, drop_path_rate=0.0)
    new = _maps(model.backbone)
    if old[-1].ndim == 2:
        model.neck = ConfigDict(type='GlobalAveragePooling')
        remarks.append('with a `GlobalAveragePooling` neck, for a backbone that pools')
    else:
        strides, ours = ([_PROBE // x.shape[-1] for x in maps] for maps in (old, new))
        if strides != ours:
            remarks.append(f'made for strides {", ".join(map(str, strides))}')
    channels = {a.shape[1]: b.shape[1] for a, b in zip(old, new)}
    necks = [neck for neck in _as_list(model.get('neck')) if 'in_channels' in neck]
    heads = [head for key in model if key.endswith('head') for head in _as_list(model[key])]
    takers = necks[:1] or heads
    if necks and necks[0].type == 'JPU':  # hands on what it gets, but for the last map
        takers += [head for head in heads if head.in_index < len(old) - 1]
    for node in takers:
        _rename_channels(node, channels)


@torch.no_grad()
def _maps(backbone: ConfigDict) -> list[Tensor]:
    """What a backbone returns for an image."""
    module = MODELS.build({**backbone, 'init_cfg': None})
    module.eval()
    return list(module(torch.zeros(1, 3, _PROBE, _PROBE)))


def _rename_channels(node: ConfigDict, channels: Mapping[int, int]) -> None:
    for key in {'in_channels', 'c1_in_channels'} & node.keys():
        value = node[key]
        if isinstance(value, int):
            node[key] = channels[value]
        else:
            node[key] = type(value)(channels[number] for number in value)


def _forget_pretrained(model: ConfigDict) -> None:
    """There may be no network, and weights do not matter."""
    for node in _nodes(model):
        node.pop('pretrained', None)
        if any(init_cfg.type == 'Pretrained' for init_cfg in _as_list(node.get('init_cfg'))):
            node.init_cfg = None


def _make_small(model: ConfigDict, size: tuple[int, int]) -> None:
    """Small images, few regions and points, and no thresholds for predictions, which are random."""
    preprocessor = model.data_preprocessor
    if 'size' in preprocessor:
        preprocessor.size = size
    if 'batch_augments' in preprocessor:  # to large images
        preprocessor.batch_augments = None
    for node in chain(_nodes(model.get('train_cfg')), _nodes(model.get('test_cfg'))):
        for key in _LIMITS & node.keys():
            node[key] = min(node[key], 100)  # as many as Sparse R-CNN has proposals
        node.update({key: value for key, value in _THRESHOLDS.items() if key in node})


def _image_size(model: ConfigDict) -> tuple[int, int]:
    """Height and width that the heads of a model can work with."""
    many_positions = model.get('as_two_stage')  # choose their queries from as many positions
    deformable_convolutions = model.get('bbox_head', {}).get('type') == 'DDODHead'  # of 3 x 3 on every level
    return _LARGE if many_positions or deformable_convolutions else _SIZE


def _as_list(nodes: Mapping | Sequence | None) -> list:
    return [nodes] if isinstance(nodes, Mapping) else list(nodes or ())


def _nodes(node: object) -> Iterator[ConfigDict]:
    """The dicts inside a config, each before those inside it."""
    if isinstance(node, Mapping):
        yield node
    if isinstance(node, Mapping | list | tuple):
        for child in node.values() if isinstance(node, Mapping) else node:
            yield from _nodes(child)


def _train(model: nn.Module, batch: dict, out_indices: Sequence[int]) -> tuple[int, ...]:
    """Makes a training step.

    Returns:
        The stages whose maps get a gradient.

    Raises:
        ValueError: If the loss or a gradient is not as `try_config` says.
    """
    maps, gradients = [], {}

    def keep_maps(module: nn.Module, args: tuple, outs: Sequence[Tensor]) -> None:
        for out in outs:
            if out.requires_grad:
                out.retain_grad()
            maps.append(out)

    model.train()
    # as runners do; some losses change in the course of a training
    MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))
    hook = model.backbone.register_forward_hook(keep_maps)
    for parameter in model.backbone.parameters():
        if parameter.requires_grad:  # its gradient is forgotten after the step
            parameter.register_post_accumulate_grad_hook(lambda p: gradients.update({p: p.grad}))
    log = model.train_step(batch, OptimWrapper(SGD(model.parameters(), lr=1e-4)))
    hook.remove()
    if not log['loss'].isfinite():
        raise ValueError(f'the loss is {log["loss"].item()}')
    used = tuple(index for index, out in zip(out_indices, maps) if out.grad is not None and out.grad.any())
    for index in range(max(used, default=0) + 1):
        arrived = [gradients[p] for p in model.backbone.stages[index].parameters() if p in gradients]
        if not any(gradient.any() for gradient in arrived):
            raise ValueError(f'no gradient reaches stage {index} of the backbone')
        if not all(gradient.isfinite().all() for gradient in arrived):
            raise ValueError(f'gradients of stage {index} of the backbone are not finite')
    return used


@torch.no_grad()
def _predict(model: nn.Module, batch: dict) -> None:
    """Predicts.

    Raises:
        ValueError: If there is nothing in the predictions, or what is not finite.
    """
    model.eval()
    predictions = []
    for sample in model.test_step(batch):
        for key, value in sample.items():
            if key.startswith(('pred', 'seg_logits')):
                predictions += _tensors(value)
    if not any(prediction.numel() for prediction in predictions):
        raise ValueError('predictions are empty')
    if not all(prediction.isfinite().all() for prediction in predictions):
        raise ValueError('predictions are not finite')


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, BaseDataElement):
        for item in value.values():
            yield from _tensors(item)


def _detection_batch(cfg: Config, size: tuple[int, int]) -> dict:
    """Two images with boxes and what else the config loads. Where it pads images, one of them needs it."""
    from mmdet.testing import demo_mm_inputs

    height, width = size
    smaller = (height - 8, width - 32) if 'pad_size_divisor' in cfg.model.data_preprocessor else size
    loads = {
        key for node in _nodes(cfg.train_dataloader) for key in node if key.startswith('with_') and node[key]
    }
    return demo_mm_inputs(
        2,
        [(3, height, width), (3, *smaller)],
        num_items=[3, 2],
        num_classes=80,
        with_mask='with_mask' in loads,
        with_semantic='with_seg' in loads,
        use_box_type=True,
    )


def _segmentation_batch(cfg: Config, size: tuple[int, int]) -> dict:
    """Two images, with a class for each pixel."""
    from mmseg.structures import SegDataSample

    samples = []
    for image in _images(size):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        sample.set_data(dict(gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, *size)))))
        samples.append(dict(inputs=image, data_samples=sample))
    return pseudo_collate(samples)


def _classification_batch(cfg: Config, size: tuple[int, int]) -> dict:
    """Two images, of class 0 and 1."""
    from mmpretrain.structures import DataSample

    images = _images(size)
    return pseudo_collate(
        [dict(inputs=image, data_samples=DataSample().set_gt_label(i)) for i, image in enumerate(images)]
    )


def _images(size: tuple[int, int]) -> Tensor:
    return torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)


_BATCHES: dict[str, Callable[[Config, tuple[int, int]], dict]] = {
    'mmdet': _detection_batch,
    'mmseg': _segmentation_batch,
    'mmpretrain': _classification_batch,
}
