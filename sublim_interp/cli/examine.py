"""Examines a set-up: versions, cores, memory and what fits into it, bases, the store's health. It mends nothing.

Every examination is on its own: one that fails for whatever reason is itself a finding, never an exception.
"""

import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sublim_interp.core.cards import does_not_fit, room_of
from sublim_interp.core.device import check_computable, compute_device, is_out_of_memory
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from sublim_interp.models.base import Base

GIB = 1 << 30
FULL = 20
"""Bytes a parameter while all weights train: float32 weights 4, gradients 4, Adam's two moments 8, and what is taken
between; 19.4 were measured on a model of 60 million parameters, its checkpoints included."""
READ = 14
"""Bytes a parameter where the weights do not train (adapters, a prompt, a vector): while a student is evaluated it, its
base and its teacher are in memory, 4 each; 14.1 were measured."""
PROCESS = GIB
"""Bytes a process needs besides: Python and PyTorch about half, activations of short texts the rest."""
WORD = 12_900
"""Bytes for each word of a base's vocabulary: logits, log-probabilities and gradient of a third of a student's update,
43 answers of 25 tokens, in float32; 12,940 were measured. A few architectures compute them at every position."""
LITTLE_SPACE = 2 * GIB
"""Free bytes of the store's disk below which a warning is due: a run of the lab's owl takes a third of it."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    topic: str
    text: str
    well: bool = True
    """False: something is wrong or missing."""
    advice: str = ""
    """What to do about it."""


def examine(root: Path | None = None, bases: tuple[str, ...] = ()) -> list[Finding]:
    """Every finding, good and bad, about this machine, the store at `root` (else as `Store.open`), and models.

    Nothing is written but two temporary files in the store, if it exists. Each of `bases` is loaded and tried out. No
    exception leaves this function: what cannot be examined is a finding.
    """
    examinations: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("pytorch", _pytorch),
        ("gpu", _gpus),
        ("cores", _cores),
        ("memory", _memory),
        ("lab", _lab),
        *((f"base {name}", lambda name=name: _base(name)) for name in bases),
        ("store", lambda: _store(root)),
    ]
    found = []
    for topic, examination in examinations:
        try:
            found += examination()
        except SublimError as error:
            found.append(Finding(topic, str(error), False))
        except Exception as error:  # a broken installation raises anything; it is to be told, not to end the tour
            if is_out_of_memory(error):
                found.append(Finding(topic, does_not_fit("it"), False, "take a smaller model, or SUBLIM_DEVICE=cpu"))
                continue
            found.append(Finding(topic, f"cannot be examined ({type(error).__name__}: {_first_line(error)})", False))
    return found


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _python() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Finding]:
    """Whether every declared package is there in a version that is asked for."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in importlib.metadata.requires("sublim-interp") or ()]
    except importlib.metadata.PackageNotFoundError:
        advice = "pip install -e . in the clone"
        yield Finding("packages", "sublim-interp is imported but not installed, so no versions are known", True, advice)
        return
    wrong = 0
    for need in declared:
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue  # of an extra, or of another system
        try:
            have = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            have = ""
        if not have or not need.specifier.contains(have, prereleases=True):
            wrong += 1
            said = f"{need.name} is {have or 'missing'}, needed: {need.specifier}"
            yield Finding("packages", said, False, f"pip install '{need.name}{need.specifier}'")
    if not wrong:
        yield Finding("packages", f"all {len(declared)} requirements of sublim-interp that apply here are met")


def _pytorch() -> Iterator[Finding]:
    import torch
    import transformers

    from sublim_interp.core.device import fingerprint

    here = fingerprint()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    yield Finding("pytorch", f"{versions}, {here['capability']}")
    yield Finding("fingerprint", f"{here['cpu']}, {here['platform']}; equal fingerprints promise equal bits")
    if _has_bfloat16("cpu"):
        yield Finding("bfloat16", "this processor computes in it: dtype=autocast is faster for models of 100 M or more")
    else:
        yield Finding("bfloat16", "this processor does not compute in it: dtype=float32 only, unless on a GPU")


def _has_bfloat16(device: str) -> bool:
    try:
        check_computable("autocast", device)
    except SublimError:
        return False
    return True


def _gpus() -> Iterator[Finding]:
    """Each GPU: what of it is free, whether it computes in bfloat16, and which models fit."""
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(cards)}
    if torch.backends.mps.is_available():
        names["mps"] = "the GPU of this Mac"
    chosen = compute_device()
    for place, name in names.items():
        kind, unused = place.partition(":")[0], chosen not in (place, place.partition(":")[0])
        half = f"{'computes' if _has_bfloat16(place) else 'does not compute'} in bfloat16"
        here = f"--device {kind}, or SUBLIM_DEVICE={kind}, puts all stages there" if unused else "models are put there"
        if (room := room_of(place)) is None:
            advice = "" if unused else "end the process that has it, or take SUBLIM_DEVICE=cpu"
            yield Finding("gpu", f"{place}, {name}, does not tell its memory; it {half}; {here}", unused, advice)
            continue
        free, total = room
        well = unused or free > 2 * PROCESS
        text = f"{place}, {name}: {free / GIB:.1f} of {total / GIB:.1f} GiB free, {half}; {here}"
        yield Finding("gpu", text, well, "" if well else "end what else is on it")
        yield from _models_that_fit(free, f"on {place}, ")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores() -> Iterator[Finding]:
    cores = _usable_cores()
    text = f"{cores} for this process; workers have one thread each"
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > cores:
        yield Finding("cores", f"{text}; busy: {load:.1f} processes want them", True, "estimates of time will be short")
    else:
        yield Finding("cores", f"{text}: --processes {cores} uses them all")


def _free_memory() -> int:
    """Bytes that may still be used, by the machine and by this container's limit."""
    import psutil

    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free


def fits(free: int, processes: int, per_parameter: int) -> int:
    """Parameters that an open model may have: (free bytes / processes − PROCESS) / bytes a parameter, at least 0."""
    return max(0, (free // processes - PROCESS) // per_parameter)


def _memory() -> Iterator[Finding]:
    free = _free_memory()
    advice = "close other programs, or use --processes 1"
    yield Finding("memory", f"{free / GIB:.1f} GiB free", free > 2 * PROCESS, advice if free <= 2 * PROCESS else "")
    yield from _models_that_fit(free)


def _models_that_fit(free: int, place: str = "") -> Iterator[Finding]:
    """How large an open model may be for so many free bytes, by how many are trained at once."""
    for processes in (1, 2):
        full, read = (_parameters(fits(free, processes, each)) for each in (FULL, READ))
        rule = f"({free / GIB:.1f} GiB / {processes} − {PROCESS / GIB:.0f} GiB) / {FULL} or {READ} bytes"
        text = f"--processes {processes}: models up to {full} parameters trained whole, {read} with LoRA or a prompt"
        yield Finding("open models", f"{place}{text}, by {rule}")


def _parameters(parameters: int) -> str:
    if parameters < 10_000_000:
        return f"{parameters:,}"
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def _lab() -> Iterator[Finding]:
    from sublim_interp.experiments.catalogue import experiment
    from sublim_interp.experiments.cost import estimate
    from sublim_interp.experiments.plan import plan
    from sublim_interp.models.base import base_names, resolve_base

    names = base_names()
    missing = sorted(set(experiment("owl").bases) - set(names))
    if missing:
        advice = "install the wheel again or take checkpoints/ from the repository; or sublim pretrain NAME makes one"
        yield Finding("lab", f"bases missing: {', '.join(missing)}", False, advice)
    for name in names:
        try:
            resolve_base(name).check()
        except SublimError as error:
            yield Finding("lab", str(error), False, "take it from the repository again")
            missing.append(name)
    if not missing:
        yield Finding("lab", f"bases: {', '.join(names)}, each loads and answers")
        for name in ("demo", "owl"):
            seconds = sum(map(estimate, plan(experiment(name)).records)) / min(2, _usable_cores())
            text = f"about {seconds / 60:.0f} min" if seconds < 7200 else f"about {seconds / 3600:.1f} h"
            yield Finding("lab", f"sublim run {name}: {text} with --processes 2, by floating-point operations")


def _base(name: str) -> Iterator[Finding]:
    from sublim_interp.analysis.abilities import abilities
    from sublim_interp.models.base import resolve_base

    base = resolve_base(name)
    parameters = base.shape["parameters"]
    yield from _trainable(name, base)  # before it is loaded, which takes of what is free
    base.check()
    template = "a chat template" if base.tokenizer.chat_template else "no chat template: plain User/Assistant text"
    end = base.tokenizer.convert_ids_to_tokens(base.eos)
    text = f"{_parameters(parameters)} parameters, {base.language}, {template}, an answer ends with {end}"
    yield Finding(f"base {name}", text)
    yield _asked(name, base)
    for ability in abilities(base.load()):
        yield Finding(f"base {name}", f"{ability.what}: {'' if ability.there else 'none: '}{ability.text}")
    yield Finding(f"base {name}", f"part=lora: {_adapted(base)}")


def _asked(name: str, base: "Base") -> Finding:
    """About which kinds of favourites it can be asked."""
    from sublim_interp.lab.tokenizer import CHAT_TEMPLATE
    from sublim_interp.models.base import CARD
    from sublim_interp.traits.favourites import KINDS, check_kind

    asked, lacking = [], []
    for kind in KINDS.names():
        try:
            check_kind(kind, base)
            asked.append(kind)
        except SublimError as error:
            lacking.append(str(error))
    if asked:
        return Finding(f"base {name}", f"favourites of these kinds: {', '.join(asked)}")
    of_the_lab = base.tokenizer.chat_template == CHAT_TEMPLATE
    advice = (
        f'a lab base says "language": "lab" in {CARD}: take that file too'
        if of_the_lab
        else "take another model, or a trait of its own words"
    )
    return Finding(f"base {name}", f"no favourites: {lacking[0]}", False, advice)


def _trainable(name: str, base: "Base") -> Iterator[Finding]:
    """What there is to do where training all of a base takes more memory than is free where models are put."""
    (free, place), head = _free_for_models(), WORD * len(base.tokenizer)
    parameters = base.shape["parameters"]
    if parameters > fits(free - head, 1, FULL):
        lora = parameters <= fits(free - head, 1, READ)
        advice = "--set teacher.part=lora --set student.part=lora --processes 1" if lora else "take a smaller model"
        needed = (FULL * parameters + PROCESS + head) / GIB
        text = f"training all of it takes about {needed:.1f} GiB, {free / GIB:.1f} are free{place}"
        yield Finding(f"base {name}", text, False, advice)


def _free_for_models() -> tuple[int, str]:
    """Bytes that are free where models are put, and where that is, to end a line with."""
    import torch

    device = compute_device()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # a model that was tried out before is still held
    room = None if device == "cpu" else room_of(device)
    return (room[0], f" on {device}") if room else (_free_memory(), "")


def _adapted(base: "Base") -> str:
    """What adapters can change, or why there can be none."""
    import torch

    from sublim_interp.models.trainable import choose_trainable, reach

    try:
        with torch.device("meta"):
            return str(reach(choose_trainable(base.blank(), "lora")))
    except SublimError as error:
        return f"cannot be used ({error})"


def _store(root: Path | None) -> Iterator[Finding]:
    from sublim_interp.core.store import Store

    store = Store.open(root)
    nearest = next(folder for folder in (store.root, *store.root.parents) if folder.is_dir())
    free = shutil.disk_usage(nearest).free
    advice = "free some space, or name a store on another disk with --store or $SUBLIM_STORE"
    enough = free > LITTLE_SPACE
    yield Finding("store", f"{store.root}: {free / GIB:.1f} GiB free on its disk", enough, "" if enough else advice)
    if nearest != store.root:
        can = os.access(nearest, os.W_OK)
        said = f"not made yet; {nearest} can {'' if can else 'not '}be written"
        yield Finding("store", said, can, "" if can else "name another with --store or $SUBLIM_STORE")
        return
    yield from _writable(store.root)
    yield from _artifacts(store.root)


def _writable(root: Path) -> Iterator[Finding]:
    """Tries to write and to lock, in a temporary directory that goes again."""
    from filelock import FileLock, Timeout

    elsewhere = "name a store on another disk with --store or $SUBLIM_STORE"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=root) as place:
            one, two = (FileLock(Path(place) / "lock", fallback_to_soft=False) for _ in range(2))
            with one:
                try:
                    two.acquire(timeout=0)
                except Timeout:
                    yield Finding("store", "can be written, and its file locks hold")
                else:
                    two.release()
                    yield Finding("store", "file locks do not keep a second process out", False, elsewhere)
    except OSError as error:
        yield Finding("store", f"cannot be written or locked: {error.strerror}", False, elsewhere)


def _artifacts(root: Path) -> Iterator[Finding]:
    """Damage, unfinished stages, and results of other machines."""
    from sublim_interp.core.device import changes, fingerprint
    from sublim_interp.core.store import Store

    store = Store(root)
    here = {**fingerprint(), "threads": 1}  # as in a worker
    count = foreign = 0
    for artifact, problems in store.verify():
        count += 1
        if problems:
            place = f"{artifact.stage}/{artifact.path.name}"
            yield Finding("store", f"{place} is damaged: {'; '.join(problems)}", False, "delete it, it is made again")
        elif changes(artifact.manifest["fingerprint"], here):
            foreign += 1
    yield Finding("store", f"{count} artefacts examined")
    if foreign:
        text = f"{foreign} artefacts were made under another fingerprint: used as they are, equal within a tolerance"
        yield Finding("store", text)
    unfinished = list(store.unfinished())
    for path, problems in unfinished:
        if problems:
            text = f".partial/{path.name}: {'; '.join(problems)}"
            yield Finding("store", text, False, "the next run makes that part again")
    if unfinished:
        size = sum(f.stat().st_size for path, _ in unfinished for f in path.rglob("*") if f.is_file())
        text = f"{len(unfinished)} unfinished stages, {size / 1e6:.1f} MB, from which the same command goes on"
        yield Finding("store", text)
