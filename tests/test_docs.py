"""The pages of `docs/`: their links lead somewhere, and their Python runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

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
