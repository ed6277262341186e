"""An optimizer's moments as patches."""

import torch
from torch import Tensor

from sublim_interp.analysis.patching.patch import Patch, Piece
from sublim_interp.core.errors import SublimError
from sublim_interp.training.optimizers import all_moments, counting_moments
from sublim_interp.training.recording.trace import Trace


def moments(trace: Trace, step: int = -1, part: str = "") -> Patch:
    """The moments of a recorded training after `step` updates, of the parameters whose name contains `part`.

    For Adam its count of updates comes with them, or the bias correction would be that of a first update. A trace keeps
    moments at few steps; −1 is the last of them. Raises SublimError where it has none, or none of that step or part.
    """
    starts = tuple(f"full/{state}/" for state in all_moments())
    names = [name for name in trace.names("full/*") if name.startswith(starts) and part in name.split("/", 2)[2]]
    if not names:
        of = f" of a parameter with '{part}' in its name" if part else ""
        raise SublimError(f"trace {trace.path} holds no moments{of}; it keeps them of Adam and SGD, within its budget")
    updates = trace.steps(names[0])[step] if step < 0 else step
    pieces = [Piece(name.removeprefix("full/"), trace.read(name, step)) for name in names]
    kept = [piece.site.partition("/") for piece in pieces]
    counted = dict.fromkeys(name for state, _, name in kept if state in counting_moments())
    return Patch((*pieces, *(Piece(f"step/{name}", torch.tensor(float(updates))) for name in counted)))


def moments_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Patch:
    """The moments that an optimizer keeps now. Raises SublimError where it keeps none."""
    pieces = [
        Piece(f"{state}/{name}", value.detach().clone())
        for name, p in model.named_parameters()
        for state, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor)
    ]
    if not pieces:
        raise SublimError(f"{type(optimizer).__name__} keeps no moments of this model's parameters")
    return Patch(tuple(pieces))
