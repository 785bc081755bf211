import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from ...registry import MODELS


@MODELS.register_module()
class CPUSyncBN(_BatchNorm):
    """Batch norm over the images of all processes, in place of `torch.nn.SyncBatchNorm`, which refuses CPUs.

    Same parameters, buffers and results. Processes may hold different numbers of values, or none.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f'expected (N, C, ...), got {tuple(x.shape)}')

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, ...)` to the same shape."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, -1)  # channels last
        dims = tuple(range(x.ndim - 1))
        count = values.new_tensor([values[..., 0].numel()])
        sums = all_reduce(torch.cat((values.sum(dims), count)))
        count = sums[-1]
        mean = sums[:-1] / count
        # centred first: differences of large sums would lose digits
        centred = values - mean
        variance = all_reduce(centred.square().sum(dims)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        out = centred * (variance + self.eps).rsqrt()
        if self.affine:
            out = out * self.weight + self.bias
        return out.transpose(1, -1).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased_variance.to(self.running_var), share)
