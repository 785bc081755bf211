"""The safetensors format, as far as weights need it: a JSON header, then the numbers.

Written out because it is a page of code, and MMEngine's users need not have the library.
https://github.com/huggingface/safetensors#format
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
    'I16': torch.int16,
    'I8': torch.int8,
    'U8': torch.uint8,
    'BOOL': torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata.

    Raises:
        ValueError: If the file is damaged, or not of this format.
    """
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if not 2 <= length <= _MAX_HEADER:
            raise ValueError(f'a header of {length} bytes')
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    metadata = dict(header.pop('__metadata__', {}))
    tensors = {}
    for name, entry in header.items():
        dtype, shape, (begin, end) = _DTYPES[entry['dtype']], entry['shape'], entry['data_offsets']
        if not 0 <= begin <= end <= len(data):
            raise ValueError(f'{name} ends at byte {end} of {len(data)}')
        flat = torch.frombuffer(data[begin:end], dtype=dtype) if end > begin else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(shape)
    return tensors, metadata


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes dense tensors of any device."""
    header: dict = {'__metadata__': dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = dict(dtype=_NAMES[tensor.dtype], shape=list(tensor.shape), data_offsets=[begin, end])
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # so that the data are aligned
    with open(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
