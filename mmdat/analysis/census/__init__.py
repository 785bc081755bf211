"""What a training step costs on a GPU that is not there: kernels, bytes, waits of the host, peak of memory.

`fake_cuda.py` makes tensors without numbers behave as CUDA's do, `counting.py` follows the operators,
`kernels.py` says what each costs, `extensions.py` looks into those that are not PyTorch's, and
`host_reads.py` assumes what losses read. `modules.py` takes the census of a module, `training_step.py` that
of a config, and `tables.py` prints.
"""

from .canvases import batch_size, usual_canvas, worst_canvas
from .counting import Counts, Report
from .modules import build_backbone, count_module
from .training_step import count_training_step

__all__ = [
    'Counts',
    'Report',
    'batch_size',
    'build_backbone',
    'count_module',
    'count_training_step',
    'usual_canvas',
    'worst_canvas',
]
