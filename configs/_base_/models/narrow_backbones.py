# DAT-T and Swin-T, narrow and shallow, for 128 pixels: maps and windows keep the proportions of 224 pixels.
_narrow = dict(img_size=128, window_size=4, drop_path_rate=0.1)
_sizes = dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
narrow_dat = dict(type='mmdat.DAT', arch=dict(**_sizes, offset_groups=(1, 1, 1, 2)), **_narrow)
narrow_swin = dict(type='mmpretrain.SwinTransformer', arch=_sizes, pad_small_map=True, **_narrow)
