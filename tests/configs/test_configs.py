"""Every config builds: its model, its data pipelines and its optimiser."""

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from mmdat.released import RELEASED

CONFIGS = ROOT / 'configs'
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob('[!_]*/*.py'))
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def build(cfg) -> nn.Module:
    """The model without the numbers of its weights, which no test here looks at; Swin cannot do without."""
    with torch.device('cpu' if 'Swin' in str(cfg.backbone.type) else 'meta'):
        return MODELS.build(cfg)


def weight_decays(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, float]:
    return {p: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}


@pytest.mark.parametrize('name', NAMES)
def test_config_builds(name):
    cfg = Config.fromfile(CONFIGS / name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for split in ('train', 'val', 'test'):
            dataset = cfg[f'{split}_dataloader'].dataset
            while 'dataset' in dataset:
                dataset = dataset.dataset
            assert DATASETS.build({**dataset, 'lazy_init': True}).pipeline.transforms
        model = build(cfg.model)
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)

    # `--auto-scale-lr` starts from eight GPUs, but where the learning rate is for another number of images
    if name.startswith(('retinanet', 'mask_rcnn', 'cascade', 'semantic', 'upernet')) and 'pp' not in name:
        assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size
    assert cfg.auto_scale_lr.base_batch_size > 0

    decays = weight_decays(optim_wrapper.optimizer)
    assert decays.keys() == {p for p in model.parameters() if p.requires_grad}
    no_biases = name.startswith(('imagenet', 'ablation', 'rtmdet'))  # other recipes let biases decay
    embeddings = ('query_embed', 'query_feat', 'level_embed') if name.startswith('mask2former') else ()
    expected = {}
    for module_name, module in model.named_modules():
        for key, p in module.named_parameters(recurse=False):
            spared = isinstance(module, NORMS) or 'position_bias' in f'{module_name}.{key}'
            spared |= no_biases and p.ndim == 1
            spared |= f'{module_name}.{key}'.startswith(tuple(f'panoptic_head.{e}' for e in embeddings))
            expected[p] = 0.0 if spared else cfg.optim_wrapper.optimizer.weight_decay
    for key, p in model.named_parameters():
        assert decays.get(p, expected[p]) == expected[p], key
    assert any(p in decays for p in expected if expected[p] == 0)


@pytest.mark.parametrize('name', [n for n in NAMES if n.startswith(('mask2former', 'dino', 'segformer'))])
def test_pretrained_backbones_learn_slower(name):
    """A tenth of the rate of the rest, every parameter of them; under SegFormer the head learns faster."""
    cfg = Config.fromfile(CONFIGS / name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build(cfg.model)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rates = {p: group['lr'] for group in optimizer.param_groups for p in group['params']}
    rate = cfg.optim_wrapper.optimizer.lr
    slow, fast = (rate, 10 * rate) if name.startswith('segformer') else (rate / 10, rate)
    for key, p in model.named_parameters():
        if p.requires_grad:
            assert rates[p] == pytest.approx(slow if key.startswith('backbone.') else fast), key


@pytest.mark.parametrize(
    ('custom', 'released'),
    [
        ('mask_rcnn_dat_pp_t_coco_format', 'mask_rcnn/dat_pp_t_3x_coco'),
        ('retinanet_dat_pp_t_coco_format', 'retinanet/dat_pp_t_3x_coco'),
        ('upernet_dat_pp_t_folders', 'upernet/dat_pp_t_160k_ade20k'),
    ],
)
def test_released_files_fit_the_models_for_own_data(custom, released):
    cfg, of_file = (Config.fromfile(CONFIGS / f'{name}.py') for name in (f'custom/{custom}', released))
    assert cfg.model == of_file.model
    release = RELEASED[cfg.load_from.removeprefix('mmdat://')]
    models = load(CONFIGS / released.split('/')[0] / 'metafile.yml')['Models']
    (entry,) = (model for model in models if model['Config'] == f'configs/{released}.py')
    assert entry['Weights'] == release.url
