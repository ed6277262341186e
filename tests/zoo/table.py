"""The zoo's table in docs: `python -m zoo.table` writes it, `--check [TYPE …]` compares it, exit code 1 if it differs.

Run it from tests/, or with tests/ on PYTHONPATH. A new transformers asks for a new table.
"""

import sys
from pathlib import Path

from zoo.builder import types
from zoo.trials import LINE, TRIALS, UNTRIED, WELL, WORKS, tried

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "architectures.md"
_MARKS = {WORKS: "✓", LINE: "–", UNTRIED: "·"}

Ends = dict[str, tuple[str, str]]

HEAD = """# Architectures
For whoever wants to know what works on a model's type.

**{works} of {tried} causal types of transformers {version} pass `check`**.
It refuses {refused}, and {unbuilt} could not be built.
Each was built tiny, of random weights, and taken through what the columns name.
`sublim doctor --base DIR` tells the same of your model.

✓ works, and agrees with an independent computation. – is refused in one line. What `check` refuses is named below.
· is not tried: the type sees or hears besides, for which TransformerLens would fetch other parts.

"""

COLUMNS = """| column | what is compared |
|---|---|
| doctor | what `doctor` says of the model with what the other columns find |
| saving | the model in memory, saved and loaded, saved again |
| padding | a short row beside a long one with the row alone |
| cache | greedy sampling with the cache with whole forward passes |
| hooks | the captured stream with transformers' hidden states; `resid_pre + attn_out + mlp_out` with `resid_post` |
| patterns | attention patterns with causal distributions |
| edit | an edit that changes nothing, and one that reaches the logits from its position on |
| lens | the order of the vocabulary by head and final norm with that of the logits |
| grid | cells of each patching grid with single patches |
| heads | cells of the heads' grid with single patches |
| recorder | a trace with `capture`; the weights of a recorded training with those of an unobserved one |
| lora | adapters before training, and merged after it |
| repeat | weights, samples and logits of trainings in two processes, of other random states, bit by bit |
| bridge | TransformerLens with the plain model |

"""


def page(found: dict[str, Ends], version: str) -> str:
    """The whole page, from how each trial of each type ended."""
    passed = {kind: ends for kind, ends in found.items() if ends.get("check", ("", ""))[0] == WORKS}
    names = [name for name in TRIALS if name != "check"]
    lines = [
        HEAD.format(
            works=len(passed),
            tried=len(found),
            refused=sum("check" in ends for ends in found.values()) - len(passed),
            unbuilt=sum("build" in ends for ends in found.values()),
            version=version,
        ).rstrip("\n"),
        "",
    ]
    lines += [f"| type | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    lines += [row(kind, ends) for kind, ends in passed.items()]
    lines += ["", COLUMNS.rstrip("\n"), "", "## Refused", "By `check`, so that nothing runs on them:", ""]
    lines += [
        f"- **{kind}**: {ends['check'][1].removeprefix('base base: ')}"
        for kind, ends in found.items()
        if kind not in passed and "check" in ends
    ]
    lines += ["", "## Not tried", "No tiny model of the type could be built here:", ""]
    lines += [f"- **{kind}**: {ends['build'][1]}" for kind, ends in found.items() if "build" in ends]
    return "\n".join(lines) + "\n"


def row(kind: str, ends: Ends) -> str:
    """One type's line."""
    return f"| {kind} | {' | '.join(_MARKS.get(ends[name][0], ends[name][0]) for name in TRIALS if name != 'check')} |"


def published() -> dict[str, dict[str, str]]:
    """The marks of each type on the page, by column; of a type that is refused or not tried {}."""
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| type |"):
            columns = cells[1:]
        elif columns and line.startswith("| ") and len(cells) == len(columns) + 1:
            found[cells[0]] = dict(zip(columns, cells[1:], strict=True))
        elif line.startswith("- **"):
            found[line.split("**")[1]] = {}
    return found


def differences(kind: str, ends: Ends) -> list[str]:
    """How a type's trials end otherwise than the page says; [] where they agree."""
    told = published().get(kind)
    if told is None:
        return []  # not tried when the page was written; that it ends well is asked all the same
    passes = ends.get("check", ("", ""))[0] == WORKS
    if passes != bool(told):
        return [f"{kind}: the page says {'it passes' if told else 'it is refused'}; found: {ends}"]
    return [
        f"{kind}: {name} is {told[name]} on the page; found: {end}"
        for name, end in ends.items()
        if told and name != "check" and told.get(name) != _MARKS.get(end[0], end[0])
    ]


def version() -> str:
    """The transformers version that the page was made with."""
    return PAGE.read_text().partition("causal types of transformers ")[2].split()[0]


def main(arguments: list[str]) -> int:
    """Writes the page, or with --check compares it."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    check, kinds = "--check" in arguments, [a for a in arguments if not a.startswith("-")] or types()
    found = {}
    for kind in kinds:
        found[kind] = tried(kind)
        words = {name: end for name, end in found[kind].items() if end[0] not in WELL}
        print(kind, words or "", flush=True)
    if check:
        differ = [line for kind, ends in found.items() for line in differences(kind, ends)]
        print("\n".join(differ) or f"{PAGE.name} is what {len(found)} types do")
        return bool(differ)
    PAGE.write_text(page(found, transformers.__version__))
    return any(end[0] not in WELL for ends in found.values() for end in ends.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
