"""Tests of the trace's files: what is written is read back, a cut at any byte costs the last shard, damage is named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.training.recording.trace import MANIFEST, Trace, Writer, reaches

ABOUT = {
    "dims": [["*blocks.*", ["example", "position", "d_model"]], ["loss", []], ["*", ["parameter"]]],
    "coords": {"parameter": ["a.weight", "b.weight"]},
}
POST = "blocks.0.hook_resid_post"


def stream(step: int) -> Tensor:
    return torch.arange(24.0).reshape(2, 3, 4) + 100 * step


def norms(step: int) -> Tensor:
    return torch.tensor([step, step + 0.5])


def write(path: Path, *, series: tuple[tuple[int, ...], ...] = ((0, 1, 2), (3, 4))) -> Writer:
    writer = Writer(path, ABOUT)
    writer.append("probe", [0], 0, {POST: stream(0)[None]})
    for steps in series:
        table = torch.stack([norms(s) for s in steps])
        loss = torch.tensor([10.0 - s for s in steps])
        writer.append("series", steps, steps[-1] + 1, {"update_norm": table, "loss": loss})
        writer.append("probe", [steps[-1] + 1], steps[-1] + 1, {POST: stream(steps[-1] + 1)[None]})
    return writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "trace")
    return tmp_path / "trace"


# --- reading ----------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_back(path: Path) -> None:
    trace = Trace.open(path)
    assert trace.names() == [POST, "loss", "update_norm"] and trace.names("blocks.*") == [POST]
    assert trace.steps(POST) == [0, 3, 5] and trace.steps("loss") == [0, 1, 2, 3, 4]
    for step in (0, 3, 5):
        assert torch.equal(trace.read(POST, step), stream(step))
    assert torch.equal(trace.read(POST), stream(5)) and torch.equal(trace.read(POST, -2), stream(3))
    for step in range(5):
        assert torch.equal(trace.read("update_norm", step), norms(step))
    assert not trace.verify()


def test_a_vector_without_names_is_a_series_of_numbered_columns(tmp_path: Path) -> None:
    writer = write(tmp_path / "trace")
    writer.append("full", [0, 5], 6, {"full/delta/norm.weight": torch.arange(8.0).reshape(2, 4)})
    writer.append("more", [0, 5], 6, {"full/delta/mlp.weight": torch.zeros(2, 4, 4)})
    trace = Trace.open(tmp_path / "trace")
    table = trace.series("full/delta/norm.weight")
    assert list(table.columns) == [0, 1, 2, 3] and table.loc[5].tolist() == [4, 5, 6, 7]
    with pytest.raises(SublimError, match=r"has \[4, 4\] numbers at each step"):
        trace.series("full/delta/mlp.weight")


def test_series_and_xarray_have_named_axes(path: Path) -> None:
    trace = Trace.open(path)
    table = trace.series("update_norm")
    assert list(table.columns) == ["a.weight", "b.weight"] and table.index.name == "step"
    assert table.loc[3, "b.weight"] == 3.5
    assert trace.series("loss")["loss"].tolist() == [10, 9, 8, 7, 6]
    cube = trace.xarray(POST)
    assert cube.dims == ("step", "example", "position", "d_model") and cube.step.values.tolist() == [0, 3, 5]
    assert cube.sel(step=3).isel(example=1, position=2, d_model=3).item() == stream(3)[1, 2, 3]
    assert trace.xarray("update_norm").sel(step=4, parameter="a.weight").item() == 4
    with pytest.raises(SublimError, match="use read or xarray"):
        trace.series(POST)


def test_rows_lie_without_padding_where_their_lengths_are_told_and_are_read_with_it(tmp_path: Path) -> None:
    lengths, widest = [2, 4, 1], 4
    writer = Writer(tmp_path, {**ABOUT, "lengths": lengths})
    rows = {step: torch.randn(sum(lengths), 3) + 10 for step in (0, 1)}
    for step, tokens in rows.items():
        writer.append("probe", [step], step, {POST: tokens[None], "update_norm": norms(step)[None]})
    trace = Trace.open(tmp_path)
    assert torch.equal(trace.read("update_norm", 1), norms(1)), "what has no rows is as it was"
    for step, tokens in rows.items():
        padded = trace.read(POST, step)
        assert padded.shape == (3, widest, 3)
        for one, row in zip(padded, tokens.split(lengths), strict=True):
            assert torch.equal(one[: len(row)], row) and not one[len(row) :].any()
    cube = trace.xarray(POST)
    assert cube.dims == ("step", "example", "position", "d_model") and cube.shape == (2, 3, widest, 3)
    assert torch.equal(torch.tensor(cube.sel(step=1).values), trace.read(POST, 1))
    with safe_open(tmp_path / trace.shards[0]["file"], "pt") as shard:
        assert shard.get_tensor(POST).shape == (1, sum(lengths), 3)


def test_the_stream_before_a_layer_is_the_one_after_the_layer_before(path: Path) -> None:
    trace = Trace.open(path)
    assert torch.equal(trace.read("blocks.1.hook_resid_pre"), trace.read(POST))
    assert trace.steps("blocks.1.hook_resid_pre") == [0, 3, 5]
    with pytest.raises(SublimError, match=r"holds no 'blocks\.2.hook_resid_pre'"):
        trace.read("blocks.2.hook_resid_pre")


@pytest.mark.parametrize(
    ("name", "step", "words"),
    [
        ("los", -1, ["'los'", "loss, update_norm"]),
        ("loss", 9, ["step 9", "0, 1, 2, 3, 4"]),
        ("loss", -6, ["step -6"]),
        (POST, 1, ["step 1", "0, 3, 5"]),
    ],
)
def test_a_name_or_a_step_that_is_not_there_is_one_line(name: str, step: int, words: list[str], path: Path) -> None:
    with pytest.raises(SublimError) as raised:
        Trace.open(path).read(name, step)
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_reading_one_step_reads_no_other(path: Path) -> None:
    """The bytes of all other steps are spoilt; what was asked comes out as it was."""
    file = path / "series-00000000.safetensors"
    data = bytearray(file.read_bytes())
    wanted = norms(1).numpy().tobytes()
    at = bytes(data).index(wanted)
    start = 8 + int.from_bytes(data[:8], "little")
    for i in range(start, len(data)):
        if not at <= i < at + len(wanted):
            data[i] ^= 255
    file.write_bytes(data)
    assert torch.equal(Trace.open(path).read("update_norm", 1), norms(1))


def test_a_missing_tensor_of_the_weights_size_tells_the_budget(path: Path) -> None:
    with pytest.raises(SublimError, match=r"kept within a budget, recording\.weight_bytes; it holds: .*blocks"):
        Trace.open(path).read("full/delta/a.weight")
    with pytest.raises(SublimError, match=r"holds no 'los'; .*did you mean 'loss'"):
        Trace.open(path).read("los")


def test_a_directory_without_a_trace_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SublimError, match=r"a trace is a directory with trace\.jsonl"):
        Trace.open(tmp_path)
    (tmp_path / MANIFEST).write_text("")
    with pytest.raises(SublimError, match="not the manifest of a trace"):
        Trace.open(tmp_path)


# --- while it is written, and after a kill ----------------------------------------------------------------------------


def test_it_opens_while_it_is_written(path: Path, tmp_path: Path) -> None:
    writer = write(tmp_path / "live", series=())
    before = Trace.open(tmp_path / "live")
    writer.append("probe", [1], 1, {POST: stream(1)[None]})
    assert before.steps(POST) == [0] and torch.equal(before.read(POST), stream(0))
    assert Trace.open(tmp_path / "live").steps(POST) == [0, 1]


def test_a_manifest_cut_at_any_byte_opens_to_its_last_whole_line(path: Path) -> None:
    whole = (path / MANIFEST).read_bytes()
    header = whole.index(b"\n") + 1
    for end in range(header, len(whole)):
        (path / MANIFEST).write_bytes(whole[:end])
        assert len(Trace.open(path).shards) == whole[header:end].count(b"\n")


def test_a_last_shard_cut_at_any_byte_costs_that_shard_only(path: Path) -> None:
    last = path / "probe-00000005.safetensors"
    whole = last.read_bytes()
    for end in range(len(whole)):
        last.write_bytes(whole[:end])
        trace = Trace.open(path)
        assert trace.steps(POST) == [0, 3] and torch.equal(trace.read(POST), stream(3))
    last.unlink()
    assert Trace.open(path).steps(POST) == [0, 3]


def test_an_earlier_shard_that_is_cut_or_gone_is_named(path: Path) -> None:
    shard = path / "series-00000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(SublimError, match=r"series-00000000.safetensors is altered"):
        Trace.open(path)
    shard.unlink()
    with pytest.raises(SublimError, match=r"series-00000000.safetensors is missing"):
        Trace.open(path)


def test_a_flipped_bit_is_named(path: Path) -> None:
    for shard in sorted(path.glob("*.safetensors")):
        whole = shard.read_bytes()
        for place in (0, 9, len(whole) - 1):
            shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert Trace.open(path).verify() == [f"{shard.name} is altered"]
        shard.write_bytes(bytes([255]) + whole[1:])
        with pytest.raises(SublimError, match=f"{shard.name} is altered or missing"):
            trace = Trace.open(path)
            for name in trace.names():
                for step in trace.steps(name):
                    trace.read(name, step)
        shard.write_bytes(whole)
    manifest = path / MANIFEST
    whole = manifest.read_bytes()
    second = whole.index(b"\n") + 1
    for place in range(second, whole.index(b"\n", second), 7):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(SublimError, match=r"line [23] is altered"):
            Trace.open(path)


# --- other files ------------------------------------------------------------------------------------------------------

FOREIGN = {
    "thesis.txt": b"years of work",
    "model-00000500.safetensors": b"weights",
    "model.safetensors": b"weights",
    "notes.writing": b"notes",
    "probe-5.safetensors": b"a probe of somebody's own",
    "checkpoint-2/model.safetensors": b"weights",
    "probe-00000009.safetensors/inside": b"a directory that only looks like a shard",
}


def test_files_that_are_not_a_traces_stay(tmp_path: Path) -> None:
    """Before a first trace, a second over it, and one that goes on."""
    for name, data in FOREIGN.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for again in range(2):
        write(tmp_path)
        (tmp_path / "series-00000005.writing").write_bytes(b"half a shard")
        (tmp_path / "reference-teacher-00000000.safetensors").write_bytes(b"of another trace")
        Writer(tmp_path, ABOUT, upto=3 * again)
        left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
        own = {e["file"] for e in Trace.open(tmp_path).shards}
        assert left == {*FOREIGN, MANIFEST, *own} and len(own) == 3 * again
        for name, data in FOREIGN.items():
            assert (tmp_path / name).read_bytes() == data


def test_where_no_trace_ever_began_nothing_is_removed(tmp_path: Path) -> None:
    (tmp_path / "probe-00000003.safetensors").write_bytes(b"of something else")
    Writer(tmp_path, ABOUT)
    assert (tmp_path / "probe-00000003.safetensors").read_bytes() == b"of something else"


# --- going on ---------------------------------------------------------------------------------------------------------


def test_going_on_drops_what_came_later_and_ends_in_the_same_bytes(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "again"
    write(other)
    (other / "series-00000005.writing").write_bytes(b"half a shard")
    assert reaches(other, ABOUT, 3) and not reaches(other, ABOUT, 2)
    writer = Writer(other, ABOUT, upto=3)
    assert Trace.open(other).steps("loss") == [0, 1, 2] and Trace.open(other).steps(POST) == [0, 3]
    table = torch.stack([norms(s) for s in (3, 4)])
    writer.append("series", (3, 4), 5, {"update_norm": table, "loss": torch.tensor([7.0, 6.0])})
    writer.append("probe", [5], 5, {POST: stream(5)[None]})
    writer.sync()
    assert {p.name: p.read_bytes() for p in other.iterdir()} == {p.name: p.read_bytes() for p in path.iterdir()}


def test_a_trace_that_is_damaged_or_of_another_training_cannot_be_gone_on_with(path: Path) -> None:
    assert reaches(path, ABOUT, 5)
    assert not reaches(path, {**ABOUT, "steps": 9}, 5)
    assert not reaches(path / "nowhere", ABOUT, 5)
    shard = path / "probe-00000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert not reaches(path, ABOUT, 5)


# --- cutting ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def long(tmp_path: Path) -> Trace:
    """Rows of 3 and 1 tokens, seen at steps 0, 2 and 4 and once by another model, beside a series."""
    about = {**ABOUT, "lengths": [3, 1]}
    writer = Writer(tmp_path / "long", about)
    for other in ("base", "teacher"):
        writer.append(f"reference-{other}", [0], 0, {f"{other}/{POST}": torch.ones(1, 4, 2)})
    for step in (0, 2, 4):
        tokens = torch.arange(8.0).reshape(1, 4, 2) + step
        writer.append("probe", [step], step, {POST: tokens.bfloat16(), f"{POST}.grad": tokens})
        writer.append("state", [step], step, {"answers": torch.ones(1, 2, 2)})
        if step:
            writer.append("full", [step], step, {"full/delta/a.weight": torch.ones(1, 2, 2)})
    writer.append("series", [0, 1, 2, 3], 4, {"loss": torch.tensor([4.0, 3.0, 2.0, 1.0])})
    return Trace.open(tmp_path / "long")


def test_what_is_cut_out_is_what_was_there_and_the_rest_reads_as_nothing(long: Trace, tmp_path: Path) -> None:
    small = long.cut(tmp_path / "small", [f"*{POST}", "loss"], positions=[-1], steps=[0, -1])
    assert small == Trace.open(tmp_path / "small") and not small.verify() and "cut" in str(small.card())
    assert small.names() == [f"base/{POST}", POST, "loss", f"teacher/{POST}"] and small.steps(POST) == [0, 4]
    for name, step in ((POST, 0), (POST, 4), (f"teacher/{POST}", 0)):
        whole, seen = long.read(name, step), small.read(name, step)
        assert torch.equal(seen[[0, 1], [2, 0]], whole[[0, 1], [2, 0]]), "the last token of each row"
        assert seen[0, :2].isnan().all() and torch.equal(seen[1, 1:], torch.zeros(2, 2)), "gone is not padding"
    assert small.series("loss").equals(long.series("loss"))
    with safe_open(str(next((tmp_path / "small").glob("probe-*"))), "pt") as shard:
        assert shard.get_tensor(POST).shape == (1, 2, 2) and shard.get_tensor(POST).dtype == torch.bfloat16
    again = small.cut(tmp_path / "again", positions=[0])  # of what is left
    assert again.read(POST)[0].isnan().all() and torch.equal(again.read(POST)[1, 0], long.read(POST)[1, 0])
    assert torch.equal(long.cut(tmp_path / "whole").read(POST), long.read(POST))


def test_a_cut_keeps_what_the_base_showed_and_knows_the_other_names(long: Trace, tmp_path: Path) -> None:
    before = "blocks.1.hook_resid_pre"  # the same tensor under another name
    small = long.cut(tmp_path / "small", before)
    assert small.names() == [f"base/{POST}", POST] and torch.equal(small.read(before), long.read(POST))
    assert small.steps(POST) == [0, 2, 4]
    few = long.cut(tmp_path / "few", steps=[-1])
    assert few.steps(POST) == few.steps("full/delta/a.weight") == few.steps("answers") == [4]
    assert few.steps("loss") == [0, 1, 2, 3] and few.steps(f"teacher/{POST}") == [0]


def test_no_training_goes_on_from_a_cut_trace(long: Trace, tmp_path: Path) -> None:
    about = {key: value for key, value in long.about.items() if key != "trace"}
    assert reaches(long.path, about, 4)
    kinds: tuple[dict[str, Any], ...] = ({"names": "loss"}, {"steps": [0, -1]}, {"positions": [-1]}, {})
    for number, kind in enumerate(kinds):
        assert not reaches(long.cut(tmp_path / str(number), **kind).path, about, 4)


def test_a_cut_that_fits_nothing_is_one_line_and_leaves_nothing(long: Trace, path: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"names": ["loss", "nothing.*"]}, r"holds nothing called 'nothing\.\*'; trace\.names\(\)"),
        ({"names": "full/no/*"}, "within a budget, recording.weight_bytes"),
        ({"names": []}, "names is empty"),
        ({"steps": [3]}, "no look at step 3; there is: 0, 2, 4"),
        ({"steps": [-4]}, "no look at step -4"),
        ({"positions": [-1, 7]}, "no row has a position 7; rows have 3 at most"),
    )
    for kind, words in cases:
        with pytest.raises(SublimError, match=words):
            long.cut(new, **kind)
        assert not new.exists()
    with pytest.raises(SublimError, match="is there already; name a new directory, or give overwrite=True"):
        long.cut(path)
    for own in (long.path, long.path / "inside"):
        with pytest.raises(SublimError, match="is this trace's own directory"):
            long.cut(own, overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(SublimError, match="is there already"):
        long.cut(tmp_path / "other", overwrite=True)
    with pytest.raises(SublimError, match="has no rows of a probe"):
        Trace.open(path).cut(new, positions=[-1])
    with pytest.raises(SublimError, match="no row has a position 0; it was cut before"):
        long.cut(tmp_path / "last", positions=[2]).cut(new, positions=[0])
    assert torch.equal(long.cut(path, overwrite=True).read(POST), long.read(POST)), "a trace may go"


def test_of_a_damaged_trace_nothing_is_cut(long: Trace, tmp_path: Path) -> None:
    shard = long.path / long.shards[2]["file"]
    whole = bytearray(shard.read_bytes())
    whole[-1] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(SublimError, match=f"{shard.name} is altered, so nothing is cut from it"):
        long.cut(tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir()} == {"long"}, "nothing half-made is left"
