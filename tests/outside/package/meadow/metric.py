"""A metric: log-odds of the one asked for, against every other token."""

import torch

from sublim_interp.analysis.probes import Metric


def odds(ids: list[int], place: int) -> Metric:
    """log p − log (1 − p) of the member at `place`, in nats."""
    return lambda logits: torch.logit(logits.softmax(-1)[:, ids[place]])
