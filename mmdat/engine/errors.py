"""What a user can mend, said in one line."""

import inspect
import linecache
import os.path as osp
import re
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmengine.registry.build_functions import build_from_cfg
from mmengine.runner import BaseLoop

from ..errors import UserError
from ..spelling import did_you_mean
from .saving import NO_ROOM

_TRACEBACK = 'MMDAT_TRACEBACK=1 shows the traceback'
_LONGEST = 500  # MMEngine quotes whole configs
_SAY_ENOUGH = (ValueError, RuntimeError, AssertionError, OSError, ImportError)
_UNEXPECTED = re.compile(r"got an unexpected keyword argument '(\w+)'")
_NO_ATTRIBUTE = re.compile(r"'(?:ConfigDict|Config)' object has no attribute '(\w+)'")
_UPSTREAM = re.compile(r'^(class `\w+` in \S+: ["\']?)+')  # how upstream's MMEngine starts each message


class PreflightError(UserError, RuntimeError):
    """A run that cannot succeed."""


def walk(node: Any, name: str) -> Iterator[tuple[str, dict]]:
    """All dicts in a part of a config, the part included, with their dotted names."""
    if isinstance(node, dict):
        yield name, node
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from walk(child, f'{name}.{key}')


@contextmanager
def in_one_line(name: str = '', part: Any = None) -> Iterator[None]:
    """Turns what the libraries raise over a bad setting into a `PreflightError`.

    Once a loop of MMEngine runs, that is in the middle of a training or a test, errors pass as they are.

    Args:
        name: Dotted name of what is read or built here.
        part: Its part of the config. Of an error below it the message names the place.

    Raises:
        PreflightError: With one line, and the original error as its cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = list(walk_tb(error.__traceback__))
        no_room = isinstance(error, OSError) and error.errno in NO_ROOM  # no matter of settings
        if no_room or any(_is_loop(frame) for frame, _ in frames):
            raise
        raise PreflightError(_describe(error, frames, name, part)) from error


def _is_loop(frame: FrameType) -> bool:
    return frame.f_code.co_name == 'run' and isinstance(frame.f_locals.get('self'), BaseLoop)


def _describe(error: Exception, frames: list[tuple[FrameType, int]], name: str, part: Any) -> str:
    """The line: where, what, and how to see more."""
    built = next((f.f_locals for f, _ in reversed(frames) if f.f_code is build_from_cfg.__code__), {})
    node, kind, cls = (built.get(key) for key in ('cfg', 'obj_type', 'obj_cls'))
    name = _locate(node, name, part)
    if isinstance(kind, str) and cls is None and isinstance(error, KeyError | RuntimeError):
        return unknown_type(name, kind, built['registry'])
    where, what = _place_in_config(error, frames) or name, f'{_message(error, frames)}; {_TRACEBACK}'
    if built and not isinstance(node, dict):
        what = f'a part of it must be a dict with its type, got {node!r}'
    elif inspect.isclass(cls) and (unexpected := _UNEXPECTED.search(str(error))):
        hint = did_you_mean(unexpected[1], arguments(cls)[0])
        what = f'{cls.__name__} has no setting {unexpected[1]!r}{hint}'
    elif inspect.isclass(cls):
        where = f'{where} ({cls.__name__})' if where else cls.__name__
    return f'{where}: {what}' if where else what


def _locate(built: Any, name: str, part: Any) -> str:
    """The dotted name of what was being built, which is a copy of a dict in the part."""
    if not isinstance(built, dict):
        return name
    same_type = [(path, node) for path, node in walk(part, name) if node.get('type') == built.get('type')]
    for path, node in same_type:
        # models add settings to the dicts of their parts
        if all(key in built and built[key] == value for key, value in node.items()):
            return path
    return same_type[0][0] if len(same_type) == 1 else name


def unknown_type(name: str, kind: str, registry: Registry) -> str:
    """The message for a type that is in no registry."""
    root = registry
    while root.parent is not None:
        root = root.parent
    names = [*registry.module_dict, *root.module_dict]
    for child in root.children.values():
        names += [f'{child.scope}.{name}' for name in (*child.module_dict, *root.module_dict)]
    where = f'{name}.type' if name else 'type'
    return f'{where}={kind!r} is unknown to {registry.scope}{did_you_mean(kind, names)}'


def arguments(cls: type) -> tuple[list[str], set[str], bool]:
    """What a class takes: all names, those that it needs, and whether it may take others.

    Names that it passes on to its bases by `**kwargs` are among the first.
    """
    known, required = [], None
    for base in cls.__mro__[:-1]:
        if '__init__' not in vars(base):
            continue
        try:
            own = list(inspect.signature(vars(base)['__init__']).parameters.values())[1:]
        except ValueError:  # written in C
            break
        named = [p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        known += [p.name for p in named]
        if required is None:
            required = {p.name for p in named if p.default is p.empty}
        if all(p.kind != p.VAR_KEYWORD for p in own):
            return known, required, False
    return known, required or set(), True


def _place_in_config(error: Exception, frames: list[tuple[FrameType, int]]) -> str:
    """File, and line where there is one, of an error in reading a config."""
    readers = [frame for frame, _ in frames if frame.f_code.co_filename == inspect.getfile(Config)]
    files = [frame.f_locals['filename'] for frame in readers if 'filename' in frame.f_locals]
    if files and isinstance(error, SyntaxError) and error.lineno:
        return f'{osp.relpath(files[-1])}, line {error.lineno}'
    found = [file for file in files if osp.exists(file)]
    is_missing = isinstance(error, FileNotFoundError) and len(found) < len(files)
    look_up = inspect.unwrap(Config._get_cfg_path).__code__  # `hub.py` wraps it
    if found and (is_missing or any(frame.f_code is look_up for frame in readers)):
        return f'_base_ of {osp.relpath(found[-1])}'
    for frame, line in reversed(frames):
        if frame.f_code.co_name == '<module>':
            return f'{osp.relpath(frame.f_code.co_filename)}, line {line}'
    return ''


def _message(error: Exception, frames: list[tuple[FrameType, int]]) -> str:
    if isinstance(error, SyntaxError):
        return f'{error.msg}: {(error.text or "").strip()}'
    if isinstance(error, FileNotFoundError) and error.filename:
        return f'{error.filename} does not exist'
    text = _UPSTREAM.sub('', ' '.join(str(error).split()))
    if len(text) > _LONGEST:
        text = f'{text[:_LONGEST]} ...'
    if missing := _NO_ATTRIBUTE.fullmatch(text):
        return f'the config has no {missing[1]!r} where one is needed'
    if isinstance(error, AssertionError) and not text:
        return failed_line(frames)
    return text if isinstance(error, _SAY_ENOUGH) and text else f'{type(error).__name__}: {text}'


def failed_line(frames: list[tuple[FrameType, int]]) -> str:
    """The line of code that raised, for assertions without a message."""
    frame, line = frames[-1]
    path = frame.f_code.co_filename
    return f'{linecache.getline(path, line).strip()} ({osp.basename(path)}, line {line})'
