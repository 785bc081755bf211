"""From a config, a checkpoint and image files to files of pictures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

from ..errors import UserError
from ..input_files import Input
from ..spelling import did_you_mean
from .deformable import find_dat
from .pictures import KINDS, Query, paint_attention, paint_keys, paint_points
from .views import ViewedModel


class KeyPointPainter:
    """Paints what the DAT inside a detector, segmentor or classifier attends to.

    Args:
        cfg: Config of the model; its test pipeline prepares the images.
        checkpoint: File with all weights of the model.
        device: Where the model runs, by default a GPU if there is one.
        predictions: Whether to show the model's predictions, too.

    Raises:
        UserError: If the model has no DAT backbone with deformable attention.
        CheckpointError: If the checkpoint does not fit the model.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None = None, predictions: bool = False):
        self.subject = ViewedModel.load(cfg, checkpoint, device)
        find_dat(self.subject.model)
        self.predictions = predictions

    def __call__(self, path: str) -> np.ndarray:
        """One panel for the predictions, and one for the last deformable attention of each stage.

        Panels show the image in the file, or, where the test pipeline crops, what it leaves of it.

        Args:
            path: Image file.

        Returns:
            BGR picture.

        Raises:
            UserError: If this is no image file.
        """
        view = self.subject.look_at(path)
        return paint_points(self.subject, view, self.subject.predict(view) if self.predictions else None)


class PicturePainter:
    """Paints the pictures of the paper for images of one's own.

    Args:
        subject: The model.
        what: Which pictures, of `KINDS`.
        queries: For `'attention'`, `(x, y)` in pixels of each image; by default those of `default_queries`.
        predictions: Whether `'points'` and `'keys'` show the model's predictions, too.
        top_k: How many keys are drawn; by default 100 for `'keys'` and 30 for `'attention'`.
        by_head: See `paint_attention`, as for `layer` and `swin`.

    Raises:
        UserError: If a kind is unknown, or the model has no DAT backbone with deformable attention.
    """

    def __init__(
        self,
        subject: ViewedModel,
        what: Sequence[str] = KINDS,
        queries: Sequence[Query] = (),
        predictions: bool = False,
        top_k: int | None = None,
        by_head: bool = False,
        layer: str | None = None,
        swin: ViewedModel | None = None,
    ):
        for kind in what:
            if kind not in KINDS:
                known = ', '.join(KINDS)
                raise UserError(
                    f'no picture is named {kind!r}{did_you_mean(kind, KINDS)} (there are {known})'
                )
        find_dat(subject.model)
        self.subject = subject
        self.what = tuple(what)
        self.queries = tuple(map(tuple, queries))
        self.predictions = predictions
        self.top_k = {} if top_k is None else dict(top_k=top_k)
        self.attention = dict(by_head=by_head, layer=layer, swin=swin)

    def __call__(self, path: str) -> dict[str, np.ndarray]:
        """Paints an image file.

        Returns:
            BGR pictures by their kinds.

        Raises:
            UserError: If this is no image file, or a query lies outside it.
        """
        view = self.subject.look_at(path)
        default_queries = 'attention' in self.what and not self.queries
        prediction = self.subject.predict(view) if self.predictions or default_queries else None
        shown = prediction if self.predictions else None
        pictures = {}
        for kind in self.what:
            if kind == 'points':
                pictures[kind] = paint_points(self.subject, view, shown)
            elif kind == 'keys':
                pictures[kind] = paint_keys(self.subject, view, shown, **self.top_k)
            else:
                settings = self.top_k | self.attention
                pictures[kind] = paint_attention(self.subject, view, self.queries, prediction, **settings)
        return pictures


def paint_files(
    paint: Callable[[str], np.ndarray | dict[str, np.ndarray]],
    images: Iterable[Input],
    out_dir: str,
    problems: Iterable[str] = (),
) -> Iterator[tuple[Path | None, str]]:
    """Paints one file after the other; one that fails does not keep back those after it.

    Args:
        paint: Makes a BGR picture of an image file, as `KeyPointPainter` does, or several by their kinds.
        images: Image files, see `find_images`.
        out_dir: Where pictures go: a single one as JPEG under its image's name, several as PNG, their kinds
            added to the name.
        problems: What has gone wrong before, to be told first.

    Yields:
        For each picture its path and `''`, or `None` and what went wrong.

    Raises:
        UserError: If the folder cannot be made.
    """
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'folder {out_dir} cannot be made: {error.strerror}') from error
    yield from ((None, problem) for problem in problems)
    for image, name in images:
        try:
            pictures = paint(image)
        except UserError as error:
            yield None, str(error)
            continue
        if not isinstance(pictures, dict):
            pictures = {f'{name}.jpg': pictures}
        else:
            pictures = {f'{name}_{kind}.png': picture for kind, picture in pictures.items()}
        for out, picture in pictures.items():
            out = out_dir / out
            yield (out, '') if _write(picture, out) else (None, f'{image}: {out} cannot be written')


def _write(picture: np.ndarray, path: Path) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return cv2.imwrite(str(path), picture)
    except (OSError, cv2.error):
        return False
