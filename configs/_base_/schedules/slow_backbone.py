# A tenth of the learning rate for a pretrained backbone, as in detection transformers; `slow_backbone` is for
# `custom_keys`. MMEngine obeys the longest key that fits a name, so norms and position biases, which do not
# decay, need keys of their own. Names are those of every DAT; some have fewer blocks.
_slow = dict(lr_mult=0.1)
_slow_without_decay = dict(lr_mult=0.1, decay_mult=0.0)
_blocks = [f'backbone.stages.{stage}.blocks.{block}' for stage in range(4) for block in range(18)]
slow_backbone = {
    'backbone': _slow,
    'backbone.norm': _slow_without_decay,
    'backbone.patch_embed.norm': _slow_without_decay,
    'backbone.patch_embed.downsample.norm': _slow_without_decay,
    **{f'backbone.stages.{stage}.downsample.norm': _slow_without_decay for stage in range(4)},
    **{f'{block}.norm': _slow_without_decay for block in _blocks},
    **{f'{block}.attn.offset.norm': _slow_without_decay for block in _blocks},
    **{f'{block}.attn.position_bias': _slow_without_decay for block in _blocks},
    **{f'{block}.attn.relative_position_bias': _slow_without_decay for block in _blocks},
}
