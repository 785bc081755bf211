"""Where the authors keep their released checkpoints."""

_TSINGHUA_CLOUD = 'https://cloud.tsinghua.edu.cn/f/'
RELEASED = {
    'dat_tiny_in1k_224': _TSINGHUA_CLOUD + '1367349deefc48efa650/?dl=1',
    'dat_small_in1k_224': _TSINGHUA_CLOUD + 'f04b18081e3e4606adb7/?dl=1',
    'dat_base_in1k_224': _TSINGHUA_CLOUD + 'a8d2a9645d454120b635/?dl=1',
    'dat_base_in1k_384': _TSINGHUA_CLOUD + 'cf6a6b543cd64e0d8e43/?dl=1',
}
