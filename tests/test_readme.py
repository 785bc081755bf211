import re

import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper


def test_config_of_the_first_screen_builds(tmp_path):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    block = re.search(r'```python\n(_base_ = .*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[1]
    path = tmp_path / 'config.py'
    path.write_text(block)
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    check_optimizer(model, cfg)
    assert type(model.backbone).__name__ == 'DAT'
    assert [conv.in_channels for conv in model.neck.lateral_convs] == [96, 192, 384, 768]


def check_optimizer(model, cfg):
    """The optimiser is that of the project's own configs."""
    ours = Config.fromfile(ROOT / 'configs/mask_rcnn/dat_t_1x_coco.py')
    optimizers = [build_optim_wrapper(model, c.optim_wrapper).optimizer for c in (cfg, ours)]
    assert type(optimizers[0]) is type(optimizers[1]) is torch.optim.AdamW
    settings = [
        [(group['lr'], group['weight_decay'], group['betas']) for group in optimizer.param_groups]
        for optimizer in optimizers
    ]
    assert settings[0] == settings[1]
    assert {group[1] for group in settings[0]} == {0.0, 0.05}


def test_every_file_and_config_that_is_named_exists():
    text = (ROOT / 'README.md').read_text()
    named = set(re.findall(r'\b(?:configs|tools|tests|docs)/[\w/.]+\.\w+', text))
    named |= {f'configs/{path}' for path in re.findall(r'^\| `(\w+/\w+\.py)`', text, re.MULTILINE)}
    assert named
    assert not [path for path in sorted(named) if not (ROOT / path).is_file()]
