"""DAT-T against every installed Swin-T: speed, memory, and where DAT's time goes."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from math import prod

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..analysis.flops import count_complexity
from ..analysis.tables import markdown_table
from ..backbones import DAT
from ..layers import MLP, DeformableAttention, WindowAttention
from .timing import device_name, interleaved_timings, peak_memory

WIDTHS = (96, 192, 384, 768)
DROP_PATH_RATE = 0.2  # of both papers' tiny models
CPU = torch.device('cpu')
PARTS = {
    'window attention': WindowAttention,
    'deformable attention': DeformableAttention,
    'MLP': MLP,
    'norms': nn.LayerNorm,
}


@dataclass(frozen=True)
class Case:
    """Images `(B, 3, H, W)`, the maps that are asked for, and DAT-T's settings."""

    name: str
    shape: tuple[int, int, int, int]
    dense: bool = True
    settings: Mapping = field(default_factory=dict)


CASES = (
    Case('224x224, batch 8, classifier features', (8, 3, 224, 224), dense=False),
    Case('800x1280, batch 1, maps of four stages, stage-3 key stride 2', (1, 3, 800, 1280),
         settings=dict(key_strides=(1, 1, 2, 1))),
    Case('800x1280, batch 1, maps of four stages, stage-3 key stride 1', (1, 3, 800, 1280)),
)  # fmt: skip


def benchmark_backbones(cases: Sequence[Case] = CASES, repeats: int = 7, profile: bool = False) -> str:
    """Compares inference and training step of DAT-T with those of Swin-T on the CPU, all in one process.

    All models end alike: dense models with a layer norm for each stage's map, as contiguous NCHW; classifiers
    with the norm of the last map and its mean. A training step is the forward pass with stochastic depth and
    the backward pass of the outputs' sum.

    Args:
        cases: What to compare.
        repeats: Timed calls of each model.
        profile: Add what the parts of DAT take, each timed by itself on the inputs it gets in the model.

    Returns:
        Markdown: medians with half the inter-quartile range, ratios to the fastest Swin-T, memory beyond the
        weights, and how near DAT comes to the rate of plain matrix products.
    """
    missing = [name for name in SWINS if find_spec(name) is None]
    lines = [
        f'{device_name(CPU)}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, float32, '
        f'medians of {repeats} with half the inter-quartile range, taking turns. Ratios are to the fastest '
        'Swin-T, memory is the peak of a training step beyond the weights.'
    ]
    if missing:
        lines += ['', f'Not installed, so left out: {", ".join(missing)}.']
    for case in cases:
        lines += ['', f'## {case.name}', '', *_compare(case, repeats)]
        if profile:
            lines += ['', *_profile(case, repeats)]
    return '\n'.join(lines)


def _compare(case: Case, repeats: int) -> list[str]:
    models = {'DAT-T': build_dat(case)}
    models |= {f'Swin-T ({name})': build(case) for name, build in SWINS.items() if find_spec(name)}
    image = torch.randn(case.shape)
    steps = {name: partial(train, model, image) for name, model in models.items()}
    inferences = {name: partial(infer, model, image) for name, model in models.items()}
    cells = {name: [name] for name in models}
    for contenders in (inferences, steps):
        timings = interleaved_timings(contenders, repeats)
        base = min((timing.median for name, timing in timings.items() if name != 'DAT-T'), default=torch.nan)
        for name, timing in timings.items():
            cells[name] += [_milliseconds(timing), f'{timing.median / base:.2f}']
        if contenders is inferences:
            dat_seconds = timings['DAT-T'].median
    for name, step in steps.items():
        cells[name].append(f'{peak_memory(step, CPU) / 2**20:.0f} MiB')
    rate = multiply_adds(case) / dat_seconds
    peak = matrix_product_rate(case, repeats)
    columns = ('model', 'inference', 'ratio', 'training step', 'ratio', 'memory')
    return [
        markdown_table(columns, cells.values()),
        '',
        f"DAT's inference does {rate / 1e9:.0f} G multiply-adds a second, {rate / peak:.0%} of the "
        f"{peak / 1e9:.0f} G of plain matrix products in the MLPs' shapes.",
    ]


def _profile(case: Case, repeats: int) -> list[str]:
    model = build_dat(case)
    image = torch.randn(case.shape)
    calls = _calls_of_parts(model, image)
    table = {}
    for column, run in (('inference', infer), ('training step', train)):
        contenders = {'all': partial(run, model, image)}
        contenders |= {part: partial(_run_all, run, calls[part]) for part in PARTS}
        table[column] = interleaved_timings(contenders, repeats)
    rows = {part: [part] for part in (*PARTS, 'the rest')}
    for timings in table.values():
        whole = timings['all'].median
        for part in PARTS:
            rows[part] += [_milliseconds(timings[part]), f'{timings[part].median / whole:.0%}']
        rest = whole - sum(timings[part].median for part in PARTS)
        rows['the rest'] += [f'{rest * 1e3:.0f} ms', f'{rest / whole:.0%}']
    return [markdown_table(('part', 'inference', 'share', 'training step', 'share'), rows.values())]


def _calls_of_parts(model: nn.Module, image: Tensor) -> dict[str, list[tuple[nn.Module, Tensor]]]:
    """Modules of each part with their inputs, leaving out modules inside another part."""
    calls, hooks = defaultdict(list), []
    inner = {m for part in model.modules() if isinstance(part, tuple(PARTS.values())) for m in part.modules()
             if m is not part}  # fmt: skip
    for module in set(model.modules()) - inner:
        for part, kind in PARTS.items():
            if isinstance(module, kind):

                def record(module, args, part=part):
                    calls[part].append((module, args[0].detach()))

                hooks.append(module.register_forward_pre_hook(record))
    infer(model, image)
    for hook in hooks:
        hook.remove()
    return calls


def _run_all(run: Callable[[nn.Module, Tensor], None], calls: Sequence[tuple[nn.Module, Tensor]]) -> None:
    for module, x in calls:
        run(module, x if run is infer else x.requires_grad_())


@torch.no_grad()
def infer(model: nn.Module, x: Tensor) -> None:
    model.eval()
    model.zero_grad(set_to_none=True)
    model(x)


def train(model: nn.Module, x: Tensor) -> None:
    """Forward pass, and backward pass of the outputs' sum."""
    model.train()
    model.zero_grad(set_to_none=True)
    x.grad = None
    outs = model(x)
    sum(out.sum() for out in ([outs] if isinstance(outs, Tensor) else outs)).backward()


def multiply_adds(case: Case) -> int:
    """Of DAT for all images of the case."""
    backbone = dict(type='mmdat.DAT', **_dat_settings(case))
    model = dict(type='ImageClassifier', backbone=backbone)
    cfg = Config(dict(default_scope='mmpretrain', model=model))
    return count_complexity(cfg, case.shape[2:])['backbone'].flops * case.shape[0]


def matrix_product_rate(case: Case, repeats: int) -> float:
    """Multiply-adds a second of float32 matrix products as in the MLPs, into memory that is there already."""
    total, contenders = 0, {}
    for i, width in enumerate(WIDTHS):
        rows = case.shape[0] * prod(-(-size // 2 ** (i + 2)) for size in case.shape[2:])
        x, hidden = (torch.randn(rows, n) for n in (width, 4 * width))
        weight, bias = torch.randn(4 * width, width), torch.randn(4 * width)
        out = torch.empty_like(x)
        contenders[f'expand {i}'] = partial(torch.addmm, bias, x, weight.t(), out=hidden)
        contenders[f'contract {i}'] = partial(torch.mm, hidden, weight, out=out)
        total += 2 * rows * weight.numel()
    with torch.no_grad():
        timings = interleaved_timings(contenders, repeats)
    return total / sum(timing.median for timing in timings.values())


class Outputs(nn.Module):
    """Gives a backbone the common end: norms and NCHW maps of all stages, or the mean of the last map.

    Args:
        maps: Function from the image to channels-last maps without norms.
        dense: All stages.
    """

    def __init__(self, backbone: nn.Module, maps: Callable[[nn.Module, Tensor], list[Tensor]], dense: bool):
        super().__init__()
        self.backbone = backbone
        self.maps = maps
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in (WIDTHS if dense else WIDTHS[-1:]))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.maps(self.backbone, image)[-len(self.norms) :]
        outs = [norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps)]
        return tuple(x.contiguous() for x in outs) if len(outs) > 1 else (outs[0].mean((2, 3)),)


class Mean(nn.Module):
    """The mean of the last map of a backbone that has the norms itself."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> Tensor:
        return self.backbone(image)[-1].mean((2, 3))


def _dat_settings(case: Case, arch: str = 'tiny') -> dict:
    out_indices = (0, 1, 2, 3) if case.dense else (3,)
    settings = case.settings if arch == 'tiny' else {}
    return dict(arch=arch, drop_path_rate=DROP_PATH_RATE, out_indices=out_indices, **settings)


def build_dat(case: Case, arch: str = 'tiny') -> nn.Module:
    model = DAT(**_dat_settings(case, arch))
    return model if case.dense else Mean(model)


def _build_mmdet(case: Case) -> nn.Module:
    from mmdet.models.backbones import SwinTransformer

    out_indices = (0, 1, 2, 3) if case.dense else (3,)
    model = SwinTransformer(drop_path_rate=DROP_PATH_RATE, out_indices=out_indices)
    return model if case.dense else Mean(model)


def _build_torchvision(case: Case) -> nn.Module:
    from torchvision.models import swin_t

    def maps(features: nn.Sequential, x: Tensor) -> list[Tensor]:
        outs = []
        for stem, stage in zip(features[::2], features[1::2]):
            x = stage(stem(x))
            outs.append(x)
        return outs

    return Outputs(swin_t().features, maps, case.dense)  # has this drop path rate


def _build_timm(case: Case) -> nn.Module:
    from timm import create_model

    model = create_model(
        'swin_tiny_patch4_window7_224',
        features_only=True,
        img_size=case.shape[2:],
        drop_path_rate=DROP_PATH_RATE,
    )
    return Outputs(model, lambda model, x: model(x), case.dense)


SWINS = {'mmdet': _build_mmdet, 'torchvision': _build_torchvision, 'timm': _build_timm}


def _milliseconds(timing) -> str:
    return f'{timing.median * 1e3:.0f} ± {timing.spread * 1e3:.0f} ms'
