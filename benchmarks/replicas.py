"""Students side by side: each in a process of its own, or all in one process with their weights stacked."""

from functools import partial

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch.func import functional_call, vmap
from torch.nn import functional as F

from benchmarks import ours
from benchmarks.page import seconds, table, times
from benchmarks.setting import Setting
from benchmarks.timing import Team, Turn, race, ratio
from sublim_interp.core.store import Store
from sublim_interp.pipeline.records import Student
from sublim_interp.training.batches import IGNORE
from sublim_interp.training.loop import rate

BLOCKS = 5
STEPS = 1 + 4 * BLOCKS
"""Updates of each student; the first one is in no stretch."""
STACKED = (2, 8)
"""How many students are stacked."""
THREADS = 2
"""Of the process that trains stacked students."""


def measure(setting: Setting) -> str:
    """The Markdown of the section: wall time, since it is cores that are shared out."""
    student, store = setting.student(STEPS), setting.store
    alone = partial(ours.unrecorded, student, store)
    teams = {
        "one process, one thread": (1, Team((alone,))),
        "two processes of one thread": (2, Team((alone, alone))),
        **{f"{n} stacked, two threads": (n, Team((partial(stacked, student, store, n),), THREADS)) for n in STACKED},
    }
    tracks = race({name: team for name, (_, team) in teams.items()})
    each = {name: [b.wall / teams[name][0] for b in track.blocks(BLOCKS)] for name, track in tracks.items()}
    ours_ = each["two processes of one thread"]
    rows = [
        (name, seconds(sum(took) / BLOCKS), "" if took is ours_ else times(ratio(took, ours_)))
        for name, took in each.items()
    ]
    return table(("students side by side", "wall time an update of each", "times as long as in two processes"), rows)


def stacked(student: Student, store: Store, count: int, turn: Turn) -> None:
    """Trains `count` students at once; a unit is an update of all."""
    train_stacked(student, store, count, turn, THREADS)


def train_stacked(
    student: Student, store: Store, count: int, turn: Turn = lambda: None, threads: int = 1
) -> dict[str, Float[torch.Tensor, "student ..."]]:
    """The weights that train, after a training of `count` students by `torch.func.vmap` over stacked weights.

    All get the same batches, so that their shapes agree; each could have its own.
    """
    model, batches = ours.student_parts(student, store, threads)
    o = student.config.optimization
    weights = {
        name: torch.stack([p.detach()] * count).requires_grad_()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    rest = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers()) if name not in weights}
    optimizer = torch.optim.Adam(weights.values(), lr=o.lr, fused=True)
    model.train()

    def loss(own: dict[str, torch.Tensor], ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model, {**own, **rest}, kwargs={"input_ids": ids, "use_cache": False}).logits
        return F.cross_entropy(
            rearrange(logits, "example position token -> (example position) token"),
            rearrange(labels, "example position -> (example position)"),
            ignore_index=IGNORE,
            reduction="sum",
        )

    for step in range(o.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(o, step)
        micro = batches(step)
        optimizer.zero_grad()
        tokens = sum(batch.tokens for batch in micro)
        for batch in micro:
            ids, labels = (repeat(t, "... -> replica ...", replica=count) for t in (batch.ids, batch.labels))
            (vmap(loss)(weights, ids, labels).sum() / tokens).backward()
        optimizer.step()
        turn()
    return weights
