"""Weights: read safely, found by name, renamed, and fitted to a model without silent losses."""

from .errors import CheckpointError
from .fitting import LoadReport, fit, resize_bias_tables
from .identity import check_identity
from .loading import adapt_state_dict, check_weights, load_model, load_pretrained
from .official import from_official
from .reading import read_checkpoint, trust_checkpoints
from .sources import find_checkpoint
from .weights import Weights, interpret

__all__ = [
    'CheckpointError',
    'LoadReport',
    'Weights',
    'adapt_state_dict',
    'check_identity',
    'check_weights',
    'find_checkpoint',
    'fit',
    'from_official',
    'interpret',
    'load_model',
    'load_pretrained',
    'read_checkpoint',
    'resize_bias_tables',
    'trust_checkpoints',
]
