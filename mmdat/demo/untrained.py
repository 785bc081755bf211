"""The model as it is before training: python -m mmdat.demo.untrained CONFIG CHECKPOINT"""

import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import save_checkpoint, set_random_seed


def save_untrained(cfg: Config, checkpoint: str | Path) -> None:
    """Writes the weights with which a training of `cfg` starts."""
    set_random_seed(cfg.randomness.seed)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    Path(checkpoint).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(dict(state_dict=model.state_dict()), str(checkpoint))


if __name__ == '__main__':
    MMLogger.get_instance('untrained', log_level='ERROR')  # else it tells about every weight
    save_untrained(Config.fromfile(sys.argv[1]), sys.argv[2])
