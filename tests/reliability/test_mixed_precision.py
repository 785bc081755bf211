"""Under autocast nothing overflows, and outputs stay near those of float32."""

from importlib import import_module

import pytest
import torch
from conftest import ROOT
from helpers.narrow import ARCH, narrow_detector
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdat.backbones import DAT
from mmdat.engine.mixed_precision import keep_boxes_in_float32

BACKBONES = {
    'cvpr': dict(arch=ARCH, key_strides=(1, 1, 2, 1)),
    'pp': dict(arch=ARCH | dict(generation='pp')),
}
SIZES = [(1, 1), (1, 9), (33, 2), (64, 96)]
LARGE = [(224, 224), (800, 608), (512, 2048)]

# Root mean square errors relative to float32: of each map, and of the gradient of all parameters, which is
# compared on small maps only: rounded features move a point by a fraction of the map, on large maps across
# pixels, and images of noise have another gradient at each pixel.
BOUNDS = {torch.bfloat16: (0.02, 0.05), torch.float16: (0.003, 0.01)}


def weighted_sum(maps) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    weighted = (out.float() * torch.randn(out.shape, generator=generator) for out in maps)
    return sum(x.sum() / x.numel() ** 0.5 for x in weighted)  # gradients of means would underflow in float16


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize('dtype', BOUNDS)
@pytest.mark.parametrize('name', BACKBONES)
def test_backbones(name, dtype, trials):
    torch.manual_seed(0)
    model = DAT(**BACKBONES[name], drop_path_rate=0.0)
    for size in trials(SIZES, SIZES + LARGE):
        x = torch.randn(1, 3, *size)
        exact = model(x)
        model.zero_grad()
        weighted_sum(exact).backward()
        exact_gradient = gradient(model)
        model.zero_grad()
        with torch.autocast('cpu', dtype):
            maps = model(x)
        weighted_sum(maps).backward()
        of_maps, of_gradients = BOUNDS[dtype]
        for out, expected in zip(maps, exact):
            assert (out.float() - expected).norm() < of_maps * expected.norm(), size
        assert gradient(model).isfinite().all(), size
        if size in SIZES:
            error = (gradient(model) - exact_gradient).norm()
            assert error < of_gradients * exact_gradient.norm(), size


@pytest.fixture
def default_scope():
    init_default_scope('mmdet')


def detector_batch(model, size: tuple[int, int]) -> dict:
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    masks = torch.zeros(1, *size, dtype=torch.uint8)
    masks[:, 20 : height // 2, 30 : width // 2] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)),
        gt_instances=InstanceData(
            bboxes=HorizontalBoxes(torch.tensor([[30.0, 20.0, width / 2, height / 2]])),
            labels=torch.tensor([3]),
            masks=BitmapMasks(masks.numpy(), *size),
        ),
    )
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), training=True)


@pytest.mark.parametrize('dtype', BOUNDS)
@pytest.mark.parametrize('name', ['retinanet/dat_t_1x_coco', 'mask_rcnn/dat_pp_t_1x_coco'])
@pytest.mark.usefixtures('default_scope')
def test_detectors(name, dtype, trials):
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    narrow_detector(cfg.model)
    torch.manual_seed(0)
    model = import_module('mmdet.registry').MODELS.build(cfg.model).train()
    model.init_weights()
    keep_boxes_in_float32(model)
    for size in trials([(160, 224)], [(160, 224), (800, 1216)]):
        totals = []
        for enabled in (False, True):
            torch.manual_seed(0)  # of the regions that are sampled
            model.zero_grad()
            with torch.autocast('cpu', dtype, enabled=enabled):
                losses = model(**detector_batch(model, size), mode='loss')
            total, _ = model.parse_losses(losses)
            total.backward()
            totals.append(total.item())
            assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
        assert abs(totals[1] - totals[0]) < 0.02 * totals[0]
