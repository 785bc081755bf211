"""What is drawn lies where the network looks: images with one marked corner."""

import cv2
import numpy as np
import pytest
import torch
from helpers.tasks import config, viewed
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample

from mmdat.errors import UserError
from mmdat.visualization import PicturePainter, default_queries, deformable_layers, pictures, top_keys
from mmdat.visualization.drawing import panel_width
from mmdat.visualization.inspection import inspecting

# where a mark of 60 x 48 lies in an image of 300 x 200, its left top, and its centre
MARKS = {
    'top left': (0, 0, (29.5, 23.5)),
    'bottom left': (0, 152, (29.5, 175.5)),
    'right': (240, 0, (269.5, 23.5)),
}


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """Its test pipeline makes 450 x 300 of an image of 300 x 200; the preprocessor pads that to 480 x 320."""
    cfg = config('detector')
    cfg.test_pipeline[1].scale = (450, 450)
    cfg.test_dataloader.dataset.pipeline[1].scale = (450, 450)
    return viewed(cfg, tmp_path_factory.mktemp('detector'))


def marked(folder, corner):
    left, top, centre = MARKS[corner]
    image = np.full((200, 300, 3), (90, 60, 40), np.uint8)
    image[top : top + 48, left : left + 60] = (20, 200, 250)
    path = str(folder / 'marked.png')
    cv2.imwrite(path, image)
    return path, centre


def attend_to(subject, images, placement, point):
    """Makes all queries of the last deformable attention look for what is in the first image at a point."""
    with inspecting(subject.model):
        layer = deformable_layers(subject.model.backbone, images)[-1]
    attn = layer.attn
    y, x = placement.to_map(*point, layer.map_size, layer.stride)
    wanted = layer.x[0, y, x] - layer.x[0].mean(dim=(0, 1))
    head_dims = len(wanted) // attn.num_heads
    with torch.no_grad():
        for projection in (attn.q, attn.k):
            projection.weight.zero_()
            projection.bias.zero_()
        attn.position_bias_table.zero_()
        attn.q.bias[::head_dims] = 200 / wanted.square().sum()
        attn.k.weight[::head_dims] = wanted
        attn.offset.proj.weight.zero_()  # keys at their reference points
    return layer


@pytest.mark.parametrize('corner', MARKS)
def test_attention_is_drawn_upon_the_marked_corner(corner, detector, tmp_path, monkeypatch):
    path, centre = marked(tmp_path, corner)
    view = detector.look_at(path)
    assert view.inputs.shape[2:] == (320, 480)
    attend_to(detector, view.inputs, view.placement, centre)
    drawn = []
    monkeypatch.setattr(pictures, 'draw_dots', lambda axes, points, *_: drawn.append(points))
    stars = []
    monkeypatch.setattr(pictures, 'draw_star', lambda axes, point, *_: stars.append(point))
    queries = [(150, 100), (299, 0)]
    pictures.paint_attention(detector, view, queries, top_k=1)
    zoom = panel_width(2) / 300
    for points in drawn[:2]:  # of the two queries
        distance = np.abs((points[0] + 0.5) / zoom - 0.5 - centre)
        assert (distance <= (30, 24)).all(), distance  # within the mark
    for star, query in zip(stars[:2], queries):
        np.testing.assert_allclose(star, (np.array(query) + 0.5) * zoom - 0.5, atol=0.5)  # whole pixels


def test_padding_of_a_batch(detector, tmp_path):
    """Beside a larger image the same corner is found, though the map has another size."""
    path, centre = marked(tmp_path, 'bottom left')
    cv2.imwrite(str(tmp_path / 'large.png'), np.zeros((640, 500, 3), np.uint8))
    view = detector.look_at(path)
    large = detector.look_at(str(tmp_path / 'large.png'))
    batch = dict(
        inputs=[view.packed['inputs'], large.packed['inputs']],
        data_samples=[view.packed['data_samples'], large.packed['data_samples']],
    )
    with inspecting(detector.model):
        images = detector.model.data_preprocessor(batch, False)['inputs']
    layer = attend_to(detector, images, view.placement, centre)
    assert layer.map_size != tuple(n // layer.stride for n in view.inputs.shape[2:])
    with inspecting(detector.model):
        y, x = view.placement.to_map(150, 100, layer.map_size, layer.stride)
        weights = layer.weights([y * layer.map_size[1] + x])[0, :, 0]
        points, _ = top_keys(weights, layer.locations()[0].flatten(1, 2), 1)
    found = view.placement.to_image(points, layer.map_size, layer.stride)[0]
    assert (np.abs(found - centre) <= (30, 24)).all()


def test_pictures_of_all_kinds(detector, tmp_path):
    path, _ = marked(tmp_path, 'right')
    modes = [module.training for module in detector.model.modules()]
    painted = PicturePainter(detector, queries=[(20, 20), (100, 150)], predictions=True)(path)
    assert list(painted) == ['points', 'keys', 'attention']
    for picture in painted.values():
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3
        assert picture.std() > 10
        # nothing touches the border: titles, legends and marks are whole
        assert all((edge == 255).all() for edge in (picture[-1], picture[:, 0], picture[:, -1]))
    by_head = pictures.paint_attention(detector, detector.look_at(path), [(20, 20)], by_head=True)
    assert by_head.shape != painted['attention'].shape
    assert [module.training for module in detector.model.modules()] == modes


def test_a_picture_does_not_depend_on_the_backend(detector, tmp_path, monkeypatch):
    view = detector.look_at(marked(tmp_path, 'right')[0])
    painted = []
    for backend in ('reference', 'portable'):
        monkeypatch.setenv('MMDAT_BACKEND', backend)
        painted.append(pictures.paint_attention(detector, view, [(20, 20)]).astype(int))
    assert (
        np.abs(painted[0] - painted[1]).max() <= 32
    )  # antialiasing of points that differ in the last digits


def test_queries_and_layers_that_are_not_there(detector, tmp_path):
    path, _ = marked(tmp_path, 'right')
    with pytest.raises(UserError, match=r'marked\.png: the query 300 20 lies outside the image of 300 x 200'):
        PicturePainter(detector, ['attention'], queries=[(300, 20)])(path)
    view = detector.look_at(path)
    with pytest.raises(UserError, match=r"'stages.3.blocks.0.attn'.*there are stages\.2\.blocks\.1\.attn, "):
        pictures.paint_attention(detector, view, [(1, 1)], layer='stages.3.blocks.0.attn')
    with pytest.raises(UserError, match=r"no picture is named 'attentions'.*attention"):
        PicturePainter(detector, ['attentions'])


def test_default_queries_of_a_detector(detector, tmp_path):
    view = detector.look_at(marked(tmp_path, 'right')[0])
    boxes = torch.tensor([[0.0, 0, 40, 20], [100, 100, 200, 180], [250, 10, 360, 30], [5, 5, 9, 9]])
    instances = InstanceData(bboxes=boxes, scores=torch.tensor([0.4, 0.9, 0.5, 0.2]))
    prediction = type(view.packed['data_samples'])(pred_instances=instances)
    # in the order of their scores, inside the image, without what is not drawn
    assert default_queries(view, prediction) == [(149.5, 139.5), (299, 19.5), (19.5, 9.5)]
    assert default_queries(view, prediction, count=1) == [(149.5, 139.5)]
    prediction.pred_instances = instances[:0]
    assert default_queries(view, prediction) == [(149.5, 99.5)]


@pytest.fixture
def segmentor(tmp_path):
    return viewed(config('segmentor'), tmp_path)


def test_default_queries_of_a_segmentor(segmentor, tmp_path):
    view = segmentor.look_at(marked(tmp_path, 'right')[0])
    labels = torch.zeros(1, 200, 300, dtype=torch.long)
    labels[:, 20:61, 30:131] = 7  # 41 x 101
    labels[:, 100:151, 200:251] = 7  # 51 x 51, of the same class
    prediction = type(view.packed['data_samples'])(pred_sem_seg=PixelData(data=labels))
    (x0, y0), (x1, y1), (x2, y2) = default_queries(view, prediction)
    assert labels[0, int(y0), int(x0)] == 0  # the background is the largest
    assert y1 == 40
    assert 50 <= x1 <= 110  # anywhere in the middle of the long one
    assert (x2, y2) == (225, 125)


def test_windows_at_another_stride(tmp_path):
    """A DAT with windows in its first two stages only is no Swin to set beside the last."""
    subject = viewed(config('classifier'), tmp_path)
    cfg = config('classifier')
    cfg.model.backbone.block_patterns = ('LS', 'LS', 'DD', 'DD')
    early = viewed(cfg, tmp_path)
    view = subject.look_at(marked(tmp_path, 'right')[0])
    with pytest.raises(UserError, match='DAT has no window attention at stride 32, where DAT is looked at'):
        pictures.paint_attention(subject, view, [(150, 100)], swin=early)
    # the windows of its own blocks serve
    assert pictures.paint_attention(subject, view, [(150, 100)], swin=subject).shape[2] == 3


def test_classifiers_see_a_part(tmp_path):
    """The middle square of the image, enlarged; queries are pixels of the whole image."""
    subject = viewed(config('classifier'), tmp_path)
    view = subject.look_at(marked(tmp_path, 'right')[0])
    rows, columns = view.shown  # 300 x 200 becomes 108 x 72, and 64 x 64 of it remain
    assert (rows, columns) == (slice(11, 189), slice(61, 239))
    assert default_queries(view, DataSample()) == [(149.5, 99.5)]
    canvas = view.canvas(2 * 178)
    assert canvas.point(61, 11).tolist() == [0.5, 0.5]  # its first pixel, of which two are made
    # centres of the first patch of 32 x 32 of the 64 x 64, and of the canvas of 356 x 356
    x, y = canvas.place(view.placement).from_map(np.array([0, 0]), 32)
    assert (x, y) == pytest.approx((356 / 4 - 0.5, 356 / 4 - 0.5), abs=1.5)
    assert set(PicturePainter(subject)(view.path)) == {'points', 'keys', 'attention'}
    with pytest.raises(UserError, match='query 20 20 lies where the test pipeline crops the image away'):
        pictures.paint_attention(subject, view, [(20, 20)])


def test_rows_of_heads():
    """Whole rows, and each query begins a new one, in its colour."""
    assert [pictures._columns_of_heads(n) for n in (1, 2, 3, 4, 8, 12, 14, 16, 24)] == [
        1,
        2,
        3,
        4,
        4,
        6,
        6,
        4,
        6,
    ]


def test_heads_of_several_queries(detector, tmp_path, monkeypatch):
    path, _ = marked(tmp_path, 'right')
    seen = []
    monkeypatch.setattr(pictures, 'render', lambda rows: seen.extend(rows) or rows)
    monkeypatch.setattr(
        pictures.Keys, 'panel', lambda self, canvas, title, largest, query, colour: (query, colour)
    )
    queries = [(10, 20), (100, 90)]
    pictures.paint_attention(detector, detector.look_at(path), queries, by_head=True)
    *heads, _ = seen  # the last has what the queries see at all
    assert [[query for query, _ in row.panels] for row in heads] == [
        [q] * 4 for q in queries for _ in range(2)
    ]
    assert len({colour for row in heads for _, colour in row.panels}) == 2
    assert [bool(row.legend) for row in heads] == [False, False, False, True]


def test_high_images(tmp_path):
    """A picture of a page, not of ten."""
    cv2.imwrite(str(tmp_path / 'high.png'), np.full((900, 100, 3), 200, np.uint8))
    view = viewed(config('detector'), tmp_path).look_at(str(tmp_path / 'high.png'))
    assert view.canvas(640).image.shape == (1800, 200, 3)
    assert view.canvas(100).image.shape == (900, 100, 3)


def test_letters_of_a_classifier_are_not_enlarged(tmp_path):
    """They are drawn on the panel; from an image of 50 pixels they would come out coarse."""
    cv2.imwrite(str(tmp_path / 'small.png'), np.full((50, 50, 3), 200, np.uint8))
    subject = viewed(config('classifier'), tmp_path)
    view = subject.look_at(str(tmp_path / 'small.png'))
    picture = subject.draw_prediction(view, subject.predict(view), view.canvas(640)).astype(int)
    assert picture.shape == (640, 640, 3)
    letters = picture[:40, :300, 0]
    assert letters.min() < 100  # their background is dark
    assert abs(np.diff(letters, axis=1)).max() > 100  # and their borders are sharp


def test_points_of_dcn_that_lie_upon_each_other():
    """Those of the earlier query are wider, as rings around those of the later."""
    rings = pictures._ring_diameters((4, 4), [(4, 5), (9, 9)]).reshape(3, 3)
    assert rings.tolist() == [[9, 13, 13]] * 3
    assert pictures._ring_diameters((4, 4), [(4, 4), (4, 4)]).tolist() == [17] * 9


def test_segmentors_are_painted(segmentor, tmp_path):
    assert set(PicturePainter(segmentor, predictions=True)(marked(tmp_path, 'right')[0])) == set(
        pictures.KINDS
    )
