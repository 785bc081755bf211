"""What Triton's compiler makes of the kernels of deformable attention, for cards that need not be here.

Triton brings NVIDIA's assembler and disassembler. Registers and spills are what these report. Instructions
are counted in the hot loop, the innermost one with the most tensor-core instructions, for 32 pairs of a query
and a key of a head: one for each lane of a warp. That is evidence of what was compiled; nothing runs.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..ops.triton import sampling
from ..ops.triton.launch import Launch, launches
from ..ops.triton.tiles import Case, heads_at_once
from .tables import markdown_table

# Of a program, in bytes, by compute capability: CUDA C++ Programming Guide, table of technical specifications
SHARED_MEMORY = {(8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}

_CLASSES = {
    'tensor cores': r'[HIQBD]?G?MMA|UTC\w*MMA|LDT|STT|UTCBAR|UTCATOMSWS',
    'float': r'F(FMA|ADD|MUL|MNMX|SEL|SETP|SET|SWZADD)|H(FMA|ADD|MUL|MNMX|SET|SETP)',
    'rounding': r'F2F|F2I|I2F|FRND|I2FP',
    'exponential': r'MUFU',
    'global memory': r'LD[GC]?$|LDGSTS|LDGDEPBAR|DEPBAR|ULDC|LDCU|ST[G]?$|RED|ATOM|UTMA',
    'shared memory': r'LDS|STS|LDSM|STSM|ATOMS',
    'spills': r'LDL|STL',
    'between lanes': r'SHFL|MOVM',
    'waits': r'BAR|SYNCS|WARPSYNC|BSSY|BSYNC|NOP|FENCE|WARPGROUP|MEMBAR|ERRBAR|CCTL|YIELD|ELECT|ACQBULK',
    'branches': r'BRA|EXIT|CALL|RET',
}


class Compiled(NamedTuple):
    """One kernel for one card.

    Attributes:
        shared_memory: In bytes.
        spilled: Stores to and loads from the stack, in the whole kernel.
        instructions: Of a warp in the hot loop, by class, for 32 pairs; empty for kernels without one.
        opcodes: All its instructions, counted by name.
    """

    launch: Launch
    registers: int
    shared_memory: int
    spilled: tuple[int, int]
    instructions: dict[str, float]
    opcodes: Counter[str]

    @property
    def name(self) -> str:
        return self.launch.kernel.fn.__name__.removesuffix('_kernel')

    @property
    def total(self) -> float:
        return sum(self.instructions.values())


def compile_launch(launch: Launch, capability: tuple[int, int]) -> Compiled:
    """Compiles a kernel as it is launched, for a card of any kind."""
    kernel, constants = launch.kernel, launch.constants
    names = kernel.arg_names
    signature = {name: 'constexpr' for name in constants} | launch.signature()
    pointers = [name for name, type in signature.items() if type.startswith('*')]
    source = ASTSource(
        kernel,
        {name: signature[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [['tt.divisibility', 16]] for name in pointers},
    )
    target = GPUTarget('cuda', capability[0] * 10 + capability[1], 32)
    options = dict(num_warps=launch.warps, num_stages=launch.stages)
    built = triton.compile(source, target=target, options=options)
    usage, text = _disassembled(built.asm['cubin'])
    instructions, loops = _parsed(text)
    count = Counter(instructions)
    hot = max(loops, key=lambda loop: (_tensor(instructions[slice(*loop)]), loop[1] - loop[0]), default=None)
    pairs = constants.get('HEADS', 1) * constants.get('ROWS', 0) * constants.get('COLUMNS', 0)
    pairs *= constants.get('KEYS', 0)
    mix = Counter(map(_class, instructions[slice(*hot)])) if hot and pairs else {}
    return Compiled(
        launch,
        int(re.search(r'REG:(\d+)', usage).group(1)),
        built.metadata.shared,
        (count['STL'], count['LDL']),
        {name: number * 32 * launch.warps / pairs for name, number in mix.items()},
        count,
    )


def compile_case(case: Case) -> Iterator[Compiled]:
    """All kernels of both passes with their default tiles, each once."""
    seen = set()
    for launch in launches(case):
        if launch.kernel not in seen:
            seen.add(launch.kernel)
            yield compile_launch(launch, case.capability)


def default_cases(capability: tuple[int, int]) -> list[Case]:
    """What the default tiles are for: one of each. Larger tables than 27 x 27 take the same kernels."""

    def case(dtype=torch.bfloat16, head_dims=32, table=27, heads_of_a_group=2) -> Case:
        heads = heads_at_once(dtype, head_dims, heads_of_a_group)
        return Case(capability, dtype, head_dims, (table, table), heads, 'ieee')

    return [
        case(),
        case(table=13),
        case(heads_of_a_group=3),
        case(head_dims=16),
        case(head_dims=64),
        case(head_dims=128),
        case(torch.float16),
        case(torch.float32, head_dims=16),
        case(torch.float32),
        case(torch.float32, head_dims=64),
        case(torch.float32, head_dims=128),
    ]


def table_of_cases(cases: list[Case]) -> str:
    """One row for each kernel of each case that has a hot loop, as Markdown."""
    rows = []
    for case in cases:
        for kernel in compile_case(case):
            if not kernel.instructions:
                continue
            constants = kernel.launch.constants
            tile = [constants[name] for name in ('ROWS', 'COLUMNS', 'KEYS')]
            mix = sorted(kernel.instructions.items(), key=lambda item: -item[1])
            rows.append(
                (
                    'sm_{}{}'.format(*case.capability),
                    kernel.name,
                    description(case),
                    f'{"x".join(map(str, tile))}, {kernel.launch.warps}, {kernel.launch.stages}',
                    kernel.registers,
                    '{} / {}'.format(*kernel.spilled),
                    f'{kernel.shared_memory / 1024:.0f}',
                    f'{kernel.total:.1f}',
                    ', '.join(f'{name} {number:.1f}' for name, number in mix if number >= 0.05),
                )
            )
    columns = (
        *('card', 'kernel', 'dtype, head, table, heads at once', 'tile, warps, stages', 'registers'),
        *('spilled stores / loads', 'shared memory, KiB', 'instructions', 'of which'),
    )
    return markdown_table(columns, rows)


# Under autocast, with a network in half precision, and in float32.
SAMPLING_CASES = (
    sampling.Case(torch.float32, torch.bfloat16, 128),
    sampling.Case(torch.bfloat16, torch.bfloat16, 128),
    sampling.Case(torch.float32, torch.float32, 128),
)


def table_of_sampling(capabilities: list[tuple[int, int]]) -> str:
    """One row for each kernel of `SAMPLING_CASES` on each card, as Markdown."""
    rows = [
        (
            'sm_{}{}'.format(*capability),
            kernel.name,
            *(_spoken(dtype) for dtype in case[:2]),
            case.channels,
            kernel.registers,
            '{} / {}'.format(*kernel.spilled),
            f'{kernel.shared_memory / 1024:.0f}',
        )
        for capability in capabilities
        for case in SAMPLING_CASES
        for kernel in (compile_launch(launch, capability) for launch in sampling.launches(case))
    ]
    columns = (
        *('card', 'kernel', 'features', 'result', 'channels of a group', 'registers'),
        *('spilled stores / loads', 'shared memory, KiB'),
    )
    return markdown_table(columns, rows)


def description(case: Case) -> str:
    return '{}, {}, {} x {}, {}'.format(_spoken(case.dtype), case.head_dims, *case.table_size, case.heads)


def _spoken(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def versions() -> str:
    assembler = triton.knobs.nvidia.ptxas.version
    return f'Triton {triton.__version__}, ptxas {assembler}, PyTorch {torch.__version__}'


def _disassembled(cubin: bytes) -> tuple[str, str]:
    """Resources, and instructions, as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'kernel.cubin')
        path.write_bytes(cubin)
        commands = [
            (triton.knobs.nvidia.cuobjdump.path, '-res-usage', path),
            (triton.knobs.nvidia.nvdisasm.path, '-c', path),
        ]
        return tuple(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in commands
        )


def _parsed(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Names of instructions without their modifiers, and innermost loops as ranges of these."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := re.match(r'\s*(\.L_x_\d+):', line):
            labels[label.group(1)] = len(instructions)
        if found := re.match(r'\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([\w]+)(.*);', line):
            instructions.append(found.group(1))
            target = re.search(r'`\((\.L_x_\d+)\)', found.group(2))
            if found.group(1) == 'BRA' and target and target.group(1) in labels:
                loops.append((labels[target.group(1)], len(instructions)))
    inner = [
        loop
        for loop in loops
        if not any(
            other != loop
            and other[0] >= loop[0]
            and other[1] <= loop[1]
            and _tensor(instructions[slice(*other)])
            for other in loops
        )
    ]
    return instructions, inner


def _tensor(instructions: list[str]) -> int:
    return sum(_class(name) == 'tensor cores' for name in instructions)


def _class(name: str) -> str:
    for found, pattern in _CLASSES.items():
        if re.match(pattern, name):
            return found
    return 'integer'
