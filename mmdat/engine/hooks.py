from collections import OrderedDict

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop

from ..checkpoint import CheckpointError, check_weights, fit, interpret


class StrictCheckpointHook(Hook):
    """Loads what fits the model, and stops where MMEngine would only warn.

    A classifier fits another model as its backbone, but only to start a training from.

    Args:
        ignore: Prefixes of keys that are left as initialised, for instance
            `('roi_head.bbox_head.fc_cls',)` to fine-tune on other classes.
        generation: `'cvpr' | 'plus'`, for files that do not tell.
    """

    def __init__(self, ignore: tuple[str, ...] = (), generation: str | None = None):
        self.ignore = tuple(ignore)
        self.generation = generation

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Puts the fitted weights into the checkpoint.

        Raises:
            CheckpointError: If generation or arch differ, or if keys are missing, unexpected or of another
                shape; names them.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        weights = interpret(checkpoint, str(runner._load_from))
        weights.state_generation(self.generation)
        resuming, training = runner._resume, isinstance(runner._train_loop, BaseLoop)
        if resuming and 'message_hub' not in checkpoint:
            raise CheckpointError(
                f'{weights.source} holds weights, but no state of a training to resume: '
                f'`--no-resume --cfg-options load_from={weights.source}` starts from them'
            )
        target = model.state_dict()
        has_more = any(not key.startswith(('backbone.', 'head.')) for key in target)
        is_part = bool(weights.identity) and weights.is_classifier and has_more
        if is_part and not training:
            raise CheckpointError(
                f'{weights.source} holds a backbone and not the rest of the model: a training can start from '
                'it, by load_from or init_cfg, but there is nothing to test'
            )
        check_weights(weights, model, ' by `--cfg-options load_generation=...`')
        fitted, report = fit(weights, target, is_part and not resuming, self.ignore)
        report.check(' (`--cfg-options load_ignore=PREFIX,...` leaves such weights as initialised)')
        runner.logger.info(report)

        metadata = getattr(checkpoint.get('state_dict'), '_metadata', None)
        checkpoint['state_dict'] = OrderedDict(fitted)
        if metadata is not None:
            checkpoint['state_dict']._metadata = metadata
