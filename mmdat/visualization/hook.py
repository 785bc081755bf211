"""Pictures of what DAT looks at, in the course of a training."""

from collections.abc import Sequence

import mmcv
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..errors import UserError
from .painter import PicturePainter
from .pictures import KINDS, Query
from .views import ViewedModel

_COUNT = 'validations_before_pictures'  # in the message hub, which is resumed


@HOOKS.register_module()
class AttentionPicturesHook(Hook):
    """Writes pictures of what DAT looks at to the run's visualizer: files, TensorBoard, Weights & Biases.

    It uses the weights that were validated, averaged ones included, and changes neither the model nor the
    random numbers of the run. In configs its name is `'mmdat.AttentionPicturesHook'`.

    Args:
        what: Which pictures, of `'points'`, `'keys'` and `'attention'`; see `tools/visualize.py`.
        interval: Validations from one set of pictures to the next.
        images: Image files, or how many of the first images of the validation set.
        queries: For `'attention'`, `(x, y)` in pixels of each image; by default the centres of predictions.
        predictions: Whether `'points'` and `'keys'` show predictions, too.
        top_k: How many keys are drawn; by default 100 for `'keys'` and 30 for `'attention'`.

    Raises:
        UserError: Before the training, if `what` names no picture, the model has no deformable attention, or
            its weights are cut over the processes.
    """

    priority = 'ABOVE_NORMAL'  # before the hook that takes averages of the weights back

    def __init__(
        self,
        what: Sequence[str] = KINDS,
        interval: int = 1,
        images: int | Sequence[str] = 1,
        queries: Sequence[Query] = (),
        predictions: bool = False,
        top_k: int | None = None,
    ):
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval=}')
        self.what = tuple(what)
        self.interval = interval
        self.images = images
        self.settings = dict(queries=queries, predictions=predictions, top_k=top_k)
        self._painter = None

    def before_train(self, runner: Runner) -> None:
        self._painter = self._make_painter(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if self._painter is None:  # no training
            return
        count = runner.message_hub.runtime_info.get(_COUNT, 0) + 1
        runner.message_hub.update_info(_COUNT, count)
        if count % self.interval == 0:
            self._draw(runner)

    def _make_painter(self, runner: Runner) -> PicturePainter:
        model = runner.model
        while is_model_wrapper(model):
            if 'FullyShardedDataParallel' in [base.__name__ for base in type(model).__mro__]:
                raise UserError(
                    'AttentionPicturesHook cannot look into a model whose weights are cut over processes: '
                    'leave it out, and draw from checkpoints with tools/visualize.py'
                )
            model = model.module
        loader = 'val_dataloader' if runner.cfg.get('val_dataloader') else 'test_dataloader'
        meta = getattr(runner.val_dataloader.dataset, 'metainfo', None)
        return PicturePainter(ViewedModel(model, runner.cfg, loader, meta), self.what, **self.settings)

    @master_only
    def _draw(self, runner: Runner) -> None:
        paths = self.images
        if isinstance(paths, int):
            dataset = runner.val_dataloader.dataset
            paths = [dataset.get_data_info(i)['img_path'] for i in range(min(paths, len(dataset)))]
        for number, path in enumerate(paths):
            try:
                pictures = self._painter(path)
            except UserError as error:  # a training is worth more than its pictures
                runner.logger.warning(f'no picture of what DAT looks at: {error}')
                continue
            for kind, picture in pictures.items():
                runner.visualizer.add_image(f'{kind}_{number}', mmcv.bgr2rgb(picture), step=runner.iter)
