from .cli import add_trust_argument, base_parser, run_tool
from .config import load_config
from .conversion import convert_checkpoint
from .hooks import StrictCheckpointHook
from .preflight import PreflightError, preflight
from .resuming import resume
from .runner import build_model, build_runner
from .testing import dump_predictions_to, enable_tta, enable_visualization

__all__ = [
    'PreflightError',
    'StrictCheckpointHook',
    'add_trust_argument',
    'base_parser',
    'build_model',
    'build_runner',
    'convert_checkpoint',
    'dump_predictions_to',
    'enable_tta',
    'enable_visualization',
    'load_config',
    'preflight',
    'resume',
    'run_tool',
]
