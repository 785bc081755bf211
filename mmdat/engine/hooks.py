from collections import OrderedDict

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop

from ..checkpoint import (
    CheckpointError,
    ClassWeights,
    check_kind,
    check_weights,
    find_identity,
    fit,
    interpret,
)


class StrictCheckpointHook(Hook):
    """Loads what fits the model, and stops where MMEngine would only warn.

    A classifier fits another model as its backbone, but only to start a training from.

    Args:
        ignore: Prefixes of keys that are left as initialised when a training starts, for instance
            `('roi_head.bbox_head.fc_cls',)` to fine-tune on other classes. To resume and to test, all load.
        generation: `'cvpr' | 'pp'`, for files that do not tell.
        classes: If given, weights that differ by the number of classes alone are left as initialised, too.
    """

    def __init__(
        self,
        ignore: tuple[str, ...] = (),
        generation: str | None = None,
        classes: ClassWeights | None = None,
    ):
        self.ignore = tuple(ignore)
        self.generation = generation
        self.classes = classes

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Puts the fitted weights into the checkpoint.

        Raises:
            CheckpointError: If the kind of model, generation or arch differ, or if keys are missing,
                unexpected or of another shape; names them.
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
        starting = training and not resuming
        target = model.state_dict()
        has_more = any(not key.startswith(('backbone.', 'head.')) for key in target)
        is_part = bool(weights.identity) and weights.is_classifier and has_more
        if is_part and not training:
            raise CheckpointError(
                f'{weights.source} holds a backbone and not the rest of the model: a training can start from '
                'it, by load_from or init_cfg, but there is nothing to test'
            )
        ignore, classes = (self.ignore, self.classes) if starting else ((), None)
        if not (starting and (is_part or ignore)):
            check_kind(weights, target, has_dat=find_identity(model) is not None)
        check_weights(weights, model, ' by `--cfg-options load_generation=...`')
        fitted, report = fit(weights, target, is_part and starting, ignore, classes)
        hint = (
            ' (`--cfg-options load_ignore=PREFIX,...` leaves such weights as initialised)' if starting else ''
        )
        report.check(' (--no-resume starts anew)' if resuming else hint)
        runner.logger.info(report)

        metadata = getattr(checkpoint.get('state_dict'), '_metadata', None)
        checkpoint['state_dict'] = OrderedDict(fitted)
        if metadata is not None:
            checkpoint['state_dict']._metadata = metadata


class MissedValidationHook(Hook):
    """Validates at the start of a resumed run, where the run before may have been stopped in between.

    MMEngine saves a checkpoint, validates, and trains on; a resumed run trains on at once. What depends on
    the metrics, the best checkpoint for instance, then differs, and a run that is stopped in its last
    validation never tells how good it is. A checkpoint that was saved after its validation knows of it.
    """

    priority = 'LOWEST'  # the other hooks are ready

    def before_train(self, runner) -> None:
        if not runner._resume or runner.val_loop is None:
            return
        loop = runner.train_loop
        loop._decide_current_val_interval()
        step, last = _position(loop)
        due = step >= loop.val_begin and (step % loop.val_interval == 0 or step == last)
        if due and runner.message_hub.runtime_info.get('validated_at') != step:
            runner.logger.info('Validating the checkpoint, the run before may not have come to it.')
            runner.val_loop.run()

    def before_val(self, runner) -> None:
        if isinstance(runner._train_loop, BaseLoop):
            runner.message_hub.update_info('validated_at', _position(runner.train_loop)[0])


def _position(loop: BaseLoop) -> tuple[int, int]:
    """Where a training is and where it ends, in epochs or iterations."""
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    return (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
