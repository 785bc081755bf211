import torch


def assert_same(a, b, name: str = 'end') -> None:
    """Bit for bit."""
    assert type(a) is type(b), name
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f'{name} differs by {(a - b).abs().max()}'
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_same(a[key], b[key], f'{name}.{key}')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), name
        for index, pair in enumerate(zip(a, b)):
            assert_same(*pair, f'{name}.{index}')
    else:
        assert a == b, name
