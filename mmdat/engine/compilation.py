import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ..backbones.dat import DATBlock


@HOOKS.register_module()
class CompileBlocksHook(Hook):
    """Compiles the blocks of `DAT`, one by one, for maps of any size.

    In a graph of the whole model the sizes of later maps are nested expressions of the image's, which keep
    the compiler busy at the second size of an image. A block by itself is compiled once for its stage and
    kind of attention, and once or twice more: for few keys, for other chunks of neighbourhoods.

    Args:
        backend: Of `torch.compile`.
    """

    def __init__(self, backend: str = 'inductor'):
        self.backend = backend

    def before_train(self, runner) -> None:
        limit = torch._dynamo.config.recompile_limit  # for all blocks together, which share their code
        torch._dynamo.config.recompile_limit = max(limit, 64)
        for module in runner.model.modules():
            if isinstance(module, DATBlock):
                module.compile(backend=self.backend, dynamic=True)
