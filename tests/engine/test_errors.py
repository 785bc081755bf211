import pytest
from mmengine.registry import MODELS
from mmengine.runner import BaseLoop

from mmdat.engine import PreflightError, in_one_line, run_tool


class Loop(BaseLoop):
    def __init__(self):
        pass

    def run(self):
        raise ValueError('in the middle')


def test_errors_of_a_run_pass_as_they_are():
    with pytest.raises(ValueError, match='in the middle'), in_one_line('model'):
        Loop().run()
    with (
        pytest.raises(PreflightError, match=r'^model: in the middle; MMDAT_TRACEBACK=1'),
        in_one_line('model'),
    ):
        raise ValueError('in the middle')


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (KeyError('by_epoch'), "x: KeyError: 'by_epoch';"),
        (ValueError('a\n  b'), 'x: a b;'),
        (ValueError('y' * 9000), f'x: {"y" * 500} ...;'),
        (
            TypeError('class `FPN` in mmdet/fpn.py: no'),
            'x: TypeError: no;',
        ),  # as upstream's MMEngine words it
        (AttributeError("'ConfigDict' object has no attribute 'lr'"), "x: the config has no 'lr' where"),
        (FileNotFoundError(2, 'No such file', 'a.json'), 'x: a.json does not exist;'),
    ],
)
def test_wording(error, message):
    with pytest.raises(PreflightError) as refused, in_one_line('x'):
        raise error
    assert str(refused.value).startswith(message)
    assert '\n' not in str(refused.value)
    assert refused.value.__cause__ is error


def test_the_place_is_found_among_parts_of_one_type():
    part = dict(heads=[dict(type='mmdat.DAT', arch='tiny'), dict(type='mmdat.DAT', arch='tini')])
    place = r"^model\.heads\.1 \(DAT\): .*'tini', did you mean 'tiny'"
    with pytest.raises(PreflightError, match=place), in_one_line('model', part):
        MODELS.build(part['heads'][1])


@pytest.mark.parametrize(
    ('part', 'message'),
    [
        (dict(type='mmdat.DAT', arch='tini'), "^DAT: unknown arch 'tini'"),
        (dict(type='mmdat.DATT'), "^type='mmdat.DATT' is unknown to .*, did you mean 'mmdat.DAT'"),
        (dict(type='ImgDataPreprocessor', means=1), "^ImgDataPreprocessor has no setting 'means', .*'mean'"),
    ],
)
def test_without_a_place(part, message):
    with pytest.raises(PreflightError, match=message), in_one_line():
        MODELS.build(part)


@pytest.mark.parametrize(
    ('variables', 'lines'),
    [
        ({}, 1),
        ({'RANK': '8', 'LOCAL_RANK': '0'}, 1),  # the first process of another machine
        ({'RANK': '9', 'LOCAL_RANK': '1'}, 0),
        ({'SLURM_LOCALID': '3'}, 0),
    ],
)
def test_one_process_of_a_machine_speaks(monkeypatch, capsys, variables, lines):
    def main():
        raise PreflightError('no data')

    for name in ('RANK', 'LOCAL_RANK', 'SLURM_LOCALID'):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        run_tool(main)
    assert exit_.value.code == 1
    assert capsys.readouterr().err == 'error: no data\n' * lines
