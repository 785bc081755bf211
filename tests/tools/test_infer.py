"""`tools/infer.py` for a detector, a segmentor and a classifier."""

import errno
import json
import os
import re

import cv2
import numpy as np
import pytest
import torch
from conftest import DATA, ROOT
from helpers.narrow import narrow
from helpers.predictors import CONFIGS, save_random, small_config, write_image
from mmengine.config import Config

from mmdat.apis import inference, init_model

needs_images = pytest.mark.skipif(not DATA.is_dir(), reason=f'needs the images in {DATA}')
REAL = {
    'detector': DATA / 'coco/val2017',
    'segmentor': DATA / 'camvid/images/validation',
    'classifier': DATA / 'flowers5/val/tulips',
}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Config and checkpoint of each kind."""
    folder = tmp_path_factory.mktemp('models')
    found = {}
    for kind in CONFIGS:
        cfg = small_config(kind)
        cfg.dump(folder / f'{kind}.py')
        found[kind] = str(folder / f'{kind}.py'), save_random(cfg, folder / f'{kind}.pth')
    return found


@pytest.fixture
def infer(folder, run_here, files):
    """Runs the tool; gives the exit code, the output, and what is in `predictions.json`."""

    def infer(kind, *arguments, checkpoint=None):
        config, own = files[kind]
        code, output = run_here(
            'infer.py', config, checkpoint or own, *arguments, '--out', 'out', '--device', 'cpu'
        )
        path = folder / 'out/predictions.json'
        return code, output, json.loads(path.read_text()) if path.exists() else None

    return infer


def names_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}


@needs_images
@pytest.mark.parametrize('kind', CONFIGS)
def test_real_images(folder, infer, files, kind):
    """Files hold what `inference` predicts, and each image has its picture, of its size."""
    paths = sorted(map(str, REAL[kind].iterdir()))[:2]
    code, output, entries = infer(kind, *paths, '--batch-size', '2', '--score-thr', '0')
    assert code == 0, output
    assert '2 images done, 0 failed: out' in output
    stems = [path.rpartition('/')[2].rpartition('.')[0] for path in paths]
    suffix = 'png' if kind == 'segmentor' else 'json'
    pictures = {f'pictures/{stem}.jpg' for stem in stems}
    assert names_below(folder / 'out') == pictures | {f'predictions/{s}.{suffix}' for s in stems} | {
        'predictions.json'
    }
    model = init_model(*files[kind], 'cpu')
    for path, stem, result in zip(paths, stems, inference(model, paths), strict=True):
        pixels, picture = cv2.imread(path), cv2.imread(f'out/pictures/{stem}.jpg')
        assert picture.shape == pixels.shape
        assert abs(picture.astype(int) - pixels).max() > 50
        of_image = [entry for entry in entries if entry['file_name'] == path]
        check = dict(detector=check_objects, segmentor=check_labels, classifier=check_classes)[kind]
        check(of_image, result, pixels.shape[:2])


def check_objects(entries, result, size):
    from pycocotools import mask

    instances = result.pred_instances
    assert len(entries) == len(instances) == 5
    for entry, box, score, pixels in zip(
        entries, instances.bboxes, instances.scores, instances.masks, strict=True
    ):
        left, top, width, height = entry['bbox']
        assert np.allclose([left, top, left + width, top + height], box, atol=0.02)
        assert entry['score'] == pytest.approx(score.item(), abs=1e-5)
        assert entry['segmentation']['size'] == list(size)
        difference = mask.decode(entry['segmentation']) != pixels.numpy()
        assert difference.mean() < 1e-4  # in a batch sums are rounded otherwise
        assert pixels.any()


def check_labels(entries, result, size):
    (entry,) = entries
    labels = cv2.imread(f'out/{entry["label_map"]}', cv2.IMREAD_UNCHANGED)
    assert labels.shape == size == (entry['height'], entry['width'])
    assert np.array_equal(labels, result.pred_sem_seg.data[0] + 1)  # 0 is void in the label files
    counts = np.bincount(labels.ravel())
    assert {c['id']: c['pixels'] for c in entry['classes']} == {i: n for i, n in enumerate(counts) if n}
    names = 'void sky building pole road pavement tree sign fence car pedestrian bicyclist'.split()
    assert all(c['name'] == names[c['id']] for c in entry['classes'])


def check_classes(entries, result, size):
    (entry,) = entries
    scores = [prediction['score'] for prediction in entry['predictions']]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(result.pred_score.max().item(), abs=1e-5)
    assert entry['predictions'][0]['label'] == result.pred_label.item()
    assert sum(scores) == pytest.approx(1, abs=1e-4)


def test_coco_results_are_read_by_pycocotools(folder, infer):
    """They refer to the images and categories of the annotation file of the config."""
    from pycocotools.coco import COCO

    from mmdat.demo.shapes_coco import CATEGORY_IDS

    write_image(folder / 'photos/b.jpg')
    write_image(folder / 'photos/a.jpg', 40, 50)
    annotations = dict(
        images=[
            dict(id=30, file_name='a.jpg', height=40, width=50),
            dict(id=20, file_name='b.jpg', height=60, width=90),
        ],
        categories=[dict(id=id_ + 100, name=name) for name, id_ in CATEGORY_IDS.items()],
        annotations=[],
    )
    (folder / 'annotations').mkdir()
    (folder / 'annotations/instances_val2017.json').write_text(json.dumps(annotations))
    root = f'data_root={folder}/'
    code, output, entries = infer('detector', 'photos', '--no-pictures', '--cfg-options', root)
    assert code == 0, output
    assert names_below(folder / 'out') == {'predictions.json', 'predictions/a.json', 'predictions/b.json'}
    results = COCO('annotations/instances_val2017.json').loadRes('out/predictions.json')
    assert {image: len(results.imgToAnns[image]) for image in (20, 30)} == {20: 5, 30: 5}
    for annotation in results.loadAnns(results.getAnnIds(imgIds=[30])):
        assert results.annToMask(annotation).shape == (40, 50)
        assert CATEGORY_IDS[annotation['category']] + 100 == annotation['category_id']
    assert entries[:5] == json.loads((folder / 'out/predictions/a.json').read_text())


def test_what_fails_is_named_and_the_others_go_on(folder, infer):
    write_image(folder / 'photos/a.jpg')
    write_image(folder / 'others/a.jpg', seed=1)
    write_image(folder / 'photos/narrow.png', 2000, 1)
    (folder / 'photos/b.png').write_text('no image')
    (folder / 'empty').mkdir()
    (folder / 'out/pictures/c.jpg').mkdir(parents=True)
    write_image(folder / 'c.png')
    code, output, entries = infer(
        'detector', 'none.jpg', 'photos', 'empty', 'c.png', 'others', '--batch-size', '9'
    )
    assert code == 1
    errors = [line for line in output.splitlines() if line.startswith('error: ')]
    assert sorted(errors) == [
        'error: c.png: out/pictures/c.jpg cannot be written: Is a directory',
        'error: empty holds no images',
        'error: none.jpg does not exist',
        'error: photos/b.png is cut short or no image',
        'error: photos/narrow.png is too long and narrow: resized, no pixel would be left',
    ]
    assert '2 images done, 5 failed: out' in output
    assert [entry['file_name'] for entry in entries[::5]] == ['photos/a.jpg', 'c.png', 'others/a.jpg']
    pictures = [cv2.imread(f'out/pictures/{name}.jpg').astype(int) for name in ('a', 'a_2')]
    assert abs(pictures[0] - pictures[1]).mean() > 10


def test_top_k(folder, infer):
    write_image(folder / 'a.jpg')
    code, output, entries = infer('classifier', 'a.jpg', '--top-k', '3')
    assert code == 0, output
    assert len(entries[0]['predictions']) == 3
    assert len(infer('classifier', 'a.jpg', '--top-k', '30')[2][0]['predictions']) == 5


def test_configs_that_follow_the_data_take_the_classes_of_the_checkpoint(folder, run_here):
    """Without the data, and without the config that the training left."""
    cfg = Config.fromfile(ROOT / 'configs/custom/classifier_dat_t_folders.py')
    narrow(cfg.model)
    cfg.dump(folder / 'config.py')
    cfg.model.head.num_classes = 3
    checkpoint = save_random(cfg, folder / 'c.pth', dataset_meta=dict(classes=['ash', 'beech', 'oak']))
    write_image(folder / 'a.jpg')
    code, output = run_here('infer.py', 'config.py', checkpoint, 'a.jpg', '--out', 'out', '--device', 'cpu')
    assert code == 0, output
    wrong_shape = ('--out', 'x.pt2', '--shape', '8', '8')  # told when the model stands
    code, output = run_here('export.py', 'config.py', checkpoint, *wrong_shape)
    assert (code, 'images must be at least 32 pixels' in output) == (1, True), output
    (entry,) = json.loads((folder / 'out/predictions.json').read_text())
    assert {guess['name'] for guess in entry['predictions']} == {'ash', 'beech', 'oak'}


def test_an_interrupted_run_loses_nothing(folder, infer, monkeypatch):
    from mmdat.apis.images import Preparation

    for name in 'abcd':
        write_image(folder / f'photos/{name}.jpg')
    call = Preparation.__call__

    def interrupted(self, image):
        if image.endswith('c.jpg'):
            raise KeyboardInterrupt
        return call(self, image)

    monkeypatch.setattr(Preparation, '__call__', interrupted)
    code, output, entries = infer('classifier', 'photos')
    assert code == 130
    assert 'KeyboardInterrupt' not in output
    assert [entry['file_name'] for entry in entries] == ['photos/a.jpg', 'photos/b.jpg']
    names = ('predictions/{}.json', 'pictures/{}.jpg')
    expected = {name.format(letter) for name in names for letter in 'ab'} | {'predictions.json'}
    assert names_below(folder / 'out') == expected


def test_a_full_disk_ends_the_run(folder, infer, monkeypatch):
    for name in 'abc':
        write_image(folder / f'photos/{name}.jpg')
    replace = os.replace

    def full_at_b(source, target):
        if target.endswith('b.json') or (folder / 'out/pictures/a.jpg').exists():
            raise OSError(errno.ENOSPC, 'No space left on device')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', full_at_b)
    code, output, _ = infer('classifier', 'photos')
    assert code == 1
    assert re.findall('error: .*', output) == [
        'error: no room to write out/predictions.json: what lies there already is whole'
    ]
    assert names_below(folder / 'out') == {'predictions/a.json', 'pictures/a.jpg'}


def test_a_batch_that_is_too_large(folder, infer, monkeypatch):
    def no_memory(*args):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB.')

    write_image(folder / 'a.jpg')
    monkeypatch.setattr('mmdat.apis.prediction.pseudo_collate', no_memory)
    code, output, _ = infer('classifier', 'a.jpg', '--batch-size', '7')
    assert code == 1
    assert re.findall('error: .*', output) == [
        'error: no memory for a batch of 7: take a smaller --batch-size'
    ]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.jpg', 'empty'], 'no images to look at: none.jpg does not exist; empty holds no images'),
        (['a.jpg', '--out', 'a.jpg'], 'folder a.jpg cannot be written: File exists'),
    ],
)
def test_before_weights_are_read(folder, run_here, files, arguments, message):
    write_image(folder / 'a.jpg')
    (folder / 'empty').mkdir()
    out = [] if '--out' in arguments else ['--out', 'out']
    code, output = run_here('infer.py', files['classifier'][0], 'none.pth', *arguments, *out)
    assert (code, output) == (1, f'error: {message}\n')
    assert not (folder / 'out').exists()


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (['--batch-size', '0'], 'argument --batch-size: must be at least 1, got 0'),
        (['--score-thr', '30'], 'argument --score-thr: must lie between 0 and 1, got 30'),
        (['--batchsize', '3'], "did you mean '--batch-size'?"),
    ],
)
def test_wrong_options(infer, option, message):
    code, output, _ = infer('classifier', 'a.jpg', *option)
    assert code == 2
    assert message in output
    assert output.count('\n') == 1


def backbone_of(state_dict):
    return {key: value for key, value in state_dict.items() if key.startswith('backbone.')}


def filtered(state_dict):
    """By names, as a hasty script does."""
    for name in [name for name in state_dict if not ('mlp' in name or name.startswith('head.'))]:
        del state_dict[name]
    return state_dict


WRONG = {
    'another task': (
        lambda s: None,
        'holds UperNet, but the model is a classifier; it fits a config of configs/upernet',
    ),
    'a bare tensor': (lambda s: s['head.fc.bias'], 'holds no weights but a Tensor'),
    'no DAT': (
        lambda s: {'layer1.weight': torch.ones(3), 'head.fc.bias': torch.ones(5)},
        'holds no DAT, but layer1',
    ),
    'a backbone': (backbone_of, 'holds a backbone without heads, but the model is a classifier'),
    'filtered': (
        filtered,
        'does not fit the model: 105 missing: backbone.patch_embed',
    ),
    'nothing': (lambda s: {}, 'holds no weights, only nothing'),
}


@pytest.mark.parametrize('case', WRONG)
def test_checkpoints_that_do_not_fit(folder, infer, files, case):
    write_image(folder / 'a.jpg')
    spoil, message = WRONG[case]
    path = folder / 'files/x.pth'
    torch.save(spoil(torch.load(files['classifier'][1])['state_dict']), path)
    checkpoint = files['segmentor'][1] if case == 'another task' else str(path)
    code, output, entries = infer('classifier', 'a.jpg', checkpoint=checkpoint)
    assert code == 1
    (error,) = [line for line in output.splitlines() if line.startswith('error: ')]
    assert message in error
    assert entries is None


def test_options_of_the_docs(run_here):
    code, output = run_here('infer.py', '--help')
    assert code == 0
    named = set(re.findall(r'--[a-z-]+', (ROOT / 'docs/inference.md').read_text()))
    assert named == set(re.findall(r'--[a-z-]+', output)) - {'--help'}


@pytest.mark.parametrize('page', ['README.md', 'docs/inference.md'])
def test_python_of_the_docs(folder, files, monkeypatch, page):
    """The lines as they stand, but for another config and checkpoint."""
    block = re.search(r'```python\n(from mmdat\.apis.*?)```', (ROOT / page).read_text(), re.DOTALL)[1]
    for name in ('a', 'b', 'photo'):
        write_image(folder / f'{name}.jpg')
    replaced = re.sub(r"'mmdat://\w+'", repr(files['detector'][1]), block)
    replaced = re.sub(r"'(mmdat::|configs/)\S+\.py'", repr(files['detector'][0]), replaced)
    assert 'dat_pp' not in replaced
    exec(replaced, names := {})
    result = names['results'][1] if page == 'README.md' else names['result']
    assert len(result.pred_instances) == 5
