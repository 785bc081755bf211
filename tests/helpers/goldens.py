"""Numbers produced by the authors' code, and the same weights and inputs in ours."""

import json
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdat.backbones import DAT
from mmdat.checkpoint import from_official
from mmdat.checkpoint.official_names import DERIVED_BUFFERS

REFERENCE = Path(__file__).parents[3] / 'shared' / 'reference'
FOLDERS = REFERENCE / 'goldens', Path(__file__).parents[1] / 'data' / 'goldens'
requires_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f'needs the whole reference in {REFERENCE}'
)


def read_golden(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Description of a golden case, and its numbers in float64. A few cases are in every clone."""
    folder = next((folder for folder in FOLDERS if (folder / f'{name}.json').exists()), None)
    if folder is None:
        pytest.skip(f'needs the golden numbers of {name} in {FOLDERS[0]}')
    with np.load(folder / f'{name}.npz', allow_pickle=False) as arrays:
        numbers = {
            key.removeprefix('f64/'): torch.from_numpy(np.asarray(value))
            for key, value in arrays.items()
            if key.startswith('f64/')
        }
    return json.loads((folder / f'{name}.json').read_text()), numbers


def make_input(seed: int, shape: Sequence[int]) -> torch.Tensor:
    """Images of standard normal numbers, in float64."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))


def official_weights(keys: dict[str, list[int]], offset_gain: float) -> dict[str, torch.Tensor]:
    """State dict under the authors' keys, in float64, filled by the goldens' rule.

    A tensor depends on its key and shape only: standard normal numbers, seeded by the CRC of the key, times a
    scale that keeps the activations bounded. Buffers are zero.
    """
    return {key: _fill(key, shape, offset_gain) for key, shape in keys.items()}


def _fill(key: str, shape: Sequence[int], offset_gain: float) -> torch.Tensor:
    if key.endswith(DERIVED_BUFFERS):
        return torch.zeros(*shape, dtype=torch.float64)
    numbers = make_input(zlib.crc32(key.encode()), shape)
    fan_in = prod(shape[1:])
    match key.rpartition('.')[2]:
        case 'relative_position_bias_table' | 'rpe_table' | 'rpb':
            return 0.5 * numbers
        case 'bias':
            return 0.1 * numbers
        case _ if len(shape) == 1:  # of norms
            return 1 + 0.1 * numbers
    if key.endswith('conv_offset.3.weight'):
        return offset_gain * numbers / fan_in**0.5
    return (0.3 if '.local_perception_units.' in key else 1.0) * numbers / fan_in**0.5


def dat_settings(config: dict, generation: str = 'cvpr') -> dict:
    """Our settings for a configuration of the authors' models."""

    def deformable(key: str):
        """The one value of the stages with deformable attention."""
        (value,) = {v for v, spec in zip(config[key], config['stage_spec'], strict=True) if 'D' in spec}
        return value

    offset_range = 0 if deformable('no_offs') else deformable('offset_range_factor')
    if deformable('dwc_pes'):
        pos_bias = 'dwconv'
    elif deformable('fixed_pes'):
        pos_bias = 'fixed'
    else:
        pos_bias = 'relative' if deformable('use_pes') else None
    settings = dict(
        arch=dict(
            generation=generation,
            embed_dims=config['dims'][0],
            depths=tuple(config['depths']),
            num_heads=tuple(config['heads']),
            offset_groups=tuple(max(g, 1) for g in config['groups']),
        ),
        img_size=config['img_size'],
        block_patterns=[''.join(spec) for spec in config['stage_spec']],
        window_size=config['window_sizes'][0],
        mlp_ratio=config['expansion'],
        key_strides=[max(r, 1) for r in config['strides']],
        offset_range=offset_range if offset_range >= 0 else 'map',
        pos_bias=pos_bias,
        overlap_patches=config['use_conv_patches'],
    )
    if generation == 'pp':
        settings |= dict(
            neighborhood_size=config['nat_ksizes'][0],
            pos_bias=pos_bias if offset_range else None,  # without offsets the authors switch it off
            lpu=config['use_lpus'][0],
            conv_mlp=config['use_dwc_mlps'][0],
            out_indices=config.get('out_indices', (0, 1, 2, 3)),
        )
    return settings


def case_settings(case: dict) -> dict:
    """Our settings for a golden case."""
    return dat_settings(case['config'], 'cvpr' if case['model'] == 'cvpr' else 'pp')


def build_golden_model(case: dict, **settings) -> tuple[DAT, torch.nn.Linear | None]:
    """Backbone and head (of a classifier) of a golden case with its weights, in float64, for evaluation."""
    settings = case_settings(case) | settings
    weights = from_official(official_weights(case['keys'], case['offset_gain']))
    # idle without offsets, where the authors' DAT++ has them in other sizes
    optional = {name for name in weights if settings['offset_range'] == 0 and '.attn.offset.' in name}
    weights = {name: value for name, value in weights.items() if name not in optional}
    model = torch.nn.ModuleDict({'backbone': DAT(**settings)})
    if 'head.fc.weight' in weights:
        head = torch.nn.Linear(*weights['head.fc.weight'].T.shape)
        model['head'] = torch.nn.ModuleDict({'fc': head})
    missing, unexpected = model.double().load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name in optional or name.startswith('backbone.norm') for name in missing)
    return model['backbone'].eval(), model['head']['fc'] if 'head' in model else None


def build_attention(case: dict) -> tuple[torch.nn.Module, dict[str, str]]:
    """The attention module of a gradient case in float64, and the official names of its parameters."""
    stage, block = (int(n) for n in case['block'].removeprefix('stages.').split('.attns.'))
    attention = DAT(**case_settings(case)).double().stages[stage].blocks[block].attn
    ours = f'backbone.stages.{stage}.blocks.{block}.attn.'
    official_name_of = {}
    for name in case['grad_norms'].keys() - {'input'}:
        (key,) = from_official({f'{case["block"]}.{name}': torch.zeros(1)})
        official_name_of[key.removeprefix(ours)] = name
    full_names = {key: f'{case["block"]}.{name}' for key, name in official_name_of.items()}
    official_shapes = {
        key: [*value.shape, 1, 1] if value.ndim == 2 else list(value.shape)
        for key, value in attention.state_dict().items()
    }
    weights = official_weights(
        {full_names[key]: shape for key, shape in official_shapes.items()}, case['offset_gain']
    )
    attention.load_state_dict(
        {k: weights[full_names[k]].view(v.shape) for k, v in attention.state_dict().items()}
    )
    return attention, official_name_of
