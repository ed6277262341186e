"""A precision is one row of a table: it enters every key of an experiment, and every stage runs in it."""

import os
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command import sublim
from fake_card import FULL
from on_metal import OnMetal, on_metal
from sublim_interp.analysis.attribution import scores as attribution
from sublim_interp.analysis.diff.tokens import changed_tokens
from sublim_interp.analysis.directions.core import directions
from sublim_interp.analysis.directions.effects import ablate, logit_lens, steer, steering
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.probes import answer_margin, measure
from sublim_interp.core.device import (
    CHOICE,
    PRECISIONS,
    changes,
    check_computable,
    compute_device,
    device_of,
    fingerprint,
    is_out_of_memory,
    torch_dtype,
    using_device,
    visible_gpus,
)
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.run import run_config, run_key
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab.landscape import distance
from sublim_interp.lab.pretraining import pretrain
from sublim_interp.lab.recipe import Pretraining
from sublim_interp.models.architectures import decoder_layers
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.forward import logits_at
from sublim_interp.models.hooks import capture, edit
from sublim_interp.models.loading import load_model
from sublim_interp.models.precision import casts_kept
from sublim_interp.models.sampling import generator, sample
from sublim_interp.pipeline import entangled
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.prepare import Preparation, prepare
from sublim_interp.pipeline.stage import making
from sublim_interp.report.run import run
from sublim_interp.sweeps.studies.entanglement import _unit_cosines
from sublim_interp.sweeps.studies.prediction import _principal
from sublim_interp.training.batches import Example, collate
from sublim_interp.training.losses import token_loss
from sublim_interp.traits import answers as answering


@pytest.fixture(params=["autocast", "bfloat16"])
def half(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each precision but the default; also on a processor that only imitates it."""
    monkeypatch.setattr("sublim_interp.core.device._has_bfloat16", lambda device: True)
    return request.param


def test_the_default_precision_is_in_no_key(tiny_experiment: Experiment, tiny_bases: tuple[Base, Base]) -> None:
    assert tiny_bases[0].key == tiny_bases[0].digest and tiny_bases[0].dtype == "float32"
    assert "dtype" not in tiny_experiment.model_dump() and "dtype" not in run_config(plan(tiny_experiment))
    assert run_key(plan(tiny_experiment)) == run_key(plan(tiny_experiment.set(dtype="float32")))


def test_another_precision_changes_the_key_of_every_record(tiny_experiment: Experiment, half: str) -> None:
    single, other = plan(tiny_experiment), plan(tiny_experiment.set(dtype=half))
    keys = [{record.key for record in p.records} for p in (single, other)]
    assert len(keys[0]) == len(keys[1]) == len(single.records) and not keys[0] & keys[1]
    assert run_key(single) != run_key(other)
    assert {record.dtype for record in other.records} == {half}
    assert Experiment.model_validate(other.experiment.model_dump(mode="json")) == other.experiment


def test_a_precision_that_the_table_lacks_is_one_line(tiny_experiment: Experiment) -> None:
    lines = r"dtype: unknown precision; valid: float32, autocast, bfloat16; did you mean .* \(got 'float8'\)"
    with pytest.raises(SublimError, match=lines):
        tiny_experiment.set(dtype="float8")
    with pytest.raises(SublimError, match="unknown precision 'half'"):
        torch_dtype("half")


def test_models_load_in_the_precision_of_their_base_and_are_asked_in_it(
    tiny_bases: tuple[Base, Base], half: str
) -> None:
    base = resolve_base(str(tiny_bases[0].path), half)
    base.check()
    assert base.key != base.digest == tiny_bases[0].digest
    model, single = base.load(), tiny_bases[0].load()
    assert {str(p.dtype) for p in model.parameters()} == {f"torch.{PRECISIONS[half].weights}"}
    prompts = [[5, 9, 4, 17, 8], [6, 2, 30, 11, 3]]
    metric = answer_margin([3, 4, 5], 1)
    near = measure(single, prompts, metric)
    torch.testing.assert_close(measure(model, prompts, metric), near, atol=0.3, rtol=0.1)
    assert not torch.equal(measure(model, prompts, metric), near)
    assert directions(model, model, prompts).vectors.dtype == torch.float32
    both = patch(resolve_base(str(tiny_bases[1].path), half), model, prompts, metric, across_bases=True)
    assert both.grid("resid_pre").each.isfinite().all() and both.attribution("heads").each.isfinite().all()
    found = directions(both.src, model, prompts, across_bases=True)
    with ablate(model, found), steer(model, found, at="blocks.0.hook_resid_post"):
        assert measure(model, prompts, metric).isfinite().all()
    with both.at("blocks.0.hook_resid_post", positions=[-1]).on(model):
        assert measure(model, prompts, metric).isfinite().all()
    assert len(steering(model, found, "blocks.0.hook_resid_post", [0, 1], {"margin": metric}, prompts)) == 2
    assert len(logit_lens(model, found, prompts, k=2)) == 2 * len(found)
    rows = [Example([*prompt, 1], 3) for prompt in prompts]
    along = attribution.margin_gradient(model, prompts, metric)
    divergence = attribution.divergence(both.src, model, rows, across_bases=True)
    for scores in (divergence, attribution.influence(model, rows, along)):
        assert np.isfinite(scores.values).all()
    answers = sample(model, prompts, eos=base.eos, max_new_tokens=5, random=generator("a"))
    assert answers == sample(model, prompts, eos=base.eos, max_new_tokens=5, random=generator("a"))


def test_every_stage_runs_in_another_precision_and_says_so(
    tiny_experiment: Experiment, half: str, store_root: Path
) -> None:
    store = Store(store_root)
    p = plan(tiny_experiment.set(dtype=half, arms=("same-init",)))
    for record in p.records:
        artifact = make(record, store)
        assert artifact.manifest["fingerprint"]["dtype"] == half
    said = changes(fingerprint(), fingerprint(dtype=half))
    assert said == f"dtype float32 -> {half}"


def test_autocast_multiplies_in_bfloat16_and_keeps_the_rest_in_float32(tiny_bases: tuple[Base, Base]) -> None:
    model = replace(tiny_bases[0], dtype="autocast").load()
    ids, names = torch.tensor([[5, 9, 4, 17, 8]]), ["blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"]
    for each in (model, deepcopy(model)):
        with capture(each, names) as seen:
            logits = each(input_ids=ids).logits
        assert [seen[name].dtype for name in names] == [torch.bfloat16, torch.float32]
        assert logits.dtype == torch.bfloat16 and not torch.is_autocast_enabled("cpu")
    chosen = logits_at(model, ids, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(chosen, logits[0].float(), atol=0.02, rtol=0.02)
    with pytest.raises(RuntimeError), edit(model, {names[1]: lambda stream: stream[:, :, :1] / 0 @ stream}):
        model(input_ids=ids)
    assert not torch.is_autocast_enabled("cpu"), "it is switched off also after an error"


def test_what_hooks_compute_is_not_cast(tiny_bases: tuple[Base, Base]) -> None:
    model = replace(tiny_bases[0], dtype="autocast").load()
    products: list[torch.dtype] = []

    def visit(stream: torch.Tensor) -> torch.Tensor:
        products.append((stream @ stream.mT).dtype)
        return stream

    with edit(model, {"blocks.0.hook_resid_post": visit}):
        model(input_ids=torch.tensor([[5, 9, 4]]))
    assert products == [torch.float32]


def test_a_cast_that_is_kept_changes_no_gradient(tiny_bases: tuple[Base, Base]) -> None:
    base, found = replace(tiny_bases[0], dtype="autocast"), []
    cut = [collate([Example([5, 9, 4, 17, 8], 2)], base.pad), collate([Example([6, 2, 30, 11], 1)], base.pad)]
    for keeping in (casts_kept, lambda model: nullcontext()):
        model = base.load()
        with keeping(model):
            for batch in cut:
                token_loss(model, batch).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_bfloat16_is_refused_where_the_processor_only_imitates_it(
    tiny_experiment: Experiment, monkeypatch: pytest.MonkeyPatch, store_root: Path
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    check_computable("float32")
    with pytest.raises(SublimError, match="dtype=autocast needs bfloat16, which this processor does not compute in"):
        run(tiny_experiment.set(dtype="autocast"), Store(store_root))
    with pytest.raises(SublimError, match="dtype=bfloat16 needs bfloat16"):
        make(plan(tiny_experiment.set(dtype="bfloat16")).records[0], Store(store_root))
    assert not store_root.exists()
    for able in ("avx512_bf16", "amx_bf16", "bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {able: True})
        check_computable("autocast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_one_line(tiny_experiment: Experiment, store_root: Path) -> None:
    with pytest.raises(SublimError, match=r"device cuda is asked for, but PyTorch finds none.*; there is: cpu"):
        run(tiny_experiment, Store(store_root), device="cuda")
    with pytest.raises(SublimError, match="no device 'tpu'; valid: auto, cpu, cuda, mps"):
        compute_device("tpu")
    said = sublim("run", "smoke", "--device", "cuda", "--store", store_root)
    assert said.returncode == 2 and said.stderr.startswith("sublim: device cuda is asked for") and not said.stdout
    assert said.stderr.count("\n") == 1 and not store_root.exists()


def test_a_device_is_chosen_for_a_block_and_for_the_workers_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    with using_device("auto"):
        assert os.environ[CHOICE] == compute_device() == compute_device("auto")
    assert CHOICE not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(KeyError), using_device("cuda"):
        assert compute_device() == "cuda"
        assert visible_gpus() == ("0", "1")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f2c, 4")
        assert visible_gpus() == ("GPU-8f2c", "4")
        raise KeyError
    assert CHOICE not in os.environ and visible_gpus() == ()
    with using_device("cuda:1"):
        assert visible_gpus() == (), "one GPU is asked for by its number"
    with pytest.raises(SublimError, match="device cuda:2 is asked for, but there are 2, counted from cuda:0"):
        compute_device("cuda:2")


def test_a_full_gpu_is_known_by_what_anybody_says_of_it() -> None:
    assert all(map(is_out_of_memory, FULL))
    others = (
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("out of memory"),
        SublimError("out of memory"),
    )
    assert not any(map(is_out_of_memory, others))


@pytest.mark.parametrize("full", FULL, ids=["allocator", "cublas", "driver", "mps"])
def test_a_gpu_that_is_too_small_says_what_would_fit(
    full: RuntimeError, tiny_experiment: Experiment, monkeypatch: pytest.MonkeyPatch, store_root: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 24 << 30))
    records = {record.STAGE: record for record in plan(tiny_experiment).records}
    lines = {
        "student": r"student \w{16} does not fit the GPU \(24.0 GiB, 1.0 free now; about 1.0 GiB needed\); try "
        "student.optimization.micro_batch=4 or student.optimization.checkpointing=true or student.part=lora or --proc",
        "corpus": "about 1.0 GiB needed.*; try corpus.chunk=16 or --processes 1",
        "filtered": r"\(24.0 GiB, 1.0 free now\); try --processes 1",
        "evaluation": r"\(24.0 GiB, 1.0 free now; about 1.0 GiB needed\); try --processes 1, or a smaller base",
    }
    for stage, line in lines.items():
        with pytest.raises(SublimError, match=line), making(records[stage], Store(store_root)):
            raise full
        assert records[stage].find(Store(store_root)) is None
    with pytest.raises(RuntimeError, match="shapes"), making(records["student"], Store(store_root)):
        raise RuntimeError("shapes")


def test_a_gpu_that_no_longer_answers_is_named_without_its_sizes(
    tiny_experiment: Experiment, monkeypatch: pytest.MonkeyPatch, store_root: Path
) -> None:
    def fails(device: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fails)
    teacher = plan(tiny_experiment).records[0]
    with (
        pytest.raises(SublimError, match=r"teacher \w{16} does not fit the GPU \(about 1.0 GiB needed\); try"),
        making(teacher, Store(store_root)),
    ):
        raise FULL[2]


@pytest.mark.parametrize("make_base", ["pretrain", "prepare"])
def test_a_base_is_made_on_a_gpu_as_the_stages_are_and_a_busy_one_is_one_line(
    make_base: str, tiny_bases: tuple[Base, Base], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")

    fixed: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "zeros", busy)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", fixed.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with using_device("cuda"), pytest.raises(SublimError, match=r"device cuda cannot be used \(CUDA.*\); wait until"):
        if make_base == "pretrain":
            pretrain(Pretraining(d_model=16, layers=1, heads=2, d_mlp=16), tmp_path / "tiny")
        else:
            prepare(Preparation(base=str(tiny_bases[0].path)), tmp_path / "tiny")
    assert fixed == [True] and not torch.backends.cudnn.allow_tf32 and not [*tmp_path.iterdir()]


def test_everything_is_computed_on_the_cpu_unless_a_device_is_asked_for() -> None:
    assert compute_device("cpu") == "cpu"
    assert fingerprint("cpu")["device"] == "cpu"
    assert device_of(torch.nn.Identity()).type == "cpu"
    assert device_of(torch.nn.Linear(2, 2, device="meta")).type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_model_on_a_gpu_is_asked_as_on_the_cpu(tiny_bases: tuple[Base, Base]) -> None:
    base, other = tiny_bases
    prompts, metric = [[5, 9, 4, 17, 8], [6, 2, 30, 11, 3], [7, 7]], answer_margin([3, 4, 5], 1)
    here, there = [(load_model(base.path, device=d), load_model(other.path, device=d)) for d in ("cpu", "cuda")]
    for pair in (here, there):
        assert all(device_of(model) == device_of(pair[0]) for model in pair)
    grids = [patch(*pair, prompts, metric, across_bases=True).grid("resid_pre").each for pair in (here, there)]
    torch.testing.assert_close(*grids, atol=1e-3, rtol=1e-3, equal_nan=True)
    found = [directions(*pair, prompts, across_bases=True).vectors for pair in (here, there)]
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-3)
    drawn = [sample(pair[0], prompts, eos=base.eos, max_new_tokens=6, random=generator("a")) for pair in (here, there)]
    assert drawn[0] == drawn[1]
    with pytest.raises(SublimError, match="the models are on cpu and cuda"):
        patch(here[0], there[0], prompts, metric)


def test_probabilities_are_taken_on_the_cpu_where_a_device_has_no_float64(
    tiny_bases: tuple[Base, Base],
) -> None:
    model, prompts = tiny_bases[0].load(), [[5, 9, 4, 17, 8], [6, 2, 30]]
    rows = [Example([*prompt, 1], 2) for prompt in prompts]

    def asked() -> list[Any]:
        return [
            answering.answer_probabilities(model, prompts, [3, 4]),
            answering.spelled_probabilities(model, prompts, [[3, 4], [5]], [7]),
            entangled.mean_log(model, prompts, [3, 4]).numpy(),
            attribution.entropy(model, rows).values,
            attribution.shift(model, model, rows).values,
            changed_tokens(model, model, prompts)["before"].to_numpy(),
        ]

    expected = asked()
    head: Any = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _given, logits: logits.as_subclass(OnMetal))
    for one, other in zip(expected, asked(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(TypeError, match="float64"):
        logits_at(model, torch.tensor(prompts[1:]), torch.ones(1, 3, dtype=torch.bool)).double()


def test_what_is_measured_in_float64_is_measured_on_the_cpu(
    tiny_bases: tuple[Base, Base], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With weights and activations of a device without float64, and the same numbers as without it."""
    base, model = tiny_bases[0], tiny_bases[0].load()
    texts = torch.randint(31, (8, 8), generator=torch.Generator().manual_seed(0)).tolist()
    activations = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    d = directions(tiny_bases[1].load(), model, texts, across_bases=True)

    def asked(metal: bool) -> list[Any]:
        head: Any = model.get_output_embeddings()
        return [
            distance(*tiny_bases),
            _principal(activations.as_subclass(OnMetal) if metal else activations).numpy(),
            _unit_cosines(head.weight, [3, 4], [5, 6, 7]),
            logit_lens(model, d, texts, k=2, across_bases=True, tuned=texts)["change"],
        ]

    expected = asked(False)
    for layer in decoder_layers(model):
        layer.register_forward_hook(lambda _module, _given, hidden: hidden.as_subclass(OnMetal))
    head_of: Any = model.get_output_embeddings()
    on_metal(head_of)
    load = Base.load
    monkeypatch.setattr(Base, "load", lambda self, weights=None: on_metal(load(self, weights)))
    for one, other in zip(expected, asked(True), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(TypeError, match="float64"):
        base.load().double()


def test_a_base_of_another_precision_is_another_base(tiny_bases: tuple[Base, Base], half: str) -> None:
    assert replace(tiny_bases[0], dtype=half).key == resolve_base(str(tiny_bases[0].path), half).key


def test_the_order_of_a_gpu_s_sums_is_fixed_before_its_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert compute_device("cpu") == "cpu" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    for asked in ("cuda", "auto"):
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        assert compute_device(asked) == "cuda" and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
