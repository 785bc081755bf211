from .deformable import DeformableLayer, deformable_layers, propagate_scores, top_keys
from .hook import AttentionPicturesHook
from .key_points import draw_key_points, to_image
from .painter import KeyPointPainter, PicturePainter, paint_files
from .pictures import paint_attention, paint_keys, paint_points
from .placement import Placement, find_placement
from .queries import default_queries
from .views import View, ViewedModel
from .windows import Window, WindowLayer, dcn_points, window_layers, window_of

__all__ = [
    'AttentionPicturesHook',
    'DeformableLayer',
    'KeyPointPainter',
    'PicturePainter',
    'Placement',
    'View',
    'ViewedModel',
    'Window',
    'WindowLayer',
    'dcn_points',
    'default_queries',
    'deformable_layers',
    'draw_key_points',
    'find_placement',
    'paint_attention',
    'paint_files',
    'paint_keys',
    'paint_points',
    'propagate_scores',
    'to_image',
    'top_keys',
    'window_layers',
    'window_of',
]
