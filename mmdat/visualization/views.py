"""A model with its test pipeline, and an image as the model sees it."""

import os.path as osp
from dataclasses import dataclass

import cv2
import mmcv
import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, DefaultScope, init_default_scope
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from ..checkpoint import load_model
from ..errors import UserError
from .inspection import inspecting
from .placement import Placement, find_placement


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
        """What the network sees of the image, as wide as asked for."""
        part = self.image[self.shown]
        height = max(round(part.shape[0] * width / part.shape[1]), 1)
        return Canvas(resize(part, width, height), *self.shown)


class ViewedModel:
    """A detector, segmentor or classifier whose images are looked at.

    Args:
        model: On its device.
        cfg: Its config.
        loader: Which part of the config has the pipeline for images, `'test_dataloader'` or another.
        dataset_meta: Classes and palette, for drawing predictions; by default those of the data set's class.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: Config,
        loader: str = 'test_dataloader',
        dataset_meta: dict | None = None,
    ):
        self.model = model
        self.cfg = cfg
        dataset = cfg[loader].dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        self.pipeline = Compose([t for t in dataset.pipeline if 'Annotations' not in t['type']])
        self._dataset_type = dataset.type
        self._dataset_meta = dataset_meta
        self._visualizer = None

    @classmethod
    def load(cls, cfg: Config, checkpoint: str, device: str = 'cpu') -> 'ViewedModel':
        """Builds the model of a config, and loads a file with all its weights.

        Raises:
            CheckpointError: If the checkpoint does not fit the model.
        """
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        content = load_model(model, checkpoint, cfg.get('load_generation'))
        model.to(device).eval()
        return cls(model, cfg, dataset_meta=content.get('meta', {}).get('dataset_meta'))

    def look_at(self, path: str) -> View:
        """Reads an image file.

        Raises:
            UserError: If this is no image file, or the pipeline does what cannot be drawn.
        """
        if (why := _why_no_image(path)) is not None:
            raise UserError(f'{path} {why}')
        image = mmcv.imread(path)
        with inspecting(self.model):
            packed = self.pipeline(dict(img_path=path, img_id=0))
            batch = self.model.data_preprocessor(pseudo_collate([packed]), training=False)
        with inspecting(self.model):  # again with the same random numbers
            placement = find_placement(self.pipeline, image.shape[:2])
        return View(path, image, placement, packed, batch['inputs'])

    def predict(self, view: View) -> BaseDataElement:
        """The model's prediction."""
        with inspecting(self.model):
            return self.model.test_step(pseudo_collate([view.packed]))[0]

    def draw_prediction(self, view: View, prediction: BaseDataElement) -> np.ndarray:
        """The image with a prediction on it, BGR, cut to what the network sees."""
        visualizer = self._own_visualizer()
        image = mmcv.bgr2rgb(view.image)
        with inspecting(self.model):  # colours of masks are drawn by chance
            if hasattr(visualizer, 'visualize_cls'):
                part = np.ascontiguousarray(image[view.shown])
                return mmcv.rgb2bgr(visualizer.visualize_cls(part, prediction, draw_gt=False))
            visualizer.add_datasample('predictions', image, prediction, draw_gt=False)
        return mmcv.rgb2bgr(visualizer.get_image())[view.shown]

    def _own_visualizer(self) -> Visualizer:
        if self._visualizer is None:
            # MMEngine shares visualizers by name; that of a run keeps its state and its backends
            own_name = dict(name=f'viewed model {id(self)}', vis_backends=None)
            with DefaultScope.overwrite_default_scope(self.cfg.get('default_scope')):
                self._visualizer = VISUALIZERS.build(self.cfg.visualizer | own_name)
                meta = self._dataset_meta
                if meta is None:
                    with DATASETS.switch_scope_and_registry(None) as datasets:
                        meta = datasets.get(self._dataset_type).METAINFO
            self._visualizer.dataset_meta = meta
        return self._visualizer


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Enlarges or reduces an image."""
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _why_no_image(path: str) -> str | None:
    if not osp.exists(path):
        return 'does not exist'
    if osp.isdir(path):
        return 'is a folder: name the images in it'
    try:
        readable = mmcv.imread(path) is not None
    except (OSError, cv2.error):
        readable = False
    return None if readable else 'is no image, or broken'
