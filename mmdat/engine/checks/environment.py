"""Checks of the installation, worded for the person who has to mend it."""

from importlib import import_module
from importlib.util import find_spec

INSTALL_MMCV = """\
In a checkout of mmdat:
    bash tools/setup_env.sh
Elsewhere, with PyTorch and a C++ compiler installed (`mmcv` instead of `onedl-mmcv` on the upstream line):
    python -m pip install setuptools wheel ninja psutil onedl-mmengine
    python -m pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv"""


def check_mmcv_ops() -> None:
    """Makes sure that MMCV and its compiled ops can be imported.

    By default pip builds MMCV in an isolated environment, where there is no PyTorch; the build then
    leaves the ops out without a word, and the first model that needs one fails.

    Raises:
        ImportError: MMCV or its ops are missing; the message says what to run.
    """
    if find_spec('mmcv') is None:
        raise ImportError(f'mmcv is not installed.\n{INSTALL_MMCV}')
    mmcv = import_module('mmcv')
    try:
        import_module('mmcv.ops')
    except ImportError as error:
        raise ImportError(
            f'mmcv is installed ({mmcv.__file__}), but its compiled ops are missing or do not fit '
            f'this PyTorch: {error}.\n{INSTALL_MMCV}'
        ) from error
