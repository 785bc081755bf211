"""Files of images: whether they can be used, and why not."""

import mimetypes

import cv2
import numpy as np

# What folders are searched for.
SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')


def explain(error: Exception, paths: list[str]) -> tuple[str, str] | None:
    """The file that made a pipeline of transforms fail, and what is wrong with it, if it is one of these."""
    for path in paths:
        if reason := why_unreadable(path):
            return path, reason
    if isinstance(error, cv2.error) and 'resize' in str(error) and paths:
        return paths[0], 'is too long and narrow: resized, no pixel would be left'
    return None


def why_unreadable(path: str) -> str | None:
    """What is wrong with an image file, to follow its name; `None` if nothing is, or no one can tell."""
    if '://' in path:
        return None
    try:
        with open(path, 'rb') as file:
            content = file.read()
    except OSError as error:
        return f'cannot be read ({error.strerror})'
    if not content:
        return 'is empty'
    if not (mimetypes.guess_type(path)[0] or '').startswith('image/'):
        return None
    if cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) is None:
        return 'is cut short or no image'
    return None


def is_cut_jpeg(path: str) -> bool:
    """Whether a JPEG ends before its end marker. Decoders differ in what they make of such a file."""
    if not path.lower().endswith(('.jpg', '.jpeg')) or '://' in path:
        return False
    try:
        with open(path, 'rb') as file:
            start = file.read(2)
            file.seek(-2, 2)
            if start != b'\xff\xd8' or file.read(2) == b'\xff\xd9':
                return False
            file.seek(0)
            content = file.read()
    except OSError:
        return False  # the pipeline will say so
    # Something may follow the image, and the header may hold a thumbnail with markers of its own
    position = 2
    while content[position : position + 1] == b'\xff' and content[position + 1 : position + 2] != b'\xda':
        position += 2 + int.from_bytes(content[position + 2 : position + 4], 'big')
    return b'\xff\xd9' not in content[position:]
