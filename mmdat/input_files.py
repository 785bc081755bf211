"""Which images are meant by the names in a command, and what their results are called."""

import os
import os.path as osp
from collections.abc import Iterable, Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from .errors import UserError
from .image_files import SUFFIXES


class Input(NamedTuple):
    """An image file.

    Args:
        path: As it was named, or found.
        name: What its results are called, a relative path without suffix, and unique.
    """

    path: str
    name: str


def find_images(
    names: Iterable[str], recursive: bool = False, but: str | None = None
) -> tuple[list[Input], list[str]]:
    """Looks for images.

    Args:
        names: Files; folders, of which all images are taken, by their suffix; and patterns such as
            `'photos/*.jpg'`, where `**` stands for any folders. An image that is named twice counts once.
        recursive: Whether to take the images of sub-folders, too.
        but: A folder that patterns and `recursive` leave out where it lies deeper than they begin: that of
            results.

    Returns:
        The images, and a line for each name that stands for none.

    Raises:
        UserError: If no name stands for an image.
    """
    found, problems, seen, taken = [], [], set(), set()
    for name in names:
        paths = list(_images_of(name, recursive, but))
        if not paths:
            problems.append(_why_none(name, recursive))
        for path, below in paths:
            if (absolute := osp.abspath(path)) in seen:
                continue
            seen.add(absolute)
            found.append(Input(path, _name_results(below, taken)))
    if not found:
        raise UserError(f'no images to look at: {"; ".join(problems)}')
    return found, problems


def _images_of(name: str, recursive: bool, but: str | None) -> Iterator[tuple[str, str]]:
    """Paths of images, and what follows the folder that was named, or that precedes the wildcards."""
    if osp.isfile(name):
        yield name, osp.basename(name)
    elif osp.isdir(name):
        for folder, folders, files in os.walk(name):
            folders[:] = sorted(
                f for f in folders if recursive and f[0] != '.' and not _is_same(osp.join(folder, f), but)
            )
            for file in sorted(files):
                if _is_image(file):
                    path = osp.join(folder, file)
                    yield path, osp.relpath(path, name)
    elif has_magic(name):
        start = name
        while has_magic(start):
            start = osp.dirname(start)
        start = start or '.'
        but = None if _is_inside(start, but) else but
        for path in sorted(glob(name, recursive=True)):
            # what a link in a folder leads to may lie elsewhere
            if _is_image(path) and osp.isfile(path) and not _is_inside(osp.dirname(path), but):
                yield path, osp.relpath(path, start)


def _is_image(path: str) -> bool:
    return path.lower().endswith(SUFFIXES) and not osp.basename(path).startswith('.')


def _is_same(folder: str, other: str | None) -> bool:
    return other is not None and osp.realpath(folder) == osp.realpath(other)


def _is_inside(folder: str, other: str | None) -> bool:
    return other is not None and Path(osp.realpath(folder)).is_relative_to(osp.realpath(other))


def _why_none(name: str, recursive: bool) -> str:
    if osp.isdir(name):
        deeper = any(True for _ in _images_of(name, True, None))
        hint = ' itself: --recursive takes those of its sub-folders' if deeper and not recursive else ''
        return f'{name} holds no images{hint}'
    return f'{name} matches no images' if has_magic(name) else f'{name} does not exist'


def _name_results(path: str, taken: set[str]) -> str:
    """The path without suffix, or with a number where another has that name, in capitals or not."""
    stem = name = Path(path).with_suffix('').as_posix()
    number = 1
    while name.lower() in taken:
        number += 1
        name = f'{stem}_{number}'
    taken.add(name.lower())
    return name
