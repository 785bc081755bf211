from .environment import check_mmcv_ops

__all__ = ['check_mmcv_ops', 'register_all_modules']


def register_all_modules(init_default_scope: bool = True) -> None:
    """Nothing to do, as importing mmdat registers all of it. MMEngine's `get_model` calls it."""
