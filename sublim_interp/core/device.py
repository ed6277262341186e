"""Where and in which precision everything is computed: the table of precisions, the device, the fingerprint of both.

A new precision is one row of `PRECISIONS`. Random numbers are drawn on the CPU whatever the device is. The precision
decides a result and is in its key; the device is in the fingerprint only, so what a CPU made serves a GPU.
"""

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry, instances_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """One way to hold weights and activations."""

    weights: str
    """torch's name of the type that weights, gradients and the optimizer's moments have."""
    products: str
    """torch's name of the type in which matrix products are computed; another than `weights` means autocast."""
    rounding: float
    """Largest difference of two logits that passes for rounding, as a share of the logits' standard deviation."""


DEFAULT = "float32"
"""The precision whose name enters no key: everything that was published of the lab is in it."""

PRECISIONS: Registry[Precision] = Registry(
    "precision",
    "sublim_interp.precisions",
    {
        DEFAULT: Precision("float32", "float32", rounding=1e-3),
        "autocast": Precision("float32", "bfloat16", rounding=0.2),
        "bfloat16": Precision("bfloat16", "bfloat16", rounding=0.2),
    },
    instances_of("precision", Precision),
)
"""By the name that an experiment's `dtype` takes.

float32: everything. autocast: weights, residual stream and optimizer in float32, matrix products in bfloat16. bfloat16:
everything, so an update smaller than 1/256 of a weight is lost: for reading a large model rather than for training it.
"""

DEVICES = ("auto", "cpu", "cuda", "mps")
"""What may be asked for; auto is the first of cuda, mps and cpu that is there."""

CHOICE = "SUBLIM_DEVICE"
"""The environment variable that names the device of a process and of the workers that it starts."""


def torch_dtype(name: str) -> "torch.dtype":
    """torch's type of the weights in a precision."""
    import torch

    return getattr(torch, PRECISIONS[name].weights)


def compute_device(asked: str | None = None) -> str:
    """torch's name of the device that models are put on: what is asked for, else `$SUBLIM_DEVICE`, else the CPU.

    Every model asks here, so a choice for the whole process is made in this function and nowhere else.

    Raises SublimError for what is no device, and for one that this machine lacks.
    """
    name = asked or os.environ.get(CHOICE) or "cpu"
    if name == "cpu":
        return name
    import torch

    # cuBLAS reads it at a process's first product, which may come long before anything is trained.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, has in there.items() if has)
    kind, _, number = name.partition(":")
    if kind not in there or (number and not number.isdigit()):
        raise SublimError(f"no device '{name}'; valid: {', '.join(DEVICES)}, or one GPU of several as in cuda:1")
    if not there[kind]:
        here = ", ".join(kind for kind, has in there.items() if has)
        built = "" if kind != "cuda" or torch.version.cuda else "; this PyTorch is built without CUDA"
        raise SublimError(f"device {name} is asked for, but PyTorch finds none{built}; there is: {here}")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise SublimError(f"device {name} is asked for, but there are {torch.cuda.device_count()}, counted from cuda:0")
    return name


@contextmanager
def using_device(name: str | None) -> Iterator[None]:
    """Inside the block models are put on a device, in this process and in workers that it starts; None changes nothing.

    Raises SublimError as `compute_device` does.
    """
    before = os.environ.get(CHOICE)
    if name is not None:
        os.environ[CHOICE] = compute_device(name)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(CHOICE, None)
        else:
            os.environ[CHOICE] = before


def check_computable(dtype: str, device: str | None = None) -> None:
    """Raises SublimError where a device cannot compute in a precision, or only by imitating it slowly.

    dtype: a name of `PRECISIONS`
    device: torch's name of it; None for what `compute_device` chooses
    """
    place = compute_device(device)
    if PRECISIONS[dtype].products != "bfloat16" or _has_bfloat16(place):
        return
    here = "this processor" if place == "cpu" else place
    raise SublimError(
        f"dtype={dtype} needs bfloat16, which {here} does not compute in (a CPU needs avx512_bf16 or amx); take "
        "dtype=float32, or a GPU by --device cuda"
    )


def open_device(dtype: str = DEFAULT) -> None:
    """Makes the chosen device ready for a result that is the same each time: call it before any model is there.

    On a GPU kernels with a fixed order of sums are taken, and float32 is not shortened to TF32; a CPU needs neither.

    Raises SublimError as `check_computable` does, and for a GPU that gives no memory at all, as another process has it.
    """
    check_computable(dtype)
    device = compute_device()
    if device == "cpu":
        return
    import torch

    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.use_deterministic_algorithms(True)
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:  # out of memory, exclusive to another process, or a driver that does not fit
        said = next(iter(str(error).splitlines()), "").rstrip(".")
        raise SublimError(
            f"device {device} cannot be used ({said}); wait until it is free, or take another one, as in --device cpu"
        ) from None


_FULL = ("out of memory", "_STATUS_ALLOC_FAILED")
"""What a driver or a library says that finds no memory beside PyTorch's own; PyTorch then has no class for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU has no room: by its class, or by what a driver or a library says."""
    if not isinstance(error, RuntimeError):
        return False
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)


def visible_gpus() -> tuple[str, ...]:
    """CUDA's names of the GPUs that workers share out, where any is chosen; () where one or none is."""
    if compute_device() != "cuda":
        return ()
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return tuple(str(i) for i in range(torch.cuda.device_count()))
    return tuple(part.strip() for part in given.split(",") if part.strip())


def _has_bfloat16(device: str) -> bool:
    """Whether a device multiplies in bfloat16 itself."""
    import torch

    if device.startswith("cuda"):
        with torch.cuda.device(device):  # else the first one is asked about
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return True
    able = torch.cpu.get_capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def device_of(model: "torch.nn.Module") -> "torch.device":
    """Where a model's weights lie, and so where its inputs must; the CPU for a model without weights."""
    import torch

    weight = next(model.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def fingerprint(device: str | None = None, dtype: str = DEFAULT) -> dict[str, str | int]:
    """All on which the last bits of a result depend: equal fingerprints promise bit-identical results.

    device: torch's name of what is computed on; None for what `compute_device` chooses
    dtype: the name of the precision

    Returns versions of packages, platform, CPU, device, precision, and the threads of this process.
    """
    import torch

    device = compute_device(device)
    return {
        "torch": str(torch.__version__),
        "transformers": version_of("transformers"),
        "numpy": version_of("numpy"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_class(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": _gpu(device) if device.startswith("cuda") else device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }


def _gpu(device: str) -> str:
    """What decides a GPU's last bits: which of several alike it is does not."""
    import torch

    return f"cuda, {torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two fingerprints differ: "torch 2.12.0 -> 2.13.0, threads 1 -> 2", or "" where in nothing."""
    names = [name for name in now if before.get(name) != now[name]]
    return ", ".join(f"{name} {before.get(name)} -> {now[name]}" for name in names)


def _cpu_class() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    wanted = ("vendor_id", "cpu family", "model", "model name", "CPU implementer", "CPU part")
    return " ".join(facts[name] for name in wanted if name in facts)


def version_of(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
