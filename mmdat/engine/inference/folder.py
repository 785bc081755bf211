import json
import os
import os.path as osp
import tempfile
from contextlib import suppress

import cv2
import numpy as np

from ...errors import UserError
from ..saving import NO_ROOM

PICTURES, PREDICTIONS = 'pictures', 'predictions'


class ResultFolder:
    """A folder in which each file is whole or not there, whenever its writer is stopped.

    Args:
        path: The folder, which is made.

    Raises:
        UserError: If it cannot be made, or nothing can be written into it.
    """

    def __init__(self, path: str):
        self.path = path
        try:
            os.makedirs(path, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise UserError(f'folder {path} cannot be written: {error.strerror}') from error

    def write_json(self, name: str, content: list[dict]) -> None:
        """Writes a list, one entry a line."""
        lines = ',\n'.join(map(json.dumps, content))
        self._write(f'{name}.json', (f'[\n{lines}\n]\n' if content else '[]\n').encode())

    def write_picture(self, name: str, picture: np.ndarray) -> None:
        """Writes a picture in BGR, or a label map; `name` ends in the suffix of its format."""
        _, content = cv2.imencode(osp.splitext(name)[1], picture)
        self._write(name, content.tobytes())

    def _write(self, name: str, content: bytes) -> None:
        path = osp.join(self.path, name)
        part = f'{path}.{os.getpid()}.part'
        try:
            os.makedirs(osp.dirname(path), exist_ok=True)
            with open(part, 'wb') as file:
                file.write(content)
            os.replace(part, path)
        except OSError as error:
            with suppress(OSError):
                os.remove(part)
            if error.errno in NO_ROOM:
                raise UserError(f'no room to write {path}: what lies there already is whole') from error
            raise ResultError(f'{path} cannot be written: {error.strerror}') from error


class ResultError(UserError):
    """A result that cannot be written, where others still may."""
