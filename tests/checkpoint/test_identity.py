import pickle

import pytest
import torch
from helpers.goldens import case_settings, read_golden
from helpers.published import save_classifier, save_mmcv, weights_of
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import CheckpointError, load_pretrained

ROW = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))
# Runs in both generations with equal names and shapes.
SHARED = dict(
    img_size=64,
    window_size=4,
    block_patterns=('LS', 'LS', 'LD', 'LD'),
    key_strides=(1, 1, 1, 1),
    overlap_patches=False,
    lpu=False,
    conv_mlp=False,
)


def shared_dat(generation: str, **settings) -> DAT:
    return DAT(**dict(arch=ROW | dict(generation=generation)) | SHARED | settings)


def save(path, content) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize('wrap', [lambda m: m, lambda m: nn.ModuleDict({'backbone': m})])
def test_our_files_know_their_generation(tmp_path, wrap):
    path = save(tmp_path / 'x.pth', {'meta': {}, 'state_dict': wrap(shared_dat('cvpr')).state_dict()})
    load_pretrained(shared_dat('cvpr'), path)
    with pytest.raises(CheckpointError, match=r"\(CVPR'22\), but the model is .*\(DAT\+\+\)"):
        load_pretrained(shared_dat('pp'), path)


def test_state_dicts_guard_themselves():
    """Where nothing of ours is called, as in `model.load_state_dict(torch.load(...))`."""
    for generation, other in (('cvpr', 'pp'), ('pp', 'cvpr')):
        state_dict = nn.ModuleDict({'backbone': shared_dat(generation)}).state_dict()
        state_dict = pickle.loads(pickle.dumps(state_dict))
        nn.ModuleDict({'backbone': shared_dat(generation)}).load_state_dict(state_dict)
        with pytest.raises(CheckpointError, match='differ in generation'):
            nn.ModuleDict({'backbone': shared_dat(other)}).load_state_dict(state_dict)


@pytest.mark.parametrize('record', ['{"generation"', '[]', {'arch': 'tiny'}, {'generation': 'plus_plus'}, 7])
def test_a_record_without_sense(tmp_path, record):
    weights = {key: value for key, value in shared_dat('cvpr').state_dict().items()}
    path = save(tmp_path / 'x.pth', {'meta': {'mmdat': record}, 'state_dict': weights})
    with pytest.raises(CheckpointError, match=r'record of its network|generation unknown here'):
        load_pretrained(shared_dat('cvpr'), path)


def test_our_names_without_a_record_are_ambiguous(tmp_path):
    path = save(tmp_path / 'x.pth', dict(shared_dat('pp').state_dict()))
    with pytest.raises(CheckpointError, match='does not tell'):
        load_pretrained(shared_dat('pp'), path)
    load_pretrained(shared_dat('pp'), path, generation='pp')


def test_the_record_costs_no_key():
    state_dict = shared_dat('pp').state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state_dict.values())
    assert 'identity' not in ''.join(state_dict)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(block_patterns=('LL', 'LS', 'LD', 'LD')), r"differ in blocks, \('LS', .*\('LL', "),
        (dict(arch=ROW | dict(num_heads=(2, 2, 4, 8))), 'differ in num_heads'),
        (dict(arch='tiny'), r"weights of an arch of its own .*the model is arch='tiny' \(CVPR'22\)"),
    ],
)
def test_another_arch_is_named(tmp_path, settings, message):
    path = save(tmp_path / 'x.pth', shared_dat('cvpr').state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(DAT(**dict(arch=ROW) | SHARED | settings), path)


def test_strides_and_sizes_may_differ(tmp_path):
    path = save(tmp_path / 'x.pth', shared_dat('cvpr').state_dict())
    load_pretrained(shared_dat('cvpr', key_strides=(1, 1, 2, 1), img_size=96, offset_range=4.0), path)


@pytest.mark.parametrize(('arch', 'other'), [('tiny', 'small'), ('small', 'pp_small'), ('pp_base', 'base')])
def test_the_right_arch_is_named(tmp_path, arch, other):
    with torch.device('meta'):
        source = DAT(arch, out_indices=(0,))
    state_dict = source.state_dict()
    for key, value in state_dict.items():
        state_dict[key] = torch.zeros(value.shape)
    path = save(tmp_path / 'x.pth', {'state_dict': state_dict})
    with torch.device('meta'):
        model = DAT(other)
    with pytest.raises(CheckpointError, match=rf"weights of arch='{arch}' .* the model is arch='{other}'"):
        load_pretrained(model, path)


class TestFilesOfTheAuthors:
    """The evidence that counts, and what happens without any."""

    def load(self, path, name='cvpr_base_128w4', generation=None, **settings):
        case, _ = read_golden(name)
        load_pretrained(DAT(**case_settings(case) | settings), str(path), generation=generation)

    @pytest.mark.parametrize('with_config', [False, True])
    def test_a_classifier_of_another_name_is_ambiguous(self, tmp_path, with_config):
        case, _ = read_golden('cvpr_base_128w4')
        config = case['config'] if with_config else None
        path = save_classifier(tmp_path / 'my_dat.pth', weights_of('cvpr_base_128w4'), config)
        with pytest.raises(CheckpointError, match=r'does not tell .*init_cfg=dict\(.*, generation=\.\.\.\)'):
            self.load(path)
        self.load(path, generation='cvpr')
        with pytest.raises(CheckpointError, match='generation is one of cvpr, pp'):
            self.load(path, generation='dat++')

    def test_the_word_of_the_user_decides(self, tmp_path):
        weights = weights_of('cvpr_base_128w4')
        path = save_classifier(tmp_path / 'my_dat.pth', weights)
        case, _ = read_golden('cvpr_base_128w4')
        arch = case_settings(case)['arch'] | dict(generation='pp')
        design = {key: SHARED[key] for key in ('overlap_patches', 'lpu', 'conv_mlp')}
        self.load(path, generation='pp', arch=arch, **design)
        with pytest.raises(CheckpointError, match='differ in generation'):
            self.load(path, generation='cvpr', arch=arch, **design)

    def test_the_released_name_decides(self, tmp_path):
        path = save_classifier(tmp_path / 'dat_small_in1k_224.pth', weights_of('cvpr_base_128w4'))
        self.load(path)
        with pytest.raises(CheckpointError, match="is of generation 'cvpr', not 'pp'"):
            self.load(path, generation='pp')

    def test_names_that_only_the_pp_code_has(self, tmp_path):
        weights = weights_of('pp_plain_128')
        self.load(save_classifier(tmp_path / 'x.pth', weights), 'pp_plain_128')
        path = save_classifier(tmp_path / 'dat_tiny_in1k_224.pth', weights)
        with pytest.raises(
            CheckpointError, match=r'contradicts itself: .*released dat_tiny_in1k_224.*holds neigh'
        ):
            self.load(path, 'pp_plain_128')

    def test_settings_that_only_the_pp_code_has(self, tmp_path):
        """All blocks deformable, so nothing else tells."""
        case, _ = read_golden('pp_base_128')
        path = save_classifier(tmp_path / 'x.pth', weights_of('cvpr_base_128w4'), case['config'])
        with pytest.raises(CheckpointError, match=r'weights of .*\(DAT\+\+\)'):
            self.load(path)

    def test_a_detector_of_the_authors_into_the_other_generation(self, tmp_path):
        weights = {f'backbone.{key}': value for key, value in weights_of('det_base_128x192').items()}
        path = save_mmcv(tmp_path / 'x.pth', weights)
        arch = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(2, 4, 8, 16), offset_groups=(1, 2, 4, 8))
        with pytest.raises(CheckpointError, match='differ in generation'):
            self.load(path, 'det_base_128x192', arch=arch | dict(generation='cvpr'))

    def test_masks_tell_shifted_windows(self, tmp_path):
        path = save_classifier(tmp_path / 'dat_tiny_in1k_224.pth', weights_of('cvpr_base_128w4'))
        with pytest.raises(CheckpointError, match=r"differ in blocks, \('LS', "):
            self.load(path, block_patterns=('LL', 'LS', 'LD', 'LD'))
