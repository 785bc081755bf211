"""The report of `python -m mmdat.check`, in Markdown."""

from collections.abc import Sequence

import torch

from ..analysis.tables import markdown_table
from ..benchmarks.ops import GPU_SHAPES, SHAPES, Shape, benchmark_beside_sdpa
from ..ops.deformable.backends import ladder
from .choices import describe_choices
from .environment import describe_environment
from .sweep import Outcome

MOST_FAILURES = 40  # that are told one by one


def environment_section() -> str:
    rows = [(name, _cell(value)) for name, value in describe_environment()]
    return f'## Environment\n\n{markdown_table(("what", "value"), rows)}'


def choices_section(device: torch.device) -> str:
    columns = ('what', 'size', 'dtypes', 'served by')
    rows = [(*cells, _cell(said)) for *cells, said in describe_choices(device)]
    return f'## What serves on {device}\n\n{markdown_table(columns, rows)}'


def correctness_section(device: torch.device, outcomes: Sequence[Outcome]) -> str:
    """A row for each backend and group of cases, then each failure."""
    groups = {}
    for outcome in outcomes:
        groups.setdefault((outcome.backend, outcome.case.group), []).append(outcome)
    rows = []
    for (backend, group), members in groups.items():
        failed = sum(bool(outcome.failures()) for outcome in members)
        missing = [outcome.not_served for outcome in members if outcome.not_served]
        passed = len(members) - failed - len(missing)
        not_served = f'{len(missing)}: {_cell(missing[0])}' if missing else '0'
        rows.append((backend, group, passed, failed, not_served, *_closest(members)))
    columns = (
        'backend',
        'cases',
        'passed',
        'FAILED',
        'not served',
        'nearest to its limit',
        'error',
        'allowed',
    )
    lines = [f'## Correctness on {device}', '', markdown_table(columns, rows)]
    failures = [
        f'- {outcome.backend}, {outcome.case}: {failure}'
        for outcome in outcomes
        for failure in outcome.failures()
    ]
    if failures:
        lines += ['', f'{len(failures)} failures:', '', *failures[:MOST_FAILURES]]
    if len(failures) > MOST_FAILURES:
        lines.append(f'- and {len(failures) - MOST_FAILURES} more')
    return '\n'.join(lines)


def times_section(device: torch.device, quick: bool) -> str:
    backends = [backend.name for backend in ladder(device.type)]
    dtype = torch.float32
    if device.type == 'cuda':
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    repeats = 3 if quick else 5 if device.type == 'cpu' else 20
    text = benchmark_beside_sdpa(backends, _shapes(device, quick), device, dtype, repeats, compiled=False)
    return f'## Times on {device}\n\n{text}'


def _shapes(device: torch.device, quick: bool) -> tuple[Shape, ...]:
    if device.type == 'cpu':
        return SHAPES[:2] if quick else (*SHAPES[:2], SHAPES[4])
    return GPU_SHAPES[:2] if quick else GPU_SHAPES


def _closest(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    """The finding that comes nearest to its limit, or goes farthest beyond."""
    findings = [finding for outcome in outcomes for finding in outcome.findings if finding.limit]
    if not findings:
        return '', '', ''
    closest = max(findings, key=lambda finding: finding.error / finding.limit)
    return closest.what, f'{closest.error:.1e}', f'{closest.limit:.1e}'


def _cell(text: str) -> str:
    """Text that breaks no table."""
    return ' '.join(str(text).split()).replace('|', '/')
