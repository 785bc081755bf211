from .key_points import draw_key_points, to_image
from .painter import KeyPointPainter, paint_files

__all__ = ['KeyPointPainter', 'draw_key_points', 'paint_files', 'to_image']
