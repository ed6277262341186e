"""Builds the paper: a PDF, and beside it its numbers for LaTeX, its tables as CSV, its figures as PDF."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from sublim_interp.core.drawing import render
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import one_line, write_atomic
from sublim_interp.experiments.catalogue import RESULTS
from sublim_interp.paper.check import GENERATED, quotable, read_main
from sublim_interp.paper.results import Result, draw
from sublim_interp.paper.text import read_text


def build(folder: Path, out: Path, results: Mapping[str, Result], where: Path = RESULTS) -> list[Path]:
    """Writes generated/results.json in `folder`, and into `out` paper.pdf, numbers.tex, tables/ and figures/.

    folder: holds main.typ and what it imports
    results: as `collect` tells; `where` is the folder that they come from

    Returns what was written into `out`. Equal results and an equal text give equal bytes. Raises SublimError where
    typst is not installed, the text quotes what is not there, or typst refuses it.
    """
    require_typst()
    _require_known(read_main(folder), results)
    written: list[Path] = []

    def write(name: str, data: bytes | str) -> None:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        written.append(path)

    with one_line(f"the paper is not written to {out}"):
        (folder / GENERATED).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / GENERATED, as_json(results))
        figures = {name: render(draw(name, where), "pdf") for name, one in results.items() if one.figure}
        write("paper.pdf", _compiled(folder, figures))
        write("numbers.tex", as_latex(results))
        for name, one in results.items():
            frame = pd.DataFrame(one.rows, columns=list(one.columns))
            write(f"tables/{name}.csv", f"# {one.made}, {one.key}\n" + frame.to_csv(index=False))
        for name, data in figures.items():
            write(f"figures/{name}.pdf", data)
    return written


def require_typst() -> None:
    """SublimError where typst, which sets the PDF, is not installed."""
    if find_spec("typst") is None:
        raise SublimError("typst, which sets the paper, is not installed; pip install 'sublim-interp[paper]'")


def _require_known(main: str, results: Mapping[str, Result]) -> None:
    """SublimError for a number or a result that the text names and nobody published."""
    text, known = read_text(main), quotable(results)
    for sentence in text.sentences:
        for name in sentence.quoted:
            if name not in known:
                near = [one for one in known if one.startswith(name.rpartition("/")[0])][:8]
                raise SublimError(
                    f"main.typ quotes '{name}', which no result has; near it: {', '.join(near) or 'nothing'}"
                )
    for name in text.shown:
        if name not in results:
            raise SublimError(f"main.typ shows '{name}', which is not published; published: {', '.join(results)}")


def _compiled(folder: Path, figures: Mapping[str, bytes]) -> bytes:
    """The PDF of the text, with the figures where it looks for them: generated/figures/NAME.pdf."""
    import typst

    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "paper"
        shutil.copytree(folder, root)
        (root / "generated" / "figures").mkdir(parents=True, exist_ok=True)
        for name, data in figures.items():
            (root / "generated" / "figures" / f"{name}.pdf").write_bytes(data)
        try:
            return typst.compile(str(root / "main.typ"), root=str(root), ignore_system_fonts=True, timestamp=0)
        except typst.TypstError as error:
            told = " ".join([error.message, *error.hints]).split()
            raise SublimError(f"typst refuses main.typ: {' '.join(told)}") from None


def as_json(results: Mapping[str, Result]) -> str:
    """The generated file of all results; a row of a table stands on a line of its own."""
    parts = []
    for name, one in results.items():
        fields = []
        for field, value in one.plain().items():
            lines = value if field in ("rows", "lines") else None
            if lines is not None:
                said = "[\n" + ",\n".join(f"   {json.dumps(line, ensure_ascii=False)}" for line in lines) + "\n  ]"
            elif field == "numbers":
                pairs = (f"   {json.dumps(n)}: {json.dumps(v, ensure_ascii=False)}" for n, v in value.items())
                said = "{\n" + ",\n".join(pairs) + "\n  }"
            else:
                said = json.dumps(value, ensure_ascii=False)
            fields.append(f"  {json.dumps(field)}: {said}")
        parts.append(f" {json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


_LATEX = {character: f"\\{character}" for character in "%&#_${}"} | {
    "\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}", "−": "$-$", "–": "--", "×": r"$\times$", "·": r"$\cdot$",
    "→": r"$\to$", "γ": r"$\gamma$",
}  # fmt: skip


def as_latex(results: Mapping[str, Result]) -> str:
    r"""Every number as LaTeX: `\input{numbers}`, then `\sublim{owl/same-init/margin-nats}`; UTF-8."""
    lines = [
        "% Every published number. Usage: \\input{numbers} and then \\sublim{owl/same-init/margin-nats}",
        r"\makeatletter",
        r"\newcommand\sublim[1]{\@ifundefined{sublim@#1}{\PackageError{sublim}{no number #1}{}}"
        r"{\@nameuse{sublim@#1}}}",
    ]
    for one in results.values():
        lines.append(f"% {one.made}, {one.key}")
        for number, said in one.numbers.items():
            escaped = "".join(_LATEX.get(character, character) for character in said)
            lines.append(rf"\@namedef{{sublim@{one.name}/{number}}}{{{escaped}}}")
    return "\n".join([*lines, r"\makeatother", ""])
