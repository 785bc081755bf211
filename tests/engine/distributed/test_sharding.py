from mmengine.registry import MODELS
from torch import nn

from mmdat.engine.distributed.sharding import parameters_on_meta


def test_only_parameters_are_without_memory(mask_rcnn_config):
    with parameters_on_meta():
        model = MODELS.build(mask_rcnn_config.model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert not any(anchors.is_meta for anchors in model.rpn_head.prior_generator.base_anchors)
    assert not any(parameter.is_meta for parameter in nn.Linear(2, 2).parameters())


def test_shared_and_frozen_parameters_stay_so():
    with parameters_on_meta():
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        second.weight = first.weight
        frozen = nn.Parameter(nn.Linear(2, 2).weight, requires_grad=False)
        second.bias = frozen
    assert second.weight is first.weight
    assert not second.bias.requires_grad
    assert first.bias.requires_grad
