"""Images in files and folders, through a model, into files: what `tools/infer.py` calls."""

from .files import infer_files

__all__ = ['infer_files']
