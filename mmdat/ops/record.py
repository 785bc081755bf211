import json
import logging
import os
from contextlib import suppress
from typing import Any

from filelock import FileLock, Timeout

from .native.build import cache_folder

PATIENCE = 10  # seconds, for another process that writes

_logger = logging.getLogger('mmdat')


class Record:
    """Small values by key, in a JSON file of the folder of compiled kernels, which several processes share.

    It is written beside and renamed, so a reader finds all of it or what was there before. A file that cannot
    be read counts as empty, and one that cannot be written is no error: what was to be kept is found out
    again.
    """

    def __init__(self, name: str):
        self._path = cache_folder() / f'{name}.json'

    def get(self, key: str) -> Any:
        """The value, or `None` if there is none."""
        return self._read().get(key)

    def put(self, key: str, value: Any) -> None:
        """Adds a value to those that are in the file by now."""
        part = self._path.with_suffix(f'.{os.getpid()}.part')
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix('.lock'), timeout=PATIENCE):
                part.write_text(json.dumps(self._read() | {key: value}, indent=1, sort_keys=True))
                part.replace(self._path)
        except (OSError, NotImplementedError, Timeout) as error:  # the second where files cannot be locked
            _logger.warning(f'{self._path} cannot be written, so the next run finds it out again: {error}')
            with suppress(OSError):
                part.unlink()

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}
