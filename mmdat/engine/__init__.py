from .cli import (
    Overrides,
    Parser,
    add_amp_argument,
    add_trust_argument,
    base_parser,
    positive,
    report_files,
    run_tool,
    say_once,
    share,
)
from .compilation import CompileBlocksHook
from .config import load_config, load_trained_config
from .conversion import convert_checkpoint
from .determinism import make_deterministic
from .distributed.batch_norm import CPUSyncBN
from .distributed.sharding import FullyShardedStrategy
from .errors import PreflightError, in_one_line
from .hooks import StrictCheckpointHook
from .inference import infer_files
from .mixed_precision import BFloat16OptimWrapper, enable_amp
from .own_data import follow_data
from .preflight import preflight
from .resuming import resume
from .runner import build_model, build_runner
from .summary import summarize
from .testing import dump_predictions_to, enable_tta, enable_visualization

__all__ = [
    'BFloat16OptimWrapper',
    'CPUSyncBN',
    'CompileBlocksHook',
    'FullyShardedStrategy',
    'Overrides',
    'Parser',
    'PreflightError',
    'StrictCheckpointHook',
    'add_amp_argument',
    'add_trust_argument',
    'base_parser',
    'build_model',
    'build_runner',
    'convert_checkpoint',
    'dump_predictions_to',
    'enable_amp',
    'enable_tta',
    'enable_visualization',
    'follow_data',
    'in_one_line',
    'infer_files',
    'load_config',
    'load_trained_config',
    'make_deterministic',
    'positive',
    'preflight',
    'report_files',
    'resume',
    'run_tool',
    'say_once',
    'share',
    'summarize',
]
