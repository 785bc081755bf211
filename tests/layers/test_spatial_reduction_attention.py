import torch
import torch.nn.functional as F

from mmdat.layers import SpatialReductionAttention


def test_equals_pytorchs_attention_to_the_reduced_map():
    torch.manual_seed(0)
    layer = SpatialReductionAttention(8, 2, reduction=3).double()
    x = torch.randn(2, 7, 10, 8, dtype=torch.float64)
    keys = layer.reduction(x)
    assert keys.shape == (2, 3, 4, 8)
    (w_k, w_v), (b_k, b_v) = (p.chunk(2) for p in (layer.kv.weight, layer.kv.bias))
    expected, _ = F.multi_head_attention_forward(
        x.flatten(1, 2).transpose(0, 1),
        *[keys.flatten(1, 2).transpose(0, 1)] * 2,
        embed_dim_to_check=8,
        num_heads=2,
        in_proj_weight=torch.cat([layer.q.weight, w_k, w_v]),
        in_proj_bias=torch.cat([layer.q.bias, b_k, b_v]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=layer.proj.weight,
        out_proj_bias=layer.proj.bias,
    )
    torch.testing.assert_close(layer(x).flatten(1, 2), expected.transpose(0, 1))


def test_nothing_is_reduced_at_1():
    layer = SpatialReductionAttention(8, 2, reduction=1)
    assert {name.partition('.')[0] for name in layer.state_dict()} == {'q', 'kv', 'proj'}
    assert layer(torch.randn(1, 5, 1, 8)).shape == (1, 5, 1, 8)
