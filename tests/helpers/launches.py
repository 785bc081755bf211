"""What Triton tells launches apart by, without a card."""

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature


def compiled(launches) -> list[tuple]:
    """Of each launch the kernel's name, and what it would be compiled for on an H100."""
    backend = make_backend(GPUTarget('cuda', 90, 32))
    found = []
    for one in launches:
        bind = create_function_from_signature(one.kernel.signature, one.kernel.params, backend)
        _, specialization, options = bind(*one.args, **one.options())
        found.append((one.kernel.fn.__name__, specialization, options))
    return found
