"""On what and in which precision everything is computed, and the fingerprint that says so."""

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def fingerprint(device: str = "cpu", dtype: str = "float32") -> dict[str, str | int]:
    """Describe all on which the last bits of a result depend: equal fingerprints promise bit-identical results.

    `device` and `dtype` are torch's names of what the stage computes on and in; `threads` is this process's own.
    """
    import torch

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
    """Say in what two fingerprints differ, "torch 2.12.0 -> 2.13.0, threads 1 -> 2"; "" if in nothing."""
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
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
