"""Key points and predictions of a trained model, side by side."""

import os.path as osp
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope

from ..backbones import DAT
from ..checkpoint import load_model
from ..errors import UserError
from .key_points import draw_key_points

MIN_SIDE = 448  # smaller images are enlarged, points on them would touch each other
TITLE_HEIGHT, GAP = 26, 6  # of the panels


class KeyPointPainter:
    """Paints what the DAT inside a detector, segmentor or classifier attends to.

    Args:
        cfg: Config of the model; its test pipeline prepares the images.
        checkpoint: File with all weights of the model.
        device: Where the model runs.
        predictions: Whether to show the model's predictions, too.

    Raises:
        UserError: If the model has no DAT backbone.
        CheckpointError: If the checkpoint does not fit the model.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str = 'cpu', predictions: bool = False):
        init_default_scope(cfg.default_scope)
        self.model = MODELS.build(cfg.model)
        content = load_model(self.model, checkpoint, cfg.get('load_generation'))
        self.model.to(device).eval()
        backbones = [module for module in self.model.modules() if isinstance(module, DAT)]
        if not backbones:
            raise UserError(f'{type(self.model).__name__} has no DAT backbone')
        self.backbone = backbones[0]

        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        self.pipeline = Compose([t for t in dataset.pipeline if 'Annotations' not in t['type']])
        self.visualizer = None
        if predictions:
            own_name = dict(name=f'painter {id(self)}', vis_backends=None)  # MMEngine shares by name
            self.visualizer = VISUALIZERS.build(cfg.visualizer | own_name)
            with DATASETS.switch_scope_and_registry(None) as datasets:
                own_meta = datasets.get(dataset.type).METAINFO
            self.visualizer.dataset_meta = content.get('meta', {}).get('dataset_meta', own_meta)

    @torch.no_grad()
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
        if (why := _why_no_image(path)) is not None:
            raise UserError(f'{path} {why}')
        packed = self.pipeline(dict(img_path=path, img_id=0))
        image, scale_factor = _shown_image(packed, path)
        zoom = max(1.0, MIN_SIDE / min(image.shape[:2]))
        canvas = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        scale_factor = tuple(scale / zoom for scale in scale_factor)

        panels = []
        if self.visualizer is not None:
            result = self.model.test_step(pseudo_collate([packed]))[0]
            picture = cv2.resize(self._draw_predictions(image, result), canvas.shape[1::-1])
            panels.append(_with_title(picture, 'predictions'))
        batch = self.model.data_preprocessor(pseudo_collate([packed]), training=False)
        locations = self.backbone.sampling_locations(batch['inputs'])
        for stage, name in _last_of_each_stage(locations).items():
            stride = 4 * 2**stage
            map_size = tuple(-(-side // stride) for side in batch['inputs'].shape[2:])
            points = locations[name][0]
            coordinates = self.backbone.get_submodule(name).coordinates
            picture = draw_key_points(canvas, points, map_size, stride, scale_factor, coordinates)
            groups, rows, columns, _ = points.shape
            keys = f'{rows} x {columns} keys' + (f', {groups} groups' if groups > 1 else '')
            panels.append(_with_title(picture, f'stage {stage + 1}: {keys}'))
        gap = np.full((len(panels[0]), GAP, 3), 255, np.uint8)
        return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)

    def _draw_predictions(self, image: np.ndarray, result) -> np.ndarray:
        image = mmcv.bgr2rgb(image)
        if hasattr(self.visualizer, 'visualize_cls'):
            picture = self.visualizer.visualize_cls(image, result, draw_gt=False)
        else:
            self.visualizer.add_datasample('predictions', image, result, draw_gt=False)
            picture = self.visualizer.get_image()
        return mmcv.rgb2bgr(picture)


def paint_files(
    paint: Callable[[str], np.ndarray], images: Iterable[str], out_dir: str
) -> Iterator[tuple[Path | None, str]]:
    """Paints one file after the other; one that fails does not keep back those after it.

    Args:
        paint: Makes a BGR picture of an image file, as `KeyPointPainter` does.
        images: Image files.
        out_dir: Where pictures go, as JPEG under their images' names.

    Yields:
        For each image the picture's path and `''`, or `None` and what went wrong.

    Raises:
        UserError: If the folder cannot be made.
    """
    out_dir = Path(out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'folder {out_dir} cannot be made: {error.strerror}') from error
    painted = {}
    for image in images:
        out = out_dir / f'{Path(image).stem}.jpg'
        if out in painted:
            yield None, f'{image}: {out} is the picture of {painted[out]} already'
            continue
        try:
            picture = paint(image)
        except UserError as error:
            yield None, str(error)
            continue
        painted[out] = image
        yield (out, '') if _write(picture, out) else (None, f'{image}: {out} cannot be written')


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


def _write(picture: np.ndarray, path: Path) -> bool:
    try:
        return cv2.imwrite(str(path), picture)
    except cv2.error:
        return False


def _shown_image(packed: dict, path: str) -> tuple[np.ndarray, tuple[float, float]]:
    """The image on which to draw, and the scale factor from it to the network's input."""
    meta = packed['data_samples'].metainfo
    scale_factor = tuple(meta.get('scale_factor', (1.0, 1.0)))
    resized = np.array(meta['ori_shape'][:2]) * scale_factor[::-1]
    if np.allclose(resized, meta['img_shape'][:2], atol=1):
        return mmcv.imread(path), scale_factor
    cropped = packed['inputs'].permute(1, 2, 0).contiguous().numpy()
    return cropped, (1.0, 1.0)


def _last_of_each_stage(names: Iterable[str]) -> dict[int, str]:
    # 'stages.2.blocks.1.attn'; a later block of the same stage takes the place of an earlier one
    return {int(name.split('.')[1]): name for name in names}


def _with_title(picture: np.ndarray, title: str) -> np.ndarray:
    bar = np.full((TITLE_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    font = dict(fontFace=cv2.FONT_HERSHEY_SIMPLEX, fontScale=0.55, color=(40, 40, 40))
    cv2.putText(bar, title, (4, TITLE_HEIGHT - 9), lineType=cv2.LINE_AA, **font)
    return np.concatenate([bar, picture])
