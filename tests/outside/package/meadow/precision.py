"""A precision: twice as many bits as float32, to see whether rounding decides anything."""

from sublim_interp.core.device import Precision

float64 = Precision("float64", "float64", rounding=1e-6)
