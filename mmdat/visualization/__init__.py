from .key_points import draw_key_points, to_image
from .painter import KeyPointPainter

__all__ = ['KeyPointPainter', 'draw_key_points', 'to_image']
