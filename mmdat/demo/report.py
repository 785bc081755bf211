"""What training brought: python -m mmdat.demo.report BEFORE AFTER (work dirs of tools/test.py)"""

import json
import sys
from pathlib import Path

METRICS = {
    'box AP': 'coco/bbox_mAP',
    'box AP50': 'coco/bbox_mAP_50',
    'mask AP': 'coco/segm_mAP',
    'mask AP50': 'coco/segm_mAP_50',
}


def read_metrics(work_dir: str | Path) -> dict[str, float]:
    """The COCO metrics of the latest test in a work directory.

    CocoMetric leaves them out where a model detects nothing at all; that counts as 0.

    Raises:
        FileNotFoundError: If no test was finished there.
    """
    records = sorted(Path(work_dir).glob('*/*.json'))  # <time stamp>/<time stamp>.json
    if not records:
        raise FileNotFoundError(f'{work_dir} holds no metrics of tools/test.py')
    metrics = json.loads(records[-1].read_text())
    return {name: metrics.get(key, 0.0) for name, key in METRICS.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Metrics as text, a row for each name."""
    width = max(map(len, rows))
    lines = [' ' * width + ''.join(f'{name:>11}' for name in METRICS)]
    for name, metrics in rows.items():
        lines.append(f'{name:{width}}' + ''.join(f'{metrics[key]:11.3f}' for key in METRICS))
    return '\n'.join(lines)


if __name__ == '__main__':
    before, after = map(read_metrics, sys.argv[1:3])
    print(table({'before training': before, 'after training': after}))
