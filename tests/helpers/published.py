"""Files as the authors' code bases save them, of weights of golden cases."""

import os
import pickle
import sys
import types
from contextlib import contextmanager

import numpy as np
import torch
from helpers.goldens import official_weights, read_golden


class Planted:
    """Creates a folder when it is unpickled in full."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.makedirs, (self.path, 0o777, True)


def weights_of(name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Weights of a golden case under the authors' names."""
    case, _ = read_golden(name)
    weights = official_weights(case['keys'], case['offset_gain'])
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}


@contextmanager
def installed_yacs():
    """A stand-in for yacs, which pickles as yacs does; only to write with."""

    class CfgNode(dict):
        def __init__(self, values):
            super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in values.items()})
            self.__dict__.update(
                __immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False
            )

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    modules = {name: types.ModuleType(name) for name in ('yacs', 'yacs.config')}
    modules['yacs.config'].CfgNode = modules['yacs'].config = CfgNode
    sys.modules.update(modules)
    try:
        yield CfgNode
    finally:
        for name in modules:
            del sys.modules[name]


def save_classifier(path, weights: dict, settings: dict | None = None, prefix: str = '', **more) -> str:
    """`save_checkpoint` of the authors' classifiers: with the whole state of the training, or stripped to the
    weights if `settings`, those in the yacs configuration, are not given."""
    content = {'model': {f'{prefix}{key}': value for key, value in weights.items()}} | more
    if settings is None:
        torch.save(content, path)
        return str(path)
    parameter = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    schedule = {'base_values': [1e-3], 'warmup_steps': [5e-5], 't_initial': 300, 'noise_range_t': None}
    with installed_yacs() as config:
        content |= {
            'optimizer': optimizer.state_dict(),
            'lr_scheduler': schedule,
            'max_accuracy': np.float64(82.0),
            'epoch': 299,
            'config': config({'MODEL': {'TYPE': 'dat', 'DAT': settings}, 'AUG': {'CUTMIX_MINMAX': None}}),
        }
        torch.save(content, path)
    return str(path)


def save_mmcv(path, weights: dict, prefix: str = '', config: str = "model = dict(type='DAT')\n") -> str:
    """`save_checkpoint` of mmcv 1.x, in mmdet 2.x and mmseg 0.x."""
    meta = {
        'env_info': 'sys.platform: linux',
        'config': config,
        'seed': 0,
        'exp_name': 'mrcn_tiny_1x_4n_dp00_lr4.py',
        'mmdet_version': '2.26.0',
        'CLASSES': ('person', 'bicycle'),
        'PALETTE': [(220, 20, 60), (119, 11, 32)],
        'epoch': 12,
        'iter': 87960,
        'mmcv_version': '1.4.0',
        'time': 'Mon Sep  4 12:00:00 2023',
        'hook_msgs': {'last_ckpt': 'epoch_12.pth', 'best_score': np.float64(0.487)},
    }
    state_dict = {f'{prefix}{key}': value for key, value in weights.items()}
    torch.save({'meta': meta, 'state_dict': state_dict, 'optimizer': {'state': {}, 'param_groups': []}}, path)
    return str(path)


def save_malicious(folder, kind: str, weights: dict, marker) -> str:
    """A checkpoint that plants `marker` when it is unpickled in full, otherwise as it should be."""
    path = str(folder / 'dat_tiny_in1k_224.pth')
    planted = Planted(marker)
    if kind == 'bare pickle':
        with open(path, 'wb') as file:
            pickle.dump({'model': planted}, file)
    elif kind == 'older format':
        torch.save({'model': weights, 'epoch': planted}, path, _use_new_zipfile_serialization=False)
    elif kind == 'among the weights':
        torch.save({'model': weights | {'stages.0.layer_norms.0.norm.bias': planted}}, path)
    elif kind == 'in place of the file':
        torch.save(planted, path)
    else:
        assert kind == 'in the configuration'
        with installed_yacs() as config:
            content = {'model': weights, 'config': config({'MODEL': {'DAT': {'dims': planted}}})}
            torch.save(content, path)
    return path


MALICIOUS = [
    'among the weights',
    'in the configuration',
    'in place of the file',
    'older format',
    'bare pickle',
]
