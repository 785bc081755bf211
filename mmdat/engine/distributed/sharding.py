"""Training whose weights, gradients and optimiser state are cut over the processes (FSDP)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.registry import MODELS
from mmengine.utils import apply_to
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ...registry import STRATEGIES
from ..errors import PreflightError


@STRATEGIES.register_module()
class FullyShardedStrategy(DDPStrategy):
    """PyTorch's `fully_shard` (FSDP2) under MMEngine's `FlexibleRunner`, on GPUs and on CPUs over gloo.

    MMEngine's own `FSDPStrategy` wraps the first generation of FSDP, and runs on GPUs only. Here the model
    stays the model, with the names of its weights. Checkpoints are what one process would write, optimiser
    state included: any number of processes resumes them, sharded or not, and `tools/test.py` takes them.

    Only the first process builds the whole model, on the CPU: the others build it without weights and receive
    their shards. Weights on their way to a checkpoint are whole one by one. A checkpoint that is loaded is
    read whole by each process, on the CPU.

    Args:
        units: Names of module classes. Each such module is gathered for its own forward and backward pass;
            what is in none of them stays gathered from the model's forward pass to the end of the backward.
        **kwargs: As for MMEngine's `DDPStrategy`.

    Raises:
        PreflightError: If the model has no module of these classes.
    """

    def __init__(self, *, units: tuple[str, ...] = ('DATBlock',), **kwargs):
        super().__init__(**kwargs)
        self.units = tuple(units)

    def build_model(self, model: dict) -> nn.Module:
        self.model_cfg = copy.deepcopy(model)
        with parameters_on_meta():
            return super().build_model(model)

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        return model  # has none yet

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        units = [module for module in model.modules() if type(module).__name__ in self.units]
        if not units:
            raise PreflightError(f'strategy.units={self.units}: the model has no module of these classes')
        mesh = init_device_mesh(get_device(), (self.world_size,))
        for module in (*reversed(units), model):  # inner ones first
            fully_shard(module, mesh=mesh)
        # `broadcast_from_rank0` gives each process its shards of what the first one holds
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, self._initial_weights(), options=options)
        return model.to(get_device())

    def _initial_weights(self) -> dict[str, Tensor]:
        if self.rank:
            return {}
        with torch.random.fork_rng(devices=[]):  # random numbers of all processes stay in step
            model = MODELS.build(self.model_cfg)
            model.init_weights()
        return dict(model.state_dict())

    def model_state_dict(self) -> dict:
        state_dict = self.model.state_dict()
        for key, value in state_dict.items():  # in place, because it carries metadata
            state_dict[key] = self._gather(value)
        return state_dict

    def optim_state_dict(self) -> dict:
        return apply_to(super().optim_state_dict(), lambda x: isinstance(x, Tensor), self._gather)

    def _gather(self, tensor: Tensor) -> Tensor | None:
        """The whole tensor on the CPU in the first process, nothing in the others; a call for all of them."""
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()
        return tensor.cpu() if self.rank == 0 else None

    def load_model_state_dict(self, state_dict: dict, **kwargs) -> None:
        for key, shards in self.model.state_dict().items():
            if key in state_dict:
                state_dict[key] = _shard_like(shards, state_dict[key])
        super().load_model_state_dict(state_dict, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        groups = self.optim_wrapper.optimizer.param_groups
        for index, parameter in enumerate(parameter for group in groups for parameter in group['params']):
            state = state_dict['state'].get(index, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = _shard_like(parameter, value)
        super().load_optim_state_dict(state_dict)

    def save_checkpoint(self, filename: str, *, save_optimizer: bool = True, **kwargs) -> None:
        """All processes give their shards, the first one writes."""
        if self.rank == 0:
            super().save_checkpoint(filename, save_optimizer=save_optimizer, **kwargs)
            return
        self.model_state_dict()
        if save_optimizer and hasattr(self, 'optim_wrapper'):
            self.optim_state_dict()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are built here have no memory for their parameters.

    Other tensors are as ever: mmdet's anchors, for instance, are neither parameters nor buffers, and would
    stay on the meta device for good.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is registered again stays the same
            parameter = nn.Parameter(parameter.to('meta'), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _shard_like(shards: Tensor, whole: Tensor) -> Tensor:
    """What this process keeps of a tensor that all processes hold, if it is one that is cut."""
    if not isinstance(shards, DTensor) or isinstance(whole, DTensor):
        return whole
    whole = whole.to(shards.device)
    return distribute_tensor(whole, shards.device_mesh, shards.placements, src_data_rank=None)
