"""Three lines of Python, for a detector, a segmentor and a classifier."""

import warnings

import cv2
import numpy as np
import pytest
import torch
from helpers.predictors import CONFIGS, save_random, small_config, write_image
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from mmdat.apis import ImageError, draw, inference, init_model
from mmdat.apis.prediction import LOOK_AHEAD, predict

SIZES = [(60, 90), (90, 60), (60, 90), (60, 91), (60, 90), (90, 60)]


@pytest.fixture(scope='module', params=CONFIGS)
def kind(request):
    return request.param


@pytest.fixture(scope='module')
def model(kind, tmp_path_factory):
    cfg = small_config(kind)
    return init_model(cfg, save_random(cfg, tmp_path_factory.mktemp(kind) / 'weights.pth'), 'cpu')


@pytest.fixture
def images(tmp_path):
    return [write_image(tmp_path / f'{i}.png', *size, seed=i) for i, size in enumerate(SIZES)]


def values(result) -> list[np.ndarray]:
    """The numbers in a prediction."""
    if 'pred_instances' in result:
        instances = result.pred_instances
        return [instances[key].numpy() for key in ('labels', 'scores', 'bboxes', 'masks')]
    if 'pred_sem_seg' in result:
        return [result.pred_sem_seg.data.numpy(), result.seg_logits.data.numpy()]
    return [result.pred_label.numpy(), result.pred_score.numpy()]


def assert_same(result, other):
    for a, b in zip(values(result), values(other), strict=True):
        np.testing.assert_allclose(a.astype(float), b.astype(float), atol=1e-4)


def infer_by_the_library(model, kind, path):
    if kind == 'detector':
        from mmdet.apis import inference_detector

        return inference_detector(model, path)
    if kind == 'segmentor':
        from mmseg.apis import inference_model

        with DefaultScope.overwrite_default_scope('mmseg'):
            return inference_model(model, path)
    from mmpretrain.apis import ImageClassificationInferencer

    model._config = model.cfg.copy()
    with DefaultScope.overwrite_default_scope(
        'mmpretrain'
    ):  # it looks its transforms up by the scope of the process
        return ImageClassificationInferencer(model)(path, return_datasamples=True)[0]


def test_predictions_are_the_librarys(model, kind, images):
    result = inference(model, images[0])
    assert_same(result, infer_by_the_library(model, kind, images[0]))
    with pytest.raises(AssertionError):
        assert_same(result, inference(model, images[1]))


def test_paths_and_arrays(model, images):
    from_path, from_array = inference(model, [images[3], cv2.imread(images[3])])
    assert_same(from_path, from_array)
    assert tuple(from_array.ori_shape) == SIZES[3]
    assert_same(inference(model, cv2.imread(images[3])), from_path)


def test_predictions_are_in_pixels_of_the_image(model, kind, images):
    result = inference(model, images[3])
    if kind == 'segmentor':
        assert result.pred_sem_seg.data.shape == (1, 60, 91)
    elif kind == 'detector':
        assert result.pred_instances.masks.shape == (5, 60, 91)
        assert result.pred_instances.bboxes[:, 0::2].max() <= 91
        assert result.pred_instances.bboxes[:, 1::2].max() <= 60


def test_batches_change_nothing(model, images, monkeypatch):
    alone = [inference(model, image) for image in images]
    sizes, step = [], model.test_step
    monkeypatch.setattr(model, 'test_step', lambda data: sizes.append(len(data['inputs'])) or step(data))
    together = inference(model, images, batch_size=3)
    for a, b in zip(alone, together, strict=True):
        assert_same(a, b)
    assert max(sizes) == 3
    assert sum(sizes) == len(images)


class FakeModel(nn.Module):
    """Predicts the key, and records the batches."""

    cfg = {}
    data_preprocessor = type('Preprocessor', (), dict(pad_size_divisor=32))

    def __init__(self):
        super().__init__()
        self.batches = []

    def test_step(self, data):
        self.batches.append([tuple(x.shape[-2:]) for x in data['inputs']])
        return data['inputs']


def test_a_batch_has_images_of_one_padded_size():
    model = FakeModel()
    sizes = [(32, 50), (32, 64), (64, 32), (31, 33), (60, 30)]
    samples = ((i, dict(inputs=torch.zeros(3, *size))) for i, size in enumerate(sizes))
    assert [key for key, _ in predict(model, samples, batch_size=3)] == [0, 1, 3, 2, 4]
    assert model.batches == [[(32, 50), (32, 64), (31, 33)], [(64, 32), (60, 30)]]


def test_few_images_wait():
    model, drawn = FakeModel(), 0

    def samples():
        nonlocal drawn
        for i in range(100):
            drawn += 1
            yield i, dict(inputs=torch.zeros(3, 32 * (i + 1), 32))

    keys = []
    for key, _ in predict(model, samples(), batch_size=2):
        keys.append(key)
        assert drawn - len(keys) < 2 * LOOK_AHEAD
    assert sorted(keys) == list(range(100))


def test_a_batch_has_images():
    with pytest.raises(ValueError, match='at least 1, got 0'):
        next(predict(FakeModel(), [], batch_size=0))


def test_images_turned_by_their_tag(model, kind, tmp_path):
    """Results fit the image as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    pixels = Image.open(write_image(tmp_path / 'x.png', 60, 90))
    pixels.save(tmp_path / 'turned.jpg', exif=exif)
    result = inference(model, tmp_path / 'turned.jpg')
    assert draw(model, tmp_path / 'turned.jpg', result).shape == (90, 60, 3)
    assert_same(inference(model, Image.open(tmp_path / 'turned.jpg')), result)
    if kind == 'segmentor':
        assert result.pred_sem_seg.data.shape == (1, 90, 60)


def test_pictures(model, kind, images):
    result = inference(model, images[0])
    pixels = cv2.imread(images[0]).astype(int)
    picture = draw(model, images[0], result, score_thr=0.0)
    assert picture.shape == (60, 90, 3)
    assert picture.dtype == np.uint8
    assert abs(picture - pixels).max() > 50
    from_array = draw(model, cv2.imread(images[0]), result, score_thr=0.0)
    assert abs(from_array - picture.astype(int)).mean() < 5  # mmdet varies the colours of masks
    if kind == 'detector':
        result.pred_instances.bboxes[0, :2] = -2  # MMEngine warns of what it cuts
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            draw(model, images[0], result, score_thr=0.0)
        # nothing is drawn, and the colours stay
        assert abs(draw(model, images[0], result, score_thr=1.0) - pixels).max() <= 2


def broken_images(folder):
    write_image(folder / 'whole.jpg')
    content = (folder / 'whole.jpg').read_bytes()
    (folder / 'cut.jpg').write_bytes(content[: len(content) // 2])
    (folder / 'empty.png').touch()
    (folder / 'text.png').write_text('no image')
    (folder / 'notes.txt').write_text('no image')
    (folder / 'folder').mkdir()
    return folder


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('cut.jpg', 'is cut short'),
        ('empty.png', 'is empty'),
        ('text.png', 'is cut short or no image'),
        ('notes.txt', 'is no image, or of a format that cannot be read'),
        ('folder', 'is a folder: name the images in it'),
        ('none.png', r'cannot be read \(No such file or directory\)'),
    ],
)
def test_images_that_cannot_be_used(model, tmp_path, name, reason):
    path = broken_images(tmp_path) / name
    with pytest.raises(ImageError, match=f'^{path} {reason}$'):
        inference(model, [tmp_path / 'whole.jpg', path])


def test_what_is_no_image(model):
    with pytest.raises(ImageError, match=r'must be \(H, W, 3\), in BGR, got \(4, 5\)'):
        inference(model, np.zeros((4, 5), np.uint8))
    with pytest.raises(TypeError, match='or of Pillow, got int'):
        inference(model, [3])


@pytest.mark.parametrize(
    ('pixels', 'message'),
    [
        (np.ones((4, 5, 4), np.uint8), r'\(H, W, 3\), in BGR, got \(4, 5, 4\)'),
        (np.full((4, 5, 3), 300, np.uint16), 'from 0 to 255, as uint8, got uint16 up to 300'),
        (np.full((4, 5, 3), 0.5), 'from 0 to 255, as uint8, got float64 up to 0.5'),
        (Image.new('I;16', (4, 5)), 'mode I;16 has no 8 bits: convert it to RGB'),
    ],
)
def test_pixels_that_would_be_misread(model, pixels, message):
    with pytest.raises(ImageError, match=message):
        inference(model, pixels)


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'P'])
def test_images_of_pillow(model, tmp_path, mode):
    """They are what their files are, and a list of one stays a list."""
    Image.open(write_image(tmp_path / 'x.png', 60, 90)).convert(mode).save(tmp_path / 'y.png')
    with Image.open(tmp_path / 'y.png') as image:
        alone, (listed,) = inference(model, image), inference(model, [image])
    assert_same(alone, inference(model, tmp_path / 'y.png'))
    assert_same(alone, listed)


def test_no_images(model):
    assert inference(model, []) == []


def test_a_model_in_training(model, images):
    """It predicts as if it were not, and each of its modules stays in its mode."""
    expected = inference(model, images[0])
    model.train()
    model.backbone.stages[0].eval()
    modes = [module.training for module in model.modules()]

    def drop(backbone, inputs, maps):
        return tuple(nn.functional.dropout(x, 0.9, backbone.training) for x in maps)

    handle = model.backbone.register_forward_hook(drop)
    try:
        assert_same(inference(model, images[0]), expected)
        assert [module.training for module in model.modules()] == modes
    finally:
        handle.remove()
        model.eval()
