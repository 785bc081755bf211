"""All cases, for all backends of a device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from ..benchmarks.timing import in_one_line
from ..ops.deformable.backends import BACKENDS, ladder
from ..ops.ladder import REFERENCE
from .cases import CAPTURED, CASES, COMPILED, Case, Finding, NotServedError
from .layers import LAYER_CASES


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        backend: Which was looked at.
        case: The case.
        findings: What it found.
        not_served: Why it could not be tried, or an empty string.
        error: What was raised, or an empty string.
    """

    backend: str
    case: Case
    findings: Sequence[Finding] = field(default_factory=tuple)
    not_served: str = ''
    error: str = ''

    def failures(self) -> list[str]:
        """What is wrong, in words."""
        failures = [str(finding) for finding in self.findings if not finding.is_fine()]
        return [self.error, *failures] if self.error else failures


def sweep(device: torch.device, quick: bool = False) -> Iterator[Outcome]:
    """Looks at all backends of a device.

    Args:
        device: Where they compute.
        quick: Leave out what is slow: compiling.
    """
    cases = [*CASES, *(() if quick else [COMPILED['inductor']])]
    backends = [backend.name for backend in ladder(device.type)]
    for backend in (REFERENCE, *backends):
        for case in cases:
            if backend != REFERENCE or case.of_equations:
                yield _outcome(case, backend, device)
        if backend != REFERENCE and BACKENDS[backend].device_type == 'cuda':
            yield _outcome(CAPTURED, backend, device)
    for names, layer_cases in LAYER_CASES.items():
        for backend in names:
            for case in layer_cases:
                yield _outcome(case, backend, device)


def _outcome(case: Case, backend: str, device: torch.device) -> Outcome:
    try:
        return Outcome(backend, case, case(backend, device))
    except NotServedError as error:
        return Outcome(backend, case, not_served=str(error))
    except torch.OutOfMemoryError:
        return Outcome(backend, case, not_served='there is not enough memory')
    except Exception as error:  # the others shall be looked at all the same
        return Outcome(backend, case, error=in_one_line(error))
