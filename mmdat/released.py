"""The authors' released checkpoints: where they are, and what the authors report for them.

A share of the Tsinghua Cloud serves the file itself with `?dl=1`.
"""

from dataclasses import dataclass, field

_TSINGHUA = 'https://cloud.tsinghua.edu.cn/f/{}/?dl=1'


@dataclass(frozen=True)
class Release:
    """A released file.

    Args:
        name: What `mmdat://NAME` and `checkpoints/NAME.pth` call it. Classifiers have the authors' names.
        generation: `'cvpr' | 'pp'`.
        config: The authors' config; its name is accepted as a file name too, but for classifiers, whose
            two generations share theirs.
        share: Identifier of the share in the Tsinghua Cloud.
        results: The authors' figures, percent.
        sha256: Of the file, in hexadecimal. `None` where it is unknown, as it is for all of them today: the
            authors do not tell it, and the files could not be downloaded where mmdat was written.
    """

    name: str
    generation: str
    config: str
    share: str
    results: dict[str, float] = field(default_factory=dict)
    sha256: str | None = None

    @property
    def url(self) -> str:
        return _TSINGHUA.format(self.share)

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names under which the file may lie in a folder, best first."""
        return (self.name,) if '_in1k_' in self.name else (self.name, self.config)


def _releases(generation: str, metrics: tuple[str, ...], *rows: tuple) -> list[Release]:
    return [
        Release(name, generation, config, share, dict(zip(metrics, results)))
        for name, config, share, *results in rows
    ]


# fmt: off
_ALL = [
    *_releases('cvpr', ('top-1',),
     ('dat_tiny_in1k_224',                 'dat_tiny',                   '1367349deefc48efa650', 82.0),
     ('dat_small_in1k_224',                'dat_small',                  'f04b18081e3e4606adb7', 83.7),
     ('dat_base_in1k_224',                 'dat_base',                   'a8d2a9645d454120b635', 84.0),
     ('dat_base_in1k_384',                 'dat_base_384',               'cf6a6b543cd64e0d8e43', 84.8)),
    *_releases('pp', ('top-1',),
     ('dat_pp_tiny_in1k_224',              'dat_tiny',                   '14c5ddae10b642e68089', 83.9),
     ('dat_pp_small_in1k_224',             'dat_small',                  '4c2a76360c964fbd81d5', 84.6),
     ('dat_pp_base_in1k_224',              'dat_base',                   '8e30492404d348d89f25', 84.9),
     ('dat_pp_base_in1k_384',              'dat_base_384',               '032dc804cdf44bf18bb5', 85.9)),
    *_releases('pp', ('box AP', 'mask AP'),
     ('dat_pp_tiny_retinanet_1x',          'rtn_tiny_1x_4n_dp00_lr2',    '8e49b993adf242829ee1', 46.8),
     ('dat_pp_tiny_retinanet_3x',          'rtn_tiny_3x_4n_dp02_lr2',    'ff4e48c036cb4d9badca', 49.2),
     ('dat_pp_small_retinanet_1x',         'rtn_small_1x_4n_dp01_lr2',   'c1585651b3ec41fa9eb5', 48.3),
     ('dat_pp_small_retinanet_3x',         'rtn_small_3x_4n_dp05_lr2',   '3687b77098a647adb54f', 50.2),
     ('dat_pp_tiny_mask_rcnn_1x',          'mrcn_tiny_1x_4n_dp00_lr4',   '2b61106279ae488bbb45', 48.7, 43.7),
     ('dat_pp_tiny_mask_rcnn_3x',          'mrcn_tiny_3x_4n_dp03_lr4',   'a7db396a372449779347', 50.5, 45.1),
     ('dat_pp_small_mask_rcnn_1x',         'mrcn_small_1x_4n_dp01_lr4',  '8f3653c027974136a74a', 49.8, 44.5),
     ('dat_pp_small_mask_rcnn_3x',         'mrcn_small_3x_4n_dp05_lr4',  '3bde5a98a0ca46d8b2ee', 51.2, 45.7),
     ('dat_pp_tiny_cascade_mask_rcnn_1x',  'cmrcn_tiny_1x_4n_dp00_lr4',  '35be35faa96044ee8561', 52.2, 45.0),
     ('dat_pp_tiny_cascade_mask_rcnn_3x',  'cmrcn_tiny_3x_4n_dp01_lr4',  '1aa96891dda24451bbf8', 53.0, 46.0),
     ('dat_pp_small_cascade_mask_rcnn_3x', 'cmrcn_small_3x_4n_dp05_lr4', '17d84d4f5ae2457285af', 54.2, 46.9),
     ('dat_pp_base_cascade_mask_rcnn_3x',  'cmrcn_base_3x_8n_dp08_lr4',  '9ea06105dd394b8d97ac', 54.5, 47.0)),
    *_releases('pp', ('mIoU', 'mIoU multi-scale'),
     ('dat_pp_tiny_semantic_fpn_80k',      'fpn_tiny_80k_dp04_lr2',      '9a9df06dec1440a39bcb', 48.4, 48.8),
     ('dat_pp_small_semantic_fpn_80k',     'fpn_small_80k_dp04_lr2',     'f4333e084ef74ca3b8f6', 49.9, 50.7),
     ('dat_pp_base_semantic_fpn_80k',      'fpn_base_80k_dp07_lr2',      '9df9eb212f154168aab7', 50.4, 51.1),
     ('dat_pp_tiny_upernet_160k',          'upn_tiny_160k_dp03_lr6',     'de75c7e1622847268f4f', 49.4, 50.3),
     ('dat_pp_small_upernet_160k',         'upn_small_160k_dp05_lr6',    '2f4a2be90a08477fa4b3', 50.5, 51.2),
     ('dat_pp_base_upernet_160k',          'upn_base_160k_dp07_lr6',     '7c442d4371c4433aa428', 51.0, 51.5)),
]
# fmt: on
RELEASED = {release.name: release for release in _ALL}


def find_release(name: str) -> Release | None:
    """The release with this name, or with this file name."""
    return RELEASED.get(name) or next((r for r in _ALL if name in r.file_names), None)
