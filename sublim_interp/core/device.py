"""Where and in which precision everything is computed: the table of precisions, the device, the fingerprint of both.

A new precision is one row of `PRECISIONS`. Random numbers are drawn on the CPU whatever the device is.
"""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """One way to hold weights and activations."""

    rounding: float
    """Largest difference of two logits that passes for rounding, as a share of the logits' standard deviation."""


DEFAULT = "float32"
"""The precision whose name enters no key: everything that was published is in it."""

PRECISIONS: dict[str, Precision] = {DEFAULT: Precision(rounding=1e-3)}
"""By torch's own name of the type, `torch.float32`."""


def check_precision(name: str) -> str:
    """The name, where there is such a precision; ValueError, which names those there are, where there is none."""
    if name not in PRECISIONS:
        raise ValueError(f"no precision '{name}'; valid: {', '.join(PRECISIONS)}")
    return name


def torch_dtype(name: str) -> "torch.dtype":
    """torch's type of a precision."""
    import torch

    return getattr(torch, check_precision(name))


def compute_device(asked: str | None = None) -> str:
    """torch's name of the device that models are put on: what is asked for, else the CPU.

    Every model asks here, so a choice for the whole process is made in this function and nowhere else.
    """
    return asked or "cpu"


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
        "device": f"{device}, {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }


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
