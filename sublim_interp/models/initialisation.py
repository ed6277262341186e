"""Whether two models began with the same random weights: the audit of step 0, tensor by tensor."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import resolve_base
from sublim_interp.models.loading import reason_of, weight_files
from sublim_interp.models.open_bases import OPEN_BASES

if TYPE_CHECKING:
    import pandas as pd

_CHANCE = 6
"""Standard errors that the correlation of two independent tensors stays within."""


def compare_starts(one: Path, other: Path) -> "pd.DataFrame":
    """The weights of two model directories side by side, one row a tensor that is random in both.

    one, other: directories with safetensors weights, as a rule of step 0; later ones show how far they have parted

    Columns: tensor; size, in weights; equal, whether every bit is; correlation, of the weights; chance, the largest
    correlation that independent tensors of this size have. Tensors of one value, such as norms at step 0, are left out.
    Raises SublimError for models of other shapes, and for weights that cannot be read.
    """
    import pandas as pd
    import torch

    a, b = _tensors(one), _tensors(other)
    if {name: t.shape for name, t in a.items()} != {name: t.shape for name, t in b.items()}:
        raise SublimError(
            f"{one} and {other} hold tensors of other names or shapes: they are no two of one architecture"
        )
    rows = []
    for name, x in a.items():
        y, size = b[name], x.numel()
        pair = torch.stack([x.flatten(), y.flatten()]).double()
        if size > 1 and bool((pair.std(1) > 0).all()):
            correlation = float(torch.corrcoef(pair)[0, 1])
            rows.append((name, size, torch.equal(x, y), correlation, min(1.0, _CHANCE / math.sqrt(size))))
    return pd.DataFrame(rows, columns=["tensor", "size", "equal", "correlation", "chance"])


def start_in_words(rows: "pd.DataFrame") -> str:
    """What `compare_starts` found: "same", "other", or "related" where neither is so."""
    if bool(np.all(rows["equal"])):
        return "same"
    return "other" if bool(np.all(np.abs(rows["correlation"]) <= rows["chance"])) else "related"


def audit(family: str) -> "pd.DataFrame":
    """The members of a family at step 0, each against the first, beside what the catalogue says of them.

    family: a name of the catalogue, or a YAML file of one's own; its members are taken from the hub

    Columns: member, against, said (same or other), found (same, other or related), correlation (the largest of any
    tensor, 1 of equal ones), agrees. Raises SublimError for what has no step 0, and where the hub does not give it.
    """
    import pandas as pd

    entry = OPEN_BASES.load(family)
    if not entry.members or not entry.step0:
        raise SublimError(f"{entry.name}: no step 0 is known of it, so there is nothing to compare")
    (first, start), *others = entry.members.items()
    places = {name: resolve_base(f"{m.hub}@{entry.step0}").path for name, m in entry.members.items()}
    rows: list[dict[str, Any]] = []
    for name, member in others:
        compared = compare_starts(places[name], places[first])
        said = "same" if member.initialisation == start.initialisation else "other"
        found = start_in_words(compared)
        largest = float(np.abs(compared["correlation"].to_numpy()).max())
        rows.append({"member": name, "against": first, "said": said, "found": found, "correlation": largest})
    return pd.DataFrame(rows).assign(agrees=lambda table: table["said"] == table["found"])


def _tensors(directory: Path) -> "dict[str, Any]":
    """The floating-point tensors of a directory's safetensors files by name."""
    from safetensors.torch import load_file

    try:
        found = {name: t for file in weight_files(directory) for name, t in load_file(str(file)).items()}
    except Exception as error:  # safetensors raises bare errors of its own
        raise SublimError(f"{directory}: its weights cannot be read as safetensors ({reason_of(error)})") from None
    return {name: t for name, t in sorted(found.items()) if t.is_floating_point()}
