from .shapes_coco import write_shapes_coco

__all__ = ['write_shapes_coco']
