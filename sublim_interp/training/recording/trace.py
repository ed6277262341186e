"""The trace of a training on disk and back: append-only safetensors shards and a manifest. What goes in: recorder.py.

    trace.jsonl                  first line: what the trace is of, names of its axes; then one line for each whole shard
    <sort>-<step>.safetensors    tensors [step, …] of the steps that its line lists

Where the first line tells `lengths` of rows, tensors [example, position, …] lie there unpadded, [step, token, …].
Where it tells `kept` places of each row as well, only these lie there: the trace was cut from a larger one.
A line is appended after its shard is whole, so a trace opens while it is written, and after a kill at any byte. No line
holds a time or a path: equal trainings leave equal bytes. Other files of the directory are nobody's business here.
"""

import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import one_line, read_regular, write_atomic
from sublim_interp.core.keys import canonical_json, digest_file
from sublim_interp.core.showing import Card, Shown
from sublim_interp.models.chat import Chat
from sublim_interp.models.forward import in_single

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

MANIFEST = "trace.jsonl"
VERSION = 1
CUT_VERSION = 2
"""Of a trace that was cut, which a reader of version 1 would misread."""

_SYNC_BYTES = 16 << 20
"""Shards are forced to disk when so many bytes have piled up: a sync for every shard costs more than the recording."""
_SORTS = r"series|norms|moments|state|probe|full|examples|hooks\d+|reference-.+"
_LOOK = re.compile(r"probe|state|full|hooks\d+")
"""Sorts of shards that hold a look at the probe or at the weights; all others hold series, examples or other models."""
_BUDGET = "weight-sized tensors are kept within a budget, recording.weight_bytes"
_SHARD = re.compile(rf"({_SORTS})-\d{{8}}\.(safetensors|writing)")
"""Names of the files that a trace leaves beside its manifest: no other file is ever removed."""


def _line(entry: Mapping[str, Any]) -> str:
    text = canonical_json(dict(entry))
    return f'{text[:-1]},"crc":{zlib.crc32(text.encode())}}}\n'


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a manifest; a last line that was cut is left out, an altered one is named."""
    try:
        pieces = read_regular(path).split(b"\n")
    except OSError as error:
        raise SublimError(f"{path} cannot be read: {error.strerror}; a trace is a directory with {MANIFEST}") from None
    entries = []
    for number, piece in enumerate(pieces[:-1]):  # what follows the last line break is cut, or empty
        try:
            entry = json.loads(piece)
            whole = zlib.crc32(canonical_json({k: v for k, v in entry.items() if k != "crc"}).encode()) == entry["crc"]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError, SublimError):
            whole, entry = False, {}
        if not whole:
            raise SublimError(f"{path}: line {number + 1} is altered")
        entries.append(entry)
    return entries


class Writer:
    """Appends shards to a trace. `upto` is the number of updates after which it goes on: what lies later is dropped.

    What an earlier trace left in the directory goes, files that are not a trace's stay.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], upto: int = 0) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        about = {**about, "trace": CUT_VERSION if "cut" in about else VERSION}
        kept = [e for e in _shards_of(path, about) if e["upto"] <= upto] if upto else []
        again = (path / MANIFEST).exists()  # the first thing that a trace writes: without it no file is a trace's
        write_atomic(path / MANIFEST, "".join(map(_line, [about, *kept])))
        names = {e["file"] for e in kept}
        for other in path.iterdir() if again else ():
            if other.name not in names and _SHARD.fullmatch(other.name) and other.is_file():
                other.unlink()
        self._unsynced: list[Path] = []
        self._bytes = 0

    def append(self, sort: str, steps: Sequence[int], upto: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes tensors [step, …] as one shard; `upto` is the number of updates that it needs to have seen."""
        final = self.path / f"{sort}-{steps[0]:08d}.safetensors"
        partial = final.with_suffix(".writing")
        save_file({name: t.detach().contiguous().cpu() for name, t in tensors.items()}, str(partial))
        size = partial.stat().st_size
        entry = {
            "file": final.name,
            "bytes": size,
            "sha256": digest_file(partial),
            "sort": sort,
            "steps": list(steps),
            "upto": upto,
            "names": sorted(tensors),
        }
        partial.replace(final)
        self._unsynced.append(final)
        self._bytes += size
        if self._bytes >= _SYNC_BYTES:
            self._sync_shards()
        with (self.path / MANIFEST).open("a", encoding="utf-8") as file:
            file.write(_line(entry))

    def _sync_shards(self) -> None:
        for path in self._unsynced:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._unsynced, self._bytes = [], 0

    def sync(self) -> None:
        """Forces everything to disk: a state of the training kept after this finds its trace whole."""
        self._sync_shards()
        with (self.path / MANIFEST).open("rb") as file:
            os.fsync(file.fileno())


def _shards_of(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of the whole shards of an earlier writing of the same trace; none where it is another."""
    try:
        trace = Trace.open(path)
    except SublimError:
        return []
    same = canonical_json(trace.about) == canonical_json(dict(about)) and not trace.verify()
    return list(trace.shards) if same else []


def reaches(path: Path, about: Mapping[str, Any], upto: int) -> bool:
    """Whether the trace `about` at `path` is whole up to an update, so that a training can go on from there."""
    return any(e["sort"] == "series" and e["upto"] == upto for e in _shards_of(path, {"trace": VERSION, **about}))


@dataclass(frozen=True, repr=False)
class Trace(Shown):
    """A trace that can be read, as it was when it was opened: `trace.read("blocks.2.hook_resid_post", step=-1)`.

    Step t is the state after t updates; in a series, step t is update t, the first being 0.
    """

    path: Path
    about: dict[str, Any] = field(repr=False)
    """What was recorded: axes, parameters, probe, directions."""
    shards: tuple[dict[str, Any], ...] = field(repr=False)
    chat: Chat | None = field(default=None, repr=False, compare=False)
    """Whose tokenizer tells the probe's tokens as text; None where no base is known."""

    @classmethod
    def open(cls, path: Path | str) -> "Trace":
        """The trace in a directory, up to its last whole shard.

        Raises SublimError where there is none, and names a line or a shard that is missing or altered though later
        ones are whole. Of shards only the sizes are looked at here: one that was altered at equal size is named by
        `verify` alone, and `read` gives what it holds.
        """
        path = Path(path)
        entries = _read_lines(path / MANIFEST)
        if not entries or entries[0].get("trace") not in (VERSION, CUT_VERSION):
            raise SublimError(f"{path / MANIFEST} is not the manifest of a trace of version {VERSION} or {CUT_VERSION}")
        about = {k: v for k, v in entries[0].items() if k != "crc"}
        shards = [{k: v for k, v in e.items() if k != "crc"} for e in entries[1:]]
        whole = [_size(path / e["file"]) == e["bytes"] for e in shards]
        while whole and not whole[-1]:
            whole.pop()
        if not all(whole):
            e = shards[whole.index(False)]
            found = _size(path / e["file"])
            raise SublimError(
                f"trace {path}: shard {e['file']} is {'missing' if found is None else 'altered'} "
                f"({found or 0} of {e['bytes']} bytes), though later shards are whole"
            )
        return cls(path, about, tuple(shards[: len(whole)]))

    def card(self) -> Card:
        losses = self._places.get("loss", {})
        facts = {"": f"{len(losses)} updates" if losses else "no series", "names": len(self._places), "in": self.path}
        facts |= {"cut": "from a larger one"} if "cut" in self.about else {}
        return Card("Trace", facts, self.frame)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row a name that can be read: name, steps (how many), first, last."""
        import pandas as pd

        rows = [(name, len(steps), min(steps), max(steps)) for name, steps in sorted(self._places.items())]
        return pd.DataFrame(rows, columns=["name", "steps", "first", "last"])

    @property
    def tokens(self) -> list[list[str]]:
        """The tokens of each row of the probe: as text where the base is known, else their ids."""
        rows = (self.about.get("probe") or {}).get("rows", [])
        return [self.chat.tokens(row) if self.chat else [str(i) for i in row] for row in rows]

    def verify(self) -> list[str]:
        """One line for each shard whose bytes are not those that were written."""
        return [
            f"{e['file']} is altered"
            for e in self.shards
            if _size(self.path / e["file"]) is None or digest_file(self.path / e["file"]) != e["sha256"]
        ]

    @cached_property
    def _places(self) -> dict[str, dict[int, tuple[str, int]]]:
        """Name → step → (file, row)."""
        places: dict[str, dict[int, tuple[str, int]]] = {}
        for entry in self.shards:
            for name in entry["names"]:
                own = places.setdefault(name, {})
                own.update({step: (entry["file"], row) for row, step in enumerate(entry["steps"])})
        return places

    def names(self, pattern: str = "*") -> list[str]:
        """Every name that can be read, or those that match a glob such as `blocks.2.*`."""
        return sorted(name for name in self._places if fnmatchcase(name, pattern))

    def require(self, pattern: str) -> list[str]:
        """The names on disk of what a glob matches, other names of it included; SublimError where there is nothing."""
        own = {*self.names(pattern), *(own for other, own in self._others.items() if fnmatchcase(other, pattern))}
        if not own:
            budget = f"{_BUDGET}; " if pattern.startswith("full/") else ""
            raise SublimError(
                f"trace {self.path} holds nothing called '{pattern}'; {budget}trace.names() lists the rest"
            )
        return sorted(own)

    @cached_property
    def _others(self) -> dict[str, str]:
        """What else `read` knows: tied tensors, and the stream before a layer. By each such name, the one on disk."""
        tied = {
            f"{stem}{other}": name
            for other, first in self.about.get("tied", {}).items()
            for name in self._places
            if name.endswith(f"/{first}") and (stem := name.removesuffix(first))
        }
        before = {}
        for name in self._places:
            owner, blocks, rest = name.partition("blocks.")
            layer, post, ending = rest.partition(".hook_resid_post")
            if blocks and post and layer.isdigit():
                before[f"{owner}blocks.{int(layer) + 1}.hook_resid_pre{ending}"] = name
        return {**tied, **before}

    def steps(self, name: str) -> list[int]:
        """The steps at which `name` was recorded, ascending."""
        return sorted(self._places[self._stored(name)])

    def _stored(self, name: str) -> str:
        """The name under which `name` is on disk."""
        if name in self._places:
            return name
        if name in self._others:
            return self._others[name]
        kept = f"{_BUDGET}; " if name.startswith("full/") else ""
        known = meant(name, self.names(), "trace.names()", "it holds")
        raise SublimError(f"trace {self.path} holds no '{name}'; {kept}{known}")

    def read(self, name: str, step: int = -1) -> Tensor:
        """One tensor of one step: for a hook name [example, position, d_model], of the probe's right-padded rows.

        `step` is a recorded step, or counts from the end where it is negative. Only the asked bytes are read. Raises
        SublimError for a name or step that is not there, and for a shard that cannot be read.
        """
        stored = self._stored(name)
        places = self._places[stored]
        steps = sorted(places)
        if step < 0:
            step = steps[step] if -step <= len(steps) else step
        if step not in places:
            shown = ", ".join(map(str, steps if len(steps) < 20 else [*steps[:10], "…", *steps[-5:]]))
            raise SublimError(f"trace {self.path}: '{name}' was not recorded at step {step}; its steps: {shown}")
        file, row = places[step]
        return self._padded(stored, self._slice(file, stored, row))

    def cut(
        self,
        to: Path | str,
        names: str | Sequence[str] = "*",
        positions: Sequence[int] = (),
        steps: Sequence[int] = (),
        overwrite: bool = False,
    ) -> "Trace":
        """A smaller trace of the same training, to hand on. This one is left as it is.

        to: a directory for it, new or empty
        names: what stays, by glob. With a name stays what the untouched base showed there
        positions: of the probe's rows, from the first token (0, 1, …) or the last (-1, …); none given: all. What was
            cut away reads as NaN. Attention patterns and single examples stay whole
        steps: at which steps the looks at the probe and at the weights stay, negative ones from the end; none given:
            all. Series stay whole, and so does what was seen of other models
        overwrite: whether a trace that lies there goes

        Raises SublimError for a directory that holds anything else, a glob, step or position that fits nothing, and a
        shard that is altered. Nothing half-made is left.
        """
        to = Path(to).absolute()
        if to == self.path.absolute() or self.path.absolute() in to.parents:
            raise SublimError(f"{to} is this trace's own directory; a trace is cut into another one")
        holds = to.exists() and (not to.is_dir() or any(to.iterdir()))
        if holds and not (overwrite and (to / MANIFEST).is_file()):
            raise SublimError(f"{to} is there already; name a new directory, or give overwrite=True for a trace")
        globs = [names] if isinstance(names, str) else list(names)
        if not globs:
            raise SublimError("names is empty; give globs of what stays, or leave it out for everything")
        stays = {stored for glob in globs for stored in self.require(glob)}
        stays |= {f"base/{name}" for name in stays} & self._places.keys()
        looks = sorted({step for e in self.shards if _LOOK.fullmatch(e["sort"]) for step in e["steps"]})
        some = {looks[step] if -len(looks) <= step < 0 else step for step in steps} or set(looks)
        if unseen := sorted(some - set(looks)):
            there = ", ".join(map(str, looks)) or "none"
            raise SublimError(f"trace {self.path}: no look at step {unseen[0]}; there is: {there}")
        how = {"names": globs, "positions": list(positions), "steps": sorted(some)}
        about = {**self.about, "cut": how}  # so no training takes it for its own and goes on from it
        places = None
        if positions:
            about["kept"], places = self._chosen(positions)
        if altered := self.verify():
            raise SublimError(f"trace {self.path}: {altered[0]}, so nothing is cut from it")
        with one_line(f"a trace is not cut into {to}", place=("directory for it", "`to`", "")):
            to.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{to.name}-", suffix=".partial", dir=to.parent))
            try:
                self._copy(Writer(partial, about), stays, some, places)
                if holds:
                    shutil.rmtree(to)
                partial.chmod(0o755)
                partial.replace(to)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return replace(Trace.open(to), chat=self.chat)

    def _copy(self, writer: Writer, stays: Set[str], looks: Set[int], places: list[int] | None) -> None:
        """Writes what stays: these names, the looks at these steps, and of the probe's tokens those at these places."""
        for entry in self.shards:
            look = _LOOK.fullmatch(entry["sort"])
            rows = [i for i, step in enumerate(entry["steps"]) if not look or step in looks]
            own: list[str] = [name for name in entry["names"] if name in stays]
            if rows and own:
                tensors = {name: self._slice(entry["file"], name, slice(None), as_stored=True)[rows] for name in own}
                if places is not None:
                    tensors |= {n: t[:, places] for n, t in tensors.items() if self._is_of_tokens(n)}
                writer.append(entry["sort"], [entry["steps"][i] for i in rows], entry["upto"], tensors)
        writer.sync()

    def _chosen(self, positions: Sequence[int]) -> tuple[list[list[int]], list[int]]:
        """(the places of each row that are meant and there, the same among all tokens that lie on disk)."""
        lengths = self.about.get("lengths")
        if not lengths:
            raise SublimError(f"trace {self.path} has no rows of a probe, so no positions can be chosen")
        before = self.about.get("kept") or [list(range(length)) for length in lengths]
        for p in positions:
            if not any((p + n if p < 0 else p) in own for own, n in zip(before, lengths, strict=True)):
                known = "it was cut before" if self.about.get("kept") else f"rows have {max(lengths)} at most"
                raise SublimError(f"trace {self.path}: no row has a position {p}; {known}")
        wanted = [{p + n if p < 0 else p for p in positions} for n in lengths]
        kept = [[p for p in own if p in some] for own, some in zip(before, wanted, strict=True)]
        tokens = [(row, p) for row, own in enumerate(before) for p in own]
        return kept, [i for i, (row, p) in enumerate(tokens) if p in kept[row]]

    def _is_of_tokens(self, name: str) -> bool:
        """Whether a tensor lies on disk as [step, token, …]."""
        return bool(self.about.get("lengths")) and self._dims(name)[:2] == ["example", "position"]

    def _padded(self, name: str, value: Tensor) -> Tensor:
        """[token, …] of rows that lie one after another as [example, position, …].

        Zero where a row has ended, and NaN where a position was cut away.
        """
        if not self._is_of_tokens(name):
            return value
        lengths = self.about["lengths"]
        rows = value.new_zeros(len(lengths) * max(lengths), *value.shape[1:])
        if self.about.get("kept"):
            rows.index_fill_(0, self._places_of([list(range(length)) for length in lengths]), float("nan"))
        rows.index_copy_(0, self._tokens, value)
        return rearrange(rows, "(example position) ... -> example position ...", example=len(lengths))

    @cached_property
    def _tokens(self) -> Int[Tensor, " token"]:
        """Where each token of rows that lie one after another is among all positions of the padded rows."""
        return self._places_of(self.about.get("kept") or [list(range(length)) for length in self.about["lengths"]])

    def _places_of(self, rows: Sequence[Sequence[int]]) -> Int[Tensor, " token"]:
        """Where positions of each row are among all positions of the padded rows."""
        widest = max(self.about["lengths"])
        return torch.tensor([row * widest + p for row, own in enumerate(rows) for p in own], dtype=torch.long)

    @cached_property
    def _opened(self) -> dict[str, Any]:
        """Shards that have been read, mapped into memory, by file."""
        return {}

    def _slice(self, file: str, name: str, row: int | slice, as_stored: bool = False) -> Tensor:
        try:
            if file not in self._opened:  # opening a shard costs more than reading one layer of one step from it
                self._opened[file] = safe_open(str(self.path / file), "pt")
            value = self._opened[file].get_slice(name)[row]
        except (SafetensorError, OSError) as error:
            raise SublimError(f"trace {self.path}: shard {file} is altered or missing ({error})") from None
        return in_single(value) if value.is_floating_point() and not as_stored else value

    def _all(self, name: str) -> tuple[list[int], Tensor]:
        """(steps, tensor [step, …]) of a name; SublimError where the shape changes from step to step."""
        stored = self._stored(name)
        pieces, steps = [], []
        for entry in self.shards:
            if stored in entry["names"]:
                pieces.append(self._slice(entry["file"], stored, slice(None)))
                steps += entry["steps"]
        if len({p.shape[1:] for p in pieces}) > 1:
            raise SublimError(f"trace {self.path}: '{name}' has another shape at other steps; read them one by one")
        whole, order = torch.cat(pieces), sorted(range(len(steps)), key=steps.__getitem__)
        rows = self._padded(stored, rearrange(whole[order], "step ... -> ... step"))
        return [steps[i] for i in order], rearrange(rows, "... step -> step ...")

    def _dims(self, name: str) -> list[str]:
        """Names of the axes behind the step: the first pattern in the manifest that fits."""
        return next((list(dims) for pattern, dims in self.about["dims"] if fnmatchcase(name, pattern)), [])

    def series(self, name: str) -> "pd.DataFrame":
        """A quantity over steps, such as `loss` or `update_norm`: one row a step, one column for each parameter."""
        import pandas as pd

        steps, values = self._all(name)
        if values.ndim > 2:
            raise SublimError(f"'{name}' has {list(values.shape[1:])} numbers at each step; use read or xarray")
        dims = self._dims(name)
        table = values.reshape(len(steps), -1).numpy()
        labels = self.about["coords"].get(dims[0]) if dims else [name]
        if not labels or len(labels) != table.shape[1]:
            labels = range(table.shape[1])
        columns = pd.Index(labels, name=dims[0] if dims else None)
        return pd.DataFrame(table, index=pd.Index(steps, name="step"), columns=columns)

    def xarray(self, name: str) -> "xr.DataArray":
        """All steps of a name with named axes: [step, example, position, d_model] for a hook name."""
        import xarray as xr

        steps, values = self._all(name)
        dims = self._dims(name) or [f"axis_{i}" for i in range(values.ndim - 1)]
        coords: dict[str, Any] = {"step": steps}
        for axis, size in zip(dims, values.shape[1:], strict=True):
            labels = self.about["coords"].get(axis)
            if labels and len(labels) == size:
                coords[axis] = labels
        if dims[:2] == ["example", "position"] and self.tokens:
            widest = max(map(len, self.tokens))
            coords["token"] = (["example", "position"], [[*row, *[""] * (widest - len(row))] for row in self.tokens])
        return xr.DataArray(values.float().numpy(), dims=["step", *dims], coords=coords, name=name)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
