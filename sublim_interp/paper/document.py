"""Builds the paper: a PDF, and beside it its numbers for LaTeX, its tables as CSV, its figures as PDF."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

from sublim_interp.core.drawing import render
from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import one_line, write_atomic
from sublim_interp.paper.check import GENERATED, MAIN, quotable, read_main
from sublim_interp.paper.latex import as_latex
from sublim_interp.paper.results import Result
from sublim_interp.paper.text import read_text

TEMPLATE = "template.typ"
"""How a paper looks."""
TYPST = Path(__file__).parent / "typst"
"""Files of typst that come with the package: how a paper looks, and with what a new one begins."""


def build(folder: Path, out: Path, results: Mapping[str, Result]) -> list[Path]:
    """Writes generated/results.json in `folder`, and into `out` the PDF and what goes beside it.

    folder: holds main.typ and what it imports; its own template.typ is used where it has one
    out: gets paper.pdf, numbers.tex, tables/ as CSV and as LaTeX, figures/, and skeleton.tex, which shows them all
    results: as `collect` or `collect_own` tells

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
        figures = {name: render(one.drawn(), "pdf") for name, one in results.items() if one.drawn}
        pdf = _compiled(folder, as_json(results), figures)
        (folder / GENERATED).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / GENERATED, as_json(results))
        write("paper.pdf", pdf)
        for name, data in as_latex(results).items():
            write(name, data)
        for name, one in results.items():
            if one.rows:
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
                raise SublimError(f"{MAIN}:{sentence.line} quotes '{name}', which no result has; {_near(name, known)}")
    for name in (*text.shown, *text.drawn):
        if name not in results:
            raise SublimError(f"{MAIN} shows '{name}', which is no result; there is: {', '.join(results)}")
    for name in text.drawn:
        if not results[name].drawn:
            raise SublimError(f"{MAIN} draws '{name}', which has no figure; #result shows its table")


def _near(name: str, known: Mapping[str, str]) -> str:
    """Names of numbers that are meant perhaps: of the same row, else those spelled alike."""
    row = name.rpartition("/")[0] + "/"
    near = [one for one in known if one.startswith(row)][:8] or get_close_matches(name, known, 8)
    return f"near it: {', '.join(near)}" if near else "results.json lists every number"


def _compiled(folder: Path, results: str, figures: Mapping[str, bytes]) -> bytes:
    """The PDF of the text, with the figures where it looks for them: generated/figures/NAME.pdf."""
    import typst

    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "paper"
        shutil.copytree(folder, root)
        if not (root / TEMPLATE).exists():
            shutil.copy(TYPST / TEMPLATE, root / TEMPLATE)
        (root / GENERATED).parent.mkdir(exist_ok=True)
        (root / GENERATED).write_text(results, encoding="utf-8")
        for name, data in figures.items():
            path = root / GENERATED.parent / "figures" / f"{name}.pdf"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        try:
            return typst.compile(str(root / MAIN), root=str(root), ignore_system_fonts=True, timestamp=0)
        except typst.TypstError as error:
            told = " ".join([error.message, *error.hints]).split()
            raise SublimError(f"typst refuses {MAIN}: {' '.join(told)}") from None


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
