import pytest

from mmdat.architectures import ARCH_RULES, RULES
from mmdat.backbones import DAT

ARCH = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))
WRONG = ('abc', b'abc', {}, object(), [[]], [-1] * 4, float('nan'), -7)


@pytest.mark.parametrize('name', [*ARCH_RULES, *RULES])
def test_values_of_a_wrong_kind(name):
    for value in WRONG:
        settings = dict(arch=ARCH | {name: value}) if name in ARCH_RULES else dict(arch=ARCH) | {name: value}
        with pytest.raises(ValueError, match=f'{name} must be .*, got {name}='):
            DAT(**settings)


@pytest.mark.parametrize('arch', [None, 3, [], object(), ARCH | dict(generation=[1])])
def test_an_arch_of_a_wrong_kind(arch):
    with pytest.raises(ValueError, match=r'unknown (arch|generation) '):
        DAT(arch)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(window_size=500), 'from 1 to 64 .memory grows with the fourth power of it.*window_size=500'),
        (dict(out_indices=3), r'such as \(0, 1, 2, 3\), got out_indices=3'),
        (dict(out_indices=(3, 2)), r'ascending stages from 0 to 3.*got out_indices=\(3, 2\)'),
        (dict(drop_path_rate='abc'), r"a number in \[0, 1\), got drop_path_rate='abc'"),
        (dict(init_cfg='dat.pth'), r"dict\(type='Pretrained', checkpoint=FILE\).*got init_cfg='dat.pth'"),
        (dict(with_cp=1), 'one of True, False, got with_cp=1'),
        (dict(mlp_ratio=0.01), 'without channels, got embed_dims=16, mlp_ratio=0.01'),
    ],
)
def test_what_is_allowed_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        DAT(**dict(arch=ARCH) | settings)
