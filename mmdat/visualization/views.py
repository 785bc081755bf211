"""A model with its test pipeline, and an image as the model sees it."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..apis import init_model
from ..apis.drawing import build_visualizer, draw_result
from ..apis.images import Preparation
from .inspection import inspecting
from .placement import Placement, find_placement

_LARGEST_HEIGHT, _LEAST_WIDTH = 960, 200  # of a canvas, in pixels; titles stand above it


@dataclass(frozen=True)
class Canvas:
    """What a network sees of an image, enlarged or reduced, to draw upon.

    Args:
        image: `(H, W, 3)` uint8, BGR.
        rows: Of the image that it shows.
        columns: Alike.
    """

    image: np.ndarray
    rows: slice
    columns: slice

    @property
    def zoom(self) -> tuple[float, float]:
        """Pixels of the canvas for one of the image, in x and y."""
        height, width = self.image.shape[:2]
        return width / (self.columns.stop - self.columns.start), height / (self.rows.stop - self.rows.start)

    def place(self, placement: Placement) -> Placement:
        """How the canvas lies on an input, from how the image does."""
        return placement.of_part(self.rows, self.columns, self.zoom)

    def point(self, x: float, y: float) -> np.ndarray:
        """A point of the image on the canvas, `(x, y)`."""
        return (np.array([x, y]) + 0.5 - (self.columns.start, self.rows.start)) * self.zoom - 0.5


@dataclass(frozen=True)
class View:
    """An image, and how a model sees it.

    Args:
        path: Of its file.
        image: All of it, `(H, W, 3)` uint8, BGR.
        placement: How it lies on `inputs`.
        packed: What the test pipeline makes of it.
        inputs: The same, `(1, 3, H', W')`, normalised and padded as the backbone gets it.
    """

    path: str
    image: np.ndarray
    placement: Placement
    packed: dict
    inputs: Tensor

    @property
    def shown(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the network sees."""
        return self.placement.shown(self.inputs.shape[2:])

    def canvas(self, width: int) -> Canvas:
        """What the network sees of the image, as wide as asked for; narrower where it would be very high."""
        part = self.image[self.shown]
        aspect = part.shape[0] / part.shape[1]
        width = round(min(width, max(_LARGEST_HEIGHT / aspect, _LEAST_WIDTH)))
        height = max(round(aspect * width), 1)
        return Canvas(resize(part, width, height), *self.shown)


class ViewedModel:
    """A detector, segmentor or classifier whose images are looked at.

    Args:
        model: On its device.
        cfg: Its config.
        loader: Which part of the config has the pipeline for images, `'test_dataloader'` or another.
        dataset_meta: Classes and palette, for drawing predictions.

    Raises:
        UserError: If the config has no pipeline that reads images from files.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: Config,
        loader: str = 'test_dataloader',
        dataset_meta: Mapping | None = None,
    ):
        self.model = model
        self.cfg = cfg
        self._prepare = Preparation(cfg, loader)
        self._dataset_meta = dataset_meta or {}
        self._visualizer = None

    @classmethod
    def load(cls, config: str | Config, checkpoint: str, device: str | None = None) -> 'ViewedModel':
        """Builds and loads a model; arguments and errors are those of `init_model`."""
        model = init_model(config, checkpoint, device)
        return cls(model, model.cfg, dataset_meta=model.dataset_meta)

    def look_at(self, path: str) -> View:
        """Reads an image file.

        Raises:
            ImageError: If this is no image file.
            UserError: If the pipeline does what cannot be drawn.
        """
        with inspecting(self.model):
            sample = self._prepare(path)
            batch = self.model.data_preprocessor(pseudo_collate([sample.packed]), training=False)
        size = sample.pixels.shape[:2]
        with inspecting(self.model):  # again with the same random numbers
            placement = find_placement(lambda data: self._prepare(data['img_path']).packed, size)
        image = np.clip(sample.pixels, 0, 255).astype(np.uint8)
        return View(path, image, placement, sample.packed, batch['inputs'])

    def predict(self, view: View) -> BaseDataElement:
        """The model's prediction."""
        with inspecting(self.model), DefaultScope.overwrite_default_scope(self.cfg.get('default_scope')):
            return self.model.test_step(pseudo_collate([view.packed]))[0]

    def draw_prediction(self, view: View, prediction: BaseDataElement, canvas: Canvas) -> np.ndarray:
        """A canvas with a prediction on it, BGR."""
        if self._visualizer is None:
            self._visualizer = build_visualizer(self.cfg, self._dataset_meta)
        with inspecting(self.model):  # colours of masks are drawn by chance
            if 'pred_score' in prediction:  # nothing but letters, which would be enlarged
                return draw_result(self._visualizer, canvas.image, prediction)
            picture = draw_result(self._visualizer, view.image, prediction)[view.shown]
        return resize(picture, canvas.image.shape[1], canvas.image.shape[0])


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Enlarges or reduces an image."""
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
