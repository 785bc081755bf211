from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from ...apis import ImageError, init_model
from ...apis.drawing import draw_on_pixels
from ...apis.images import Preparation
from ...apis.prediction import predict
from ...errors import UserError
from ...input_files import Input, find_images
from ..errors import in_one_line
from .folder import PICTURES, PREDICTIONS, ResultError, ResultFolder
from .results import Describer


def infer_files(
    cfg: Config,
    checkpoint: str,
    inputs: Iterable[str],
    out_dir: str,
    device: str | None = None,
    batch_size: int = 1,
    recursive: bool = False,
    pictures: bool = True,
    score_thr: float = 0.3,
    top_k: int = 5,
) -> tuple[int, int]:
    """Predicts what is in images, and writes it down.

    Each image has a picture in `pictures/`, and in `predictions/` a file of its own, JSON or a label map in
    PNG, which are written as soon as they are known. `predictions.json` has all that is in JSON, in the order
    of the images; it is written at the end, also of a run that is interrupted.

    What cannot be used is named on the standard error, and the others go on.

    Args:
        cfg: Config of the model.
        checkpoint: As for `init_model`, as well as `device`.
        inputs: Files, folders and patterns, see `find_images`, as well as `recursive`.
        out_dir: Where results go.
        batch_size: Images at a time.
        pictures: Whether to draw.
        score_thr: The lowest score of objects in pictures, for detectors. The files have all.
        top_k: How many classes to give for an image, for classifiers.

    Returns:
        The number of images that are done, and the number of names and images that failed.

    Raises:
        UserError: If there are no images, or nothing can be written, before the checkpoint is read.
        CheckpointError: If the checkpoint does not fit.
    """
    images, problems = find_images(inputs, recursive, but=out_dir)
    folder = ResultFolder(out_dir)
    with in_one_line('model', cfg.get('model')):
        model = init_model(cfg, checkpoint, device)
        prepare = Preparation(cfg)
    run = _Run(model, folder, Describer(model, top_k), pictures, score_thr)
    with _progress_bar(len(images)) as progress:
        run.progress = progress
        for problem in problems:
            run.fail(problem)
        try:
            for image, result in predict(model, run.prepare(images, prepare), batch_size):
                run.finish(image, result)
        except torch.OutOfMemoryError as error:
            raise UserError(f'no memory for a batch of {batch_size}: take a smaller --batch-size') from error
        finally:
            folder.write_json(PREDICTIONS, run.entries(images))
    return run.done, run.failed


class _Run:
    """What has become of the images so far."""

    def __init__(
        self, model: nn.Module, folder: ResultFolder, describe: Describer, pictures: bool, score_thr: float
    ):
        self.done = self.failed = 0
        self.progress = None
        self._model, self._folder, self._describe = model, folder, describe
        self._pictures, self._score_thr = pictures, score_thr
        self._pixels: dict[Input, np.ndarray] = {}
        self._entries: dict[Input, list[dict]] = {}

    def fail(self, message: str, of_image: bool = False) -> None:
        self.failed += 1
        self.progress.console.print(f'error: {message}', markup=False, highlight=False, soft_wrap=True)
        if of_image:
            self.progress.advance(self.progress.task_ids[0])

    def prepare(self, images: list[Input], prepare: Preparation) -> Iterator[tuple[Input, dict]]:
        for image in images:
            try:
                sample = prepare(image.path)
            except ImageError as error:
                self.fail(str(error), of_image=True)
                continue
            if self._pictures:
                self._pixels[image] = sample.pixels
            yield image, sample.packed

    def finish(self, image: Input, result) -> None:
        """Writes down a prediction."""
        entries, label_map = self._describe(result, image.path)
        pixels = self._pixels.pop(image, None)
        try:
            if label_map is None:
                self._folder.write_json(f'{PREDICTIONS}/{image.name}', entries)
            else:
                entries[0]['label_map'] = f'{PREDICTIONS}/{image.name}.png'
                self._folder.write_picture(entries[0]['label_map'], label_map)
            self._entries[image] = entries
            if self._pictures:
                picture = draw_on_pixels(self._model, pixels, result, self._score_thr)
                self._folder.write_picture(f'{PICTURES}/{image.name}.jpg', picture)
        except ResultError as error:
            self.fail(f'{image.path}: {error}', of_image=True)
            return
        self.done += 1
        self.progress.advance(self.progress.task_ids[0])

    def entries(self, images: list[Input]) -> list[dict]:
        return [entry for image in images for entry in self._entries.get(image, ())]


@contextmanager
def _progress_bar(total: int) -> Iterator[Progress]:
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        progress.add_task('images', total=total)
        yield progress
