"""Whether models began with the same random weights: the audit of step 0, tensor by tensor."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sublim_interp.core.errors import SublimError
from sublim_interp.models.base import resolve_base
from sublim_interp.models.loading import FLOATS, reason_of, weight_files
from sublim_interp.models.open_bases import OPEN_BASES

if TYPE_CHECKING:
    import pandas as pd
    import torch

_CHANCE = 6
"""Standard errors that the correlation of two independent tensors stays within."""

_ALIKE = 0.999
"""Correlation from which two tensors are compared bit by bit."""

_AT_ONCE = 1 << 20
"""Weights of each model that are in float64 at a time."""


def compare_starts(one: Path, other: Path) -> "pd.DataFrame":
    """The weights of two model directories side by side, one row a tensor that is random in both.

    one, other: directories with safetensors weights, as a rule of step 0; later ones show how far they have parted

    Columns: tensor; size, in weights; equal, whether every bit is; correlation, of the weights; chance, the largest
    correlation that independent tensors of this size have. Tensors of one value, such as norms at step 0, are left out.
    Raises SublimError for models of other shapes, and for weights that cannot be read.
    """
    return _compared([one, other])[0, 1]


def start_in_words(rows: "pd.DataFrame") -> str:
    """What `compare_starts` found: "same", "other", or "related" where neither is so."""
    if bool(np.all(rows["equal"])):
        return "same"
    return "other" if bool(np.all(np.abs(rows["correlation"]) <= rows["chance"])) else "related"


def audit(family: str) -> "pd.DataFrame":
    """The members of a family at step 0, every two of them, beside what the catalogue says of them.

    family: a name of the catalogue, or a YAML file of one's own; its members are taken from the hub

    Columns: member, against (an earlier member), said (same or other), found (same, other or related), correlation (the
    largest of any tensor, 1 of equal ones), agrees. A row for each member and each start that earlier members have; of
    a member that has one of these starts, the rows of that one and of the first alone, as the others follow.
    Raises SublimError for what has no step 0, and where the hub does not give it.
    """
    import pandas as pd

    entry = OPEN_BASES.load(family)
    if not entry.members or not entry.step0:
        raise SublimError(f"{entry.name}: no step 0 is known of it, so there is nothing to compare")
    names, members = [*entry.members], [*entry.members.values()]
    compared = _compared([resolve_base(f"{m.hub}@{entry.step0}").path for m in members])
    rows: list[dict[str, Any]] = []
    starts: list[int] = []  # members whose start no earlier one has
    for j, name in enumerate(names):
        found = {i: start_in_words(compared[i, j]) for i in starts}
        if "same" in found.values():
            found = {i: word for i, word in found.items() if i == 0 or word == "same"}
        else:
            starts.append(j)
        for i, word in found.items():
            said = "same" if members[i].initialisation == members[j].initialisation else "other"
            largest = float(np.abs(compared[i, j]["correlation"].to_numpy()).max())
            rows.append({"member": name, "against": names[i], "said": said, "found": word, "correlation": largest})
    return pd.DataFrame(rows).assign(agrees=lambda table: table["said"] == table["found"])


def _compared(directories: Sequence[Path]) -> "dict[tuple[int, int], pd.DataFrame]":
    """What `compare_starts` finds of every two of several directories, by their places (the earlier, the later).

    One tensor of all of them is in memory at a time, never a whole model.
    """
    import pandas as pd

    rows: dict[tuple[int, int], list[Any]] = {pair: [] for pair in combinations(range(len(directories)), 2)}
    models = [_Weights(directory) for directory in directories]
    first = models[0]
    for model in models:
        if model.shapes != first.shapes:
            raise SublimError(
                f"{first.directory} and {model.directory} hold tensors of other names or shapes: they are no two of "
                "one architecture"
            )
    for name, size in ((name, size) for name, shape in first.shapes.items() if (size := math.prod(shape)) > 1):
        flat = {i: model.tensor(name).flatten() for i, model in enumerate(models)}
        flat = {i: t for i, t in flat.items() if t.min() < t.max()}
        chance = min(1.0, _CHANCE / math.sqrt(size))
        for (i, j), correlation in _correlations(flat).items():
            equal = correlation > _ALIKE and bool((flat[i] == flat[j]).all())
            rows[i, j].append((name, size, equal, correlation, chance))
    columns = ["tensor", "size", "equal", "correlation", "chance"]
    return {pair: pd.DataFrame(found, columns=columns) for pair, found in rows.items()}


def _correlations(flat: "Mapping[int, torch.Tensor]") -> dict[tuple[int, int], float]:
    """The correlation of every two of several tensors of one dimension, by their names (the earlier, the later)."""
    import torch

    if len(flat) < 2:
        return {}
    tensors = [*flat.values()]
    means = torch.stack([t.mean(dtype=torch.float64) for t in tensors])[:, None]
    products = torch.zeros(len(tensors), len(tensors), dtype=torch.float64)
    for start in range(0, len(tensors[0]), _AT_ONCE):
        part = torch.stack([t[start : start + _AT_ONCE].double() for t in tensors]) - means
        products += part @ part.T
    spread = products.diagonal().sqrt()
    found = (products / (spread[:, None] * spread)).clamp(-1, 1).tolist()
    return {(i, j): found[a][b] for (a, i), (b, j) in combinations(enumerate(flat), 2)}


class _Weights:
    """The floating-point tensors of a directory's safetensors files, each read when it is asked for.

    Raises SublimError for files that cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        from safetensors import safe_open

        self.directory, self.shapes = directory, dict[str, tuple[int, ...]]()
        self._files: dict[str, Any] = {}
        with self._readable():
            for file in (safe_open(str(path), "pt") for path in weight_files(directory)):
                for name in file.keys():  # noqa: SIM118  # it is no mapping
                    if file.get_slice(name).get_dtype() in FLOATS:
                        self._files[name], self.shapes[name] = file, tuple(file.get_slice(name).get_shape())
        self.shapes = dict(sorted(self.shapes.items()))

    def tensor(self, name: str) -> "torch.Tensor":
        with self._readable():
            return self._files[name].get_tensor(name)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # safetensors raises bare errors of its own
            said = f"{self.directory}: its weights cannot be read as safetensors ({reason_of(error)})"
            raise SublimError(said) from None
