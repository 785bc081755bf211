from ..checkpoint.conversion import convert_checkpoint
from .batch_norm import CPUSyncBN
from .cli import add_trust_argument, base_parser, run_tool
from .compilation import CompileBlocksHook
from .config import load_config, resume
from .determinism import make_deterministic
from .hooks import StrictCheckpointHook
from .preflight import PreflightError, preflight
from .runner import build_model, build_runner
from .sharding import FullyShardedStrategy
from .testing import dump_predictions_to, enable_tta, enable_visualization

__all__ = [
    'CPUSyncBN',
    'CompileBlocksHook',
    'FullyShardedStrategy',
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
    'make_deterministic',
    'preflight',
    'resume',
    'run_tool',
]
