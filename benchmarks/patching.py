"""How much faster a layer × position grid is than TransformerLens's `generic_activation_patch`, in one run.

`python benchmarks/patching.py` prints a Markdown table: ratio of times with a 95 % interval over interleaved
repetitions, and the largest difference between the two grids. Either is given two models and prompts, and looks at the
source itself. One thread; nothing is written.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import contextlib
import io
import math
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformer_lens import patching as lens
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from benchmarks.page import at_least
from sublim_interp.analysis.bridge import bridge
from sublim_interp.analysis.patching.cells import GridKind
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.probes import answer_margin
from sublim_interp.models.base import resolve_base
from sublim_interp.stats.intervals import mean_interval
from sublim_interp.traits.favourites import questions


def lab(prompts: int) -> tuple[PreTrainedModel, PreTrainedModel, Tensor]:
    """Two lab bases' worth of difference, on so many held-out questions of one length about animals."""
    base = resolve_base("lab-small-0")
    asked = [base.prompt_ids(q.messages) for q in questions("animal", base.language, "held-out")]
    ids = torch.tensor([row for row in asked if len(row) == 12])
    return base.load(), nudged(base.load()), ids[:prompts]


def neox() -> tuple[PreTrainedModel, PreTrainedModel, Tensor]:
    """A GPT-NeoX of Pythia-160M's shape with random weights, on one prompt of 12 tokens."""
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    )
    torch.manual_seed(0)
    base = GPTNeoXForCausalLM(config).eval()
    other = GPTNeoXForCausalLM(config).eval()
    other.load_state_dict(base.state_dict())
    return base, nudged(other), torch.randint(50304, (1, 12))


@torch.no_grad()
def nudged(model: PreTrainedModel) -> PreTrainedModel:
    """The model after a small random change, as large as a training makes."""
    torch.manual_seed(1)
    for p in model.parameters():
        p.add_(0.1 * p.std() * torch.randn_like(p))
    return model


THEIRS: dict[GridKind, Callable[..., Tensor]] = {
    "resid_pre": lens.get_act_patch_resid_pre, "z": lens.get_act_patch_attn_head_out_all_pos
}  # fmt: skip
"""By kind of grid, TransformerLens's function."""


def compare(
    name: str,
    make: Callable[[], tuple[PreTrainedModel, PreTrainedModel, Tensor]],
    repetitions: int,
    least: float,
    kind: GridKind = "resid_pre",
) -> str:
    """One row of the table.

    least: how many times faster it should be
    """
    dst, src, ids = make()
    metric = answer_margin([5, 6, 7, 8], 0)
    theirs, source = bridge(dst), bridge(src)
    both = patch(src, dst, prompts=ids, metric=metric)

    def ours() -> Tensor:
        return both.grid(kind).values

    @torch.no_grad()
    def reference() -> Tensor:
        _, cache = source.run_with_cache(ids)
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            return THEIRS[kind](theirs, ids, cache, lambda logits: metric(logits[:, -1]).mean())

    ratios, times = [], []
    difference = (ours() - reference()).abs().max().item()  # and both are warm
    for _ in range(repetitions):
        start = time.process_time()
        ours()
        middle = time.process_time()
        reference()
        end = time.process_time()
        times.append(middle - start)
        ratios.append(math.log((end - middle) / (middle - start)))
    interval = mean_interval(ratios)
    low, mean, high = (math.exp(x) for x in (interval.low, interval.estimate, interval.high))
    across = f"{ids.shape[1]} positions" if kind == "resid_pre" else f"{dst.config.num_attention_heads} heads"
    cells = f"{dst.config.num_hidden_layers} layers × {across}"
    return (
        f"| {name} | {len(ids)} | {cells} | {1000 * sum(times) / len(times):.0f} | "
        f"{mean:.1f} [{low:.1f}, {high:.1f}] | {difference:.1e} | {at_least(mean, least)} |"
    )


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print("| model | prompts | grid | ours, CPU ms | times faster | largest difference | target |")
    print("|---|---|---|---|---|---|---|")
    for prompts, least in ((1, 25.0), (5, 15.0)):
        print(compare("lab-small-0", partial(lab, prompts), 48, least), flush=True)
    print(compare("lab-small-0", partial(lab, 5), 48, 10.0, "z"), flush=True)
    print(compare("GPT-NeoX 160M, random", neox, 2, 10.0), flush=True)


if __name__ == "__main__":
    main()
