"""Switches that hold for every test: checked shapes, one thread a process, no network. Fixtures live in tests/."""

import os

# Before numpy or torch loads, and inherited by every process that a test starts: two workers on two cores.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Before the package is imported: every signature's types and shapes are checked at each call.
install_import_hook("sublim_interp", "beartype.beartype")

# A busy machine is no failure; CI draws the same examples every time.
settings.register_profile(
    "sublim", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sublim")
