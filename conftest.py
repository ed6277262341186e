"""Switches that hold for every test: checked shapes, one thread a process, no network, the device. Fixtures: tests/."""

import os

# Before numpy or torch loads, and inherited by every process that a test starts: two workers on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
from hypothesis import HealthCheck, settings

import checking

# Before the package is imported: the types and shapes of signatures are checked at each call.
checking.install()

# A busy machine is no failure; CI draws the same examples every time.
settings.register_profile(
    "sublim", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sublim")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --device cuda`: models that tests load are put there."""
    parser.addoption("--device", default="cpu", help="where models are put: cpu, cuda, mps or auto")


def pytest_configure(config: pytest.Config) -> None:
    """Chooses the device for this process and for all that a test starts; one that is not there ends the session."""
    from sublim_interp.core.device import CHOICE, compute_device
    from sublim_interp.core.errors import SublimError

    try:
        os.environ[CHOICE] = compute_device(config.getoption("--device"))
    except SublimError as error:
        raise pytest.UsageError(str(error)) from None
