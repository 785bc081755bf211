from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper

from ..checkpoint import describe_mismatch


class StrictCheckpointHook(Hook):
    """Stops when a checkpoint does not fit the model; MMEngine would only warn.

    Args:
        ignore: Prefixes of keys that are left as initialised, for instance
            `('roi_head.bbox_head.fc_cls',)` to fine-tune on other classes.
    """

    def __init__(self, ignore: tuple[str, ...] = ()):
        self.ignore = tuple(ignore)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Checks the weights, and takes out those to ignore.

        Raises:
            ValueError: If keys are missing, unexpected or of another shape; names them.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        state_dict = checkpoint.get('state_dict', checkpoint)
        for key in [k for k in state_dict if self.ignore and k.startswith(self.ignore)]:
            del state_dict[key]
            runner.logger.info(f'{key} of the checkpoint is ignored')
        target = {
            key: value
            for key, value in model.state_dict().items()
            if not (self.ignore and key.startswith(self.ignore))
        }
        weights = {key.removeprefix('module.'): value for key, value in state_dict.items()}
        if mismatch := describe_mismatch(weights, target):
            raise ValueError(
                f'the checkpoint does not fit the model: {mismatch} '
                '(`--cfg-options load_ignore=PREFIX,...` leaves such weights as initialised)'
            )
