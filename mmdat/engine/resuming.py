"""Going on with a run: from the newest whole checkpoint of its work directory, and of no other run."""

import ast
import os
import os.path as osp
import re
from collections.abc import Iterator
from glob import escape, glob

from mmengine.config import Config

from ..checkpoint import CheckpointError, read_checkpoint
from ..checkpoint.files import check_whole
from .preflight import PreflightError

# Of a model, what matters at the start or in tests only, or changes no result.
_FREE_SETTINGS = ('init_cfg', 'pretrained', 'test_cfg', 'with_cp')


def resume(cfg: Config, checkpoint: str | None) -> None:
    """Lets a training go on.

    Args:
        cfg: Changed in place: `resume`, `load_from`, and `started_from`, the `load_from` of the first start.
        checkpoint: The file to go on from, whatever run it is of; `'auto'` for the newest whole one of the
            work directory, or a start where there is none; `None` to start anew.

    Raises:
        PreflightError: With `'auto'`, if the work directory holds broken checkpoints only, or a run of
            another config or model, or one that started from other weights.
    """
    starts_from = cfg.get('started_from') if cfg.get('resume') else cfg.get('load_from')
    if checkpoint is None:
        if cfg.get('resume'):
            cfg.resume, cfg.load_from = False, starts_from
        return
    automatic = checkpoint == 'auto'
    if automatic:
        checkpoint, passed_over = find_newest(cfg)
        for reason in passed_over:
            _say(f'passed over: {reason}')
        if checkpoint is None:
            if passed_over:
                raise PreflightError(
                    f'{cfg.work_dir} holds no whole checkpoint to go on from ({"; ".join(passed_over[:3])}): '
                    '--no-resume starts anew, --resume FILE goes on from another'
                )
            return
    if osp.isfile(checkpoint):
        meta = read_checkpoint(checkpoint, lazy=True).get('meta', {})
        if automatic:
            starts_from = _check_run(cfg, checkpoint, meta, starts_from)
        randomness = cfg.get('randomness') or {}
        if randomness.get('seed') is None:
            # MMEngine takes it over too late, when the data are in the order of another
            cfg.randomness = {**randomness, 'seed': meta.get('seed')}
    cfg.resume, cfg.load_from, cfg.started_from = True, checkpoint, starts_from
    _say(f'going on from {checkpoint}; --no-resume starts anew')


def find_newest(cfg: Config) -> tuple[str | None, list[str]]:
    """The newest whole checkpoint of a run.

    That is the file that `last_checkpoint` names, wherever the work directory is by now; and if there is
    none or it is broken, the one that was saved last of those that `CheckpointHook` has named.

    Args:
        cfg: Tells the work directory, and how and where checkpoints are saved.

    Returns:
        The file, or `None`, and a line for everything newer that was passed over.
    """
    folders, patterns = [cfg.work_dir], ['epoch_{}.pth', 'iter_{}.pth']
    for hook in [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]:
        if isinstance(hook, dict) and hook.get('out_dir'):
            folders.append(osp.join(hook.out_dir, osp.basename(osp.abspath(cfg.work_dir))))
        if isinstance(hook, dict) and hook.get('filename_tmpl'):
            patterns.append(hook.filename_tmpl)

    candidates = {path for folder in folders for pattern in patterns for path in _find_files(folder, pattern)}
    named = _read_last_checkpoint(cfg.work_dir, folders)
    reasons = []
    if named is None:
        if candidates:
            reasons.append(f'{osp.join(cfg.work_dir, "last_checkpoint")} is missing or empty')
    elif '://' in named or osp.isdir(named):  # other storage; a folder of DeepSpeed's
        return named, []
    else:
        if (reason := _find_fault(named)) is None:
            return named, []
        reasons.append(reason)

    saved = {path: _saved_at(path) for path in candidates - {named}}
    for path in sorted(saved, key=saved.get, reverse=True):
        if (reason := _find_fault(path)) is None:
            return path, reasons
        reasons.append(reason)
    return None, reasons


def _find_files(folder: str, pattern: str) -> list[str]:
    name = re.compile(re.escape(pattern).replace(r'\{\}', r'\d+'))
    return [path for path in glob(f'{escape(folder)}/*') if name.fullmatch(osp.basename(path))]


def _read_last_checkpoint(work_dir: str, folders: list[str]) -> str | None:
    """The file that MMEngine has noted by an absolute path; in a moved work directory, its name counts."""
    path = osp.join(work_dir, 'last_checkpoint')
    if not osp.isfile(path):
        return None
    with open(path, errors='replace') as file:
        noted = file.read().strip()
    if not noted or '://' in noted:
        return noted or None
    here = [osp.join(folder, osp.basename(noted)) for folder in folders]
    return next((path for path in [*here, noted] if osp.exists(path)), here[0])


def _find_fault(path: str) -> str | None:
    """Why a training cannot go on from a file, or `None`."""
    try:
        check_whole(path)
        read_checkpoint(path, lazy=True)
    except CheckpointError as error:
        return str(error)
    return None


def _saved_at(path: str) -> tuple:
    """Sorts checkpoints by the time in them, which outlives copying; unreadable ones come last."""
    try:
        meta = read_checkpoint(path, lazy=True).get('meta', {})
    except CheckpointError:
        return ('', 0, 0)
    return str(meta.get('time', '')), meta.get('iter', 0), os.stat(path).st_mtime_ns


def _check_run(cfg: Config, checkpoint: str, meta: dict, starts_from: str | None) -> str | None:
    """Compares a run with the one that saved a checkpoint; returns what weights that one started from."""
    advice = (
        f'--no-resume starts anew in {cfg.work_dir}, --work-dir DIR elsewhere, '
        f'`--resume {checkpoint}` goes on all the same'
    )
    recorded_name = re.sub(r'_\d{8}_\d{6}$', '', str(meta.get('experiment_name') or ''))
    name = cfg.get('experiment_name') or osp.splitext(osp.basename(cfg.filename))[0]
    if recorded_name and recorded_name != name:
        raise PreflightError(f'{checkpoint} is of a run of {recorded_name}, not of {name}: {advice}')

    recorded, present = (dict(_settings(text)) for text in (str(meta.get('cfg', '')), cfg.pretty_text))
    if not recorded:
        return starts_from
    if differences := _compare_models(recorded, present):
        raise PreflightError(f'{checkpoint} is of a run of another model, {differences}: {advice}')
    if 'data_format' in present and recorded.get('classes') != present['classes']:
        old, new = (ast.literal_eval(settings.get('classes', '[]')) or [] for settings in (recorded, present))
        other = ', '.join(sorted(set(old) ^ set(new))[:3]) or 'the same in another order'
        raise PreflightError(f'{checkpoint} is of a run on other classes ({other}): {advice}')

    origin = recorded.get('started_from' if recorded.get('resume') == 'True' else 'load_from', 'None')
    origin = ast.literal_eval(origin)
    if starts_from and starts_from != origin and osp.realpath(starts_from) != osp.realpath(str(origin)):
        raise PreflightError(
            f'{checkpoint} is of a run that started {f"from {origin}" if origin else "without load_from"}, '
            f'so load_from={starts_from} would have no effect: {advice}'
        )
    return origin


def _compare_models(recorded: dict[str, str], present: dict[str, str]) -> str:
    """The first differences in `model`, in a line; empty if the weights mean the same."""
    keys = [
        key
        for key in {**present, **recorded}
        if key.startswith('model.') and not set(key.split('.')) & set(_FREE_SETTINGS)
    ]
    changes = [
        f'{key} {recorded.get(key, "unset")} instead of {present.get(key, "unset")}'
        for key in keys
        if recorded.get(key) != present.get(key)
    ]
    more = f' and {len(changes) - 3} more' if len(changes) > 3 else ''
    return ', '.join(changes[:3]) + more


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """The settings in the text of a config, by dotted names, without running it."""
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield from _flatten(statement.value, statement.targets[0].id)


def _flatten(node: ast.expr, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        children = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.Dict):
        children = [(ast.unparse(key).strip("'"), value) for key, value in zip(node.keys, node.values)]
    elif isinstance(node, ast.List) and any(isinstance(child, ast.Call | ast.Dict) for child in node.elts):
        children = enumerate(node.elts)
    else:
        yield name, ast.unparse(node).replace("'SyncBN'", "'BN'")  # which it is on CPUs
        return
    for key, child in children:
        yield from _flatten(child, f'{name}.{key}')


def _say(line: str) -> None:
    if os.environ.get('RANK', '0') == '0':
        print(line)
