"""Weights: read safely, found by name, renamed, and fitted to a model without silent losses."""

from .contents import Weights, interpret
from .errors import CheckpointError
from .files import read_checkpoint, trust_checkpoints
from .fitting import ClassWeights, LoadReport, fit, resize_bias_tables
from .identity import check_identity
from .kinds import check_kind
from .loading import adapt_state_dict, check_weights, find_identity, load_model, load_pretrained
from .locations import find_checkpoint
from .official_names import from_official

__all__ = [
    'CheckpointError',
    'ClassWeights',
    'LoadReport',
    'Weights',
    'adapt_state_dict',
    'check_identity',
    'check_kind',
    'check_weights',
    'find_checkpoint',
    'find_identity',
    'fit',
    'from_official',
    'interpret',
    'load_model',
    'load_pretrained',
    'read_checkpoint',
    'resize_bias_tables',
    'trust_checkpoints',
]
