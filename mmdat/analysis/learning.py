"""Training curves of the configs in `configs/learning`, several seeds each: to run, to read and to draw."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from .tables import markdown_table

NETWORKS = {'dat': 'DAT', 'swin': 'Swin'}


@dataclass(frozen=True)
class Task:
    """A data set to learn: the metric that is followed, as logged and as printed, and the unit of time."""

    metric: str
    label: str
    time: str


TASKS = {
    'flowers5': Task('accuracy/top1', 'top-1 accuracy', 'epoch'),
    'camvid': Task('mIoU', 'mIoU', 'iteration'),
}

Curve = list[tuple[int, float]]


def run(train_tool: Path, data: Path, work_dirs: Path, seeds: Iterable[int]) -> None:
    """Trains every network on every task with every seed, one after the other; finished runs are kept.

    Args:
        train_tool: `tools/train.py`, beside which `configs/` is found.
        data: Folder of the data sets, which are named as the tasks.
        work_dirs: Where the runs go, as `TASK_NETWORK/seedN`.
        seeds: Random seeds.
    """
    for seed in seeds:
        for task in TASKS:
            for network in NETWORKS:
                work_dir = work_dirs / f'{task}_{network}' / f'seed{seed}'
                if (work_dir / 'finished').exists():
                    continue
                config = train_tool.parents[1] / f'configs/learning/{task}_{network}.py'
                options = [f'data_root={data / task}', f'randomness.seed={seed}']
                command = [
                    train_tool,
                    config,
                    '--work-dir',
                    work_dir,
                    '--no-resume',
                    '--cfg-options',
                    *options,
                ]
                subprocess.run([sys.executable, *map(str, command)], check=True)
                (work_dir / 'finished').touch()


def read_curve(work_dir: Path, metric: str) -> Curve:
    """The values of a metric in the latest run of a work directory, with their steps."""
    log = max(work_dir.glob('*/vis_data/scalars.json'))
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [(entry['step'], entry[metric]) for entry in entries if metric in entry]


def read_curves(work_dirs: Path) -> dict[tuple[str, str], list[Curve]]:
    """The curves of all seeds, by task and network."""
    return {
        (task, network): [
            read_curve(folder, TASKS[task].metric)
            for folder in sorted((work_dirs / f'{task}_{network}').glob('seed*'))
        ]
        for task in TASKS
        for network in NETWORKS
    }


def to_markdown(curves: Mapping[tuple[str, str], list[Curve]]) -> str:
    """Where the curves end, in percent: each seed, the mean, and from the lowest to the highest."""
    rows = []
    for (task, network), seeds in curves.items():
        ends = [curve[-1][1] for curve in seeds]
        each = ', '.join(f'{end:.1f}' for end in ends)
        spread = f'{min(ends):.1f} to {max(ends):.1f}'
        rows.append((f'{task}, {TASKS[task].label}', NETWORKS[network], each, f'{mean(ends):.1f}', spread))
    return markdown_table(('task', 'network', 'each seed', 'mean', 'spread'), rows)


def draw(curves: Mapping[tuple[str, str], list[Curve]], path: Path) -> None:
    """Draws the means over the seeds, in bands from the lowest to the highest, a panel for each task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout='constrained')
    panels = dict(zip(TASKS, figure.subplots(1, len(TASKS))))
    for (task, network), seeds in curves.items():
        steps = [step for step, _ in seeds[0]]
        values = [[value for _, value in curve] for curve in seeds]
        at_steps = list(zip(*values, strict=True))
        panel = panels[task]
        panel.plot(steps, [mean(v) for v in at_steps], label=f'narrow {NETWORKS[network]}')
        panel.fill_between(steps, [min(v) for v in at_steps], [max(v) for v in at_steps], alpha=0.2)
        panel.set(title=task, xlabel=TASKS[task].time, ylabel=f'{TASKS[task].label}, percent', ylim=(0, None))
    for panel in panels.values():
        panel.grid(alpha=0.3)
        panel.legend(loc='lower right')
    figure.savefig(path, dpi=110)
