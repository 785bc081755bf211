"""The pages of `docs/`: their links lead somewhere, their Python runs, and their commands can be typed."""

import argparse
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mmdat.engine import load_config

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md'))]
PAGES += sorted(ROOT.glob('configs/[!_]*/README.md'))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in target:
            continue
        path, _, anchor = target.partition('#')
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def test_readme_links_every_page():
    text = (ROOT / 'README.md').read_text()
    missing = [page.name for page in ROOT.glob('docs/*.md') if f'docs/{page.name}' not in text]
    assert not missing


def test_the_backbone_of_the_page_runs():
    page = (ROOT / 'docs/backbone.md').read_text()
    found = {}
    exec(re.search(r'```python\n(.*?)```', page, re.DOTALL)[1], found)
    assert found['backbone'].out_channels == (192, 384, 768)
    assert found['backbone'].out_strides == (8, 16, 32)


def test_the_attention_of_the_page_runs():
    page = (ROOT / 'docs/attention_backends.md').read_text()
    code = re.search(r'```python\n(.*?)```', page, re.DOTALL)[1]
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert re.match('(cpu|reference): ', result.stdout)


# What the shell scripts make of their first arguments: those of the tool, and the number of processes.
SCRIPTS = {
    'dist_train.sh': ('train.py', lambda config, number, *more: [number, config, *more]),
    'dist_test.sh': ('test.py', lambda config, weights, number, *more: [number, config, weights, *more]),
    'slurm_train.sh': (
        'train.py',
        lambda partition, job, config, work, *more: ['1', config, '--work-dir', work, *more],
    ),
}


class ParsedError(BaseException):
    """Carries what a tool has parsed past all that it would do with it."""


def commands(page: Path) -> list[list[str]]:
    """The words of each call of a tool on a page, in blocks of shell and in the text, braces expanded."""
    text = page.read_text()
    blocks = re.findall(r'```(?:bash)?\n(.*?)```', text, re.DOTALL)
    text = re.sub('```.*?```', '', text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    lines += re.findall(r'`([^`]+)`', text)
    calls = [re.search(r'(?:^|[ $;])(?:python|bash) (tools/.*)', line) for line in lines]
    return [
        words
        for call in calls
        if call
        for words in expand(shlex.split(call[1].split(' && ')[0], comments=True))
    ]


def expand(words: list[str]) -> list[list[str]]:
    """One command for each choice of `{a,b}`, of those whose configs exist; all where none does."""
    choices = []
    for word in words:
        parts = [part.split(',') for part in re.split(r'(?<!\$)\{([^}]*)\}', word)]
        parts[::2] = [[','.join(part)] for part in parts[::2]]  # what is not in braces
        choices.append([''.join(chosen) for chosen in itertools.product(*parts)])
    found = [list(chosen) for chosen in itertools.product(*choices)]
    return [command for command in found if not missing_configs(command)] or found


def missing_configs(command: list[str]) -> list[str]:
    names = [word for word in command if re.match(r'configs/[^$*]+\.py$', word) and 'NAME' not in word]
    return [name for name in names if not (ROOT / name).is_file()]


@pytest.fixture
def parse(monkeypatch, capsys):
    """What a tool takes from its arguments, without running it."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(*args, **kwargs):
        raise ParsedError(parse_args(*args, **kwargs))

    def parse(tool: Path, arguments: list[str]) -> argparse.Namespace:
        monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        monkeypatch.setattr(sys, 'argv', [str(tool), *arguments])
        try:
            runpy.run_path(str(tool), run_name='__main__')
        except ParsedError as parsed:
            return parsed.args[0]
        except SystemExit as exit_:
            pytest.fail(f'{tool.name} {" ".join(arguments)}: {exit_.code} {capsys.readouterr().err}')
        pytest.fail(f'{tool.name} parses no arguments')

    return parse


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_can_be_typed(page, parse):
    """Tools, configs, options and settings exist. Words in capitals stand for what a reader puts there."""
    for command in commands(page):
        tool, arguments = ROOT / command[0], command[1:]
        assert tool.is_file(), command
        assert not missing_configs(command), command
        if tool.name in SCRIPTS:
            name, reorder = SCRIPTS[tool.name]
            number, *arguments = reorder(*arguments)
            assert number.isdigit(), command
            tool = ROOT / 'tools' / name
        if tool.suffix != '.py' or '--help' in arguments:
            continue
        args = parse(tool, arguments)
        options = getattr(args, 'cfg_options', None)
        if options and (ROOT / args.config).is_file():
            load_config(str(ROOT / args.config), options)


def test_commands_are_found_in_blocks_and_in_the_text(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(
        'Say `bash tools/a.sh {x,y}_1 8`, or `tools/b.py` alone.\n```bash\n'
        'GPUS=2 bash tools/c.sh "a b" \\\n    --d  # why\nfor n in 1; do\n    python tools/e.py ${n}\n```\n'
    )
    assert commands(page) == [
        ['tools/c.sh', 'a b', '--d'],
        ['tools/e.py', '${n}'],
        ['tools/a.sh', 'x_1', '8'],
        ['tools/a.sh', 'y_1', '8'],
    ]
