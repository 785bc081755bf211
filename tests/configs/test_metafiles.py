"""Metafiles name every config, and say nothing that its config contradicts."""

from pathlib import Path

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.fileio import load

from mmdat.released import RELEASED

INDEX = load(ROOT / 'model-index.yml')['Import']
MODELS = [(name, model) for name in INDEX for model in load(ROOT / name)['Models']]
DATASETS = {
    'COCO': 'CocoDataset',
    'ADE20K': 'ADE20KDataset',
    'ImageNet-1K': 'ImageNet',
    'CamVid': 'BaseSegDataset',
    'flowers5': 'CustomDataset',
}
TASKS = {
    'mmdet': {'Object Detection', 'Instance Segmentation'},
    'mmseg': {'Semantic Segmentation'},
    'mmpretrain': {'Image Classification'},
}


def test_index_lists_every_folder():
    assert sorted(INDEX) == sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('configs/[!_]*/metafile.yml'))
    assert {Path(name).parent for name in INDEX} == {
        path.parent.relative_to(ROOT) for path in ROOT.glob('configs/[!_]*/*.py')
    }


def test_every_config_has_one_entry():
    named = [model['Config'] for _, model in MODELS]
    assert sorted(named) == sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('configs/[!_]*/*.py'))
    names = [model['Name'] for _, model in MODELS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('metafile', INDEX)
def test_collections_say_whose_results_these_are(metafile):
    content = load(ROOT / metafile)
    for collection in content['Collections']:
        is_plus = 'DAT++' in collection['Name']
        source = "the authors'" if is_plus else "the paper's"
        results = collection['Metadata']['Results']
        assert results in (source, 'measured here', 'not trained by anyone yet')
        if results == 'not trained by anyone yet':
            models = [m for m in content['Models'] if m['In Collection'] == collection['Name']]
            assert not any('Results' in model for model in models)
        assert collection['Paper']['URL'].endswith('2309.01430' if is_plus else '2201.00520')
    used = {model['In Collection'] for model in content['Models']}
    assert used == {collection['Name'] for collection in content['Collections']}
    for model in content['Models']:
        assert ('DAT++' in model['In Collection']) == ('dat_pp' in model['Config'])


def test_weights_are_the_released_files():
    """Each released file belongs to one config, whose results are the authors' for that file."""
    weights = {model['Weights']: model for _, model in MODELS if 'Weights' in model}
    assert weights.keys() == {release.url for release in RELEASED.values()}
    for release in RELEASED.values():
        metrics = [result['Metrics'] for result in weights[release.url]['Results']]
        values = [value for metric in metrics for value in metric.values()]
        assert values == list(release.results.values()), release.name


@pytest.mark.parametrize(('metafile', 'model'), MODELS, ids=[model['Name'] for _, model in MODELS])
def test_entry_fits_its_config(metafile, model):
    assert Path(model['Config']).parent == Path(metafile).parent
    cfg = Config.fromfile(ROOT / model['Config'])
    for result in model.get('Results', []):
        assert result['Task'] in TASKS[cfg.default_scope]
        assert DATASETS[result['Dataset']] == cfg.test_dataloader.dataset.type
        assert all(0 < value < 100 for value in result['Metrics'].values())
