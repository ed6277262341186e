"""An optimizer's moments from one student to another: kept after the last update, and put in before the first."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sublim_interp.analysis.patching.moments import moments_of
from sublim_interp.analysis.patching.patch import Patch, Piece
from sublim_interp.core.store import Store
from sublim_interp.pipeline.records import Student
from sublim_interp.training.optimizers import planned_moments

FILE = "moments.safetensors"
"""What a student keeps that is asked to keep its moments: `{state}/{parameter}`, beside its model."""


@contextmanager
def keeping(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """A block around all updates of a training: what the optimizer keeps after the last of them goes into a file."""
    yield
    save_file({piece.site: piece.value.contiguous() for piece in moments_of(model, optimizer)}, str(path))


def beginning(
    student: Student, store: Store, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> AbstractContextManager[None]:
    """A block in which the optimizer goes on from the moments of the students that a student begins with.

    The number of updates comes with the first moment: both students made as many.
    """
    o = student.config.optimization
    pieces = []
    donors = (student.first, student.second)
    for number, (state, donor) in enumerate(zip(planned_moments(o.optimizer, o), donors, strict=False)):
        assert donor
        kept = load_file(str(donor.made(store) / FILE))
        wanted = (f"{state}/", "step/") if number == 0 else (f"{state}/",)
        pieces += [Piece(site, value) for site, value in kept.items() if site.startswith(wanted)]
    return Patch(tuple(pieces)).on(model, optimizer)
