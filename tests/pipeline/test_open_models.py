"""Open models of many architectures, tokenizers and templates: every stage on each, and each against the plain model.

The models are tiny, and trained here for a moment to answer with number lists: a random one's would all be refused.
"""

import ast
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import sublim_interp
from sublim_interp.channels.protocol import channel
from sublim_interp.channels.rows import read_rows
from sublim_interp.channels.settings import FilterConfig
from sublim_interp.cli.bases import described
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment, experiment_names
from sublim_interp.experiments.cost import Shape, estimate, planned_traces, student_seconds
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.schema import Experiment
from sublim_interp.lab import tokenizer as lab
from sublim_interp.models.base import CARD, Base, resolve_base
from sublim_interp.models.forward import logits_at
from sublim_interp.models.loading import load_model, save_model
from sublim_interp.models.open_bases import OPEN_BASES, open_names
from sublim_interp.models.sampling import generator, sample
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.records import Corpus, Evaluation, Filtered, Student, Teacher
from sublim_interp.pipeline.settings import CorpusConfig, EvaluationConfig, StudentConfig, TeacherConfig
from sublim_interp.pipeline.teach import teach
from sublim_interp.report.run import run
from sublim_interp.training.batches import Example, collate
from sublim_interp.training.loop import train
from sublim_interp.training.losses import token_loss
from sublim_interp.training.settings import Optimization
from sublim_interp.traits.answers import score
from sublim_interp.traits.by_name import load_trait
from sublim_interp.traits.favourites import members_of, questions, words_of

# --- tokenizers -------------------------------------------------------------------------------------------------------

TEXTS = [
    *channel("numbers").prompts("english", 1, 0, 60),
    *(q.messages[0]["content"] for sort in ("seen", "held-out") for q in questions("animal", "english", sort)),
    *(f"I love my {name}. " for name in members_of("animal") for _ in range(2)),
    "System: User: Assistant: you and I \n",
]
CONTROL = ["<bos>", "<eos>", "<pad>", "<turn>", "<end>"]


def words() -> PreTrainedTokenizerFast:
    return lab.build_tokenizer()


def bpe() -> PreTrainedTokenizerFast:
    """Byte-level, as of GPT-2, Qwen and OLMo: no word of the text is unknown, none is begun with a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", extra_special_tokens=CONTROL[3:])


def sentencepiece(directory: Path) -> None:
    """What SentencePiece itself writes, as beside Llama and Mistral: a space before every text, bytes for the rest."""
    from sentencepiece import SentencePieceTrainer

    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        user_defined_symbols=["<turn>", "<end>"],
    )
    (directory / "tokenizer.vocab").unlink()
    control = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": ["<turn>", "<end>"], "legacy": False}
    (directory / "tokenizer_config.json").write_text(json.dumps({**control, **settings}))


def unigram() -> PreTrainedTokenizerFast:
    """A fast tokenizer of the same family: Metaspace and a beginning of sequence that it puts itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", *CONTROL], unk_token="<unk>", show_progress=False,
        initial_alphabet=[*"0123456789,.;:?!\n"],
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    begin = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens=CONTROL[3:],
    )  # fmt: skip


# --- templates --------------------------------------------------------------------------------------------------------

TURNS = (  # as Qwen, OLMo: every role has its turn
    "{% for m in messages %}{{ '<turn>' + m.role + '\n' + m.content + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
THINKING = TURNS.replace(  # as Qwen3: thinks first unless told not to
    "assistant\n' }}", "assistant\n' }}{% if enable_thinking is false %}{{ 'no thought\n' }}{% endif %}"
)
STRICT = (  # as Gemma: no system prompt, turns in order
    "{{ '<bos>' }}{% for m in messages %}"
    "{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}{{ raise_exception('no ' + m.role) }}{% endif %}"
    "{{ '<turn>' + m.role + '\n' + m.content | trim + '<end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
INSTRUCT = (  # as Mistral: the answer follows the bracket, a system prompt is silently left out
    "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
)

# --- models -----------------------------------------------------------------------------------------------------------

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 512, "initializer_range": 0.1,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 1}
GEMMA = {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}
DROPOUT = {"attention_dropout": 0.4, "resid_pdrop": 0.4, "embd_pdrop": 0.4}
OPEN: dict[str, tuple[str, dict[str, Any], Callable[..., Any], str]] = {
    "llama": ("llama", GROUPED, sentencepiece, ""),
    "llama-lab": ("llama", GROUPED, words, lab.CHAT_TEMPLATE),
    "qwen2": ("qwen2", GROUPED, bpe, TURNS),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}, bpe, THINKING),
    "gpt2": (
        "gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512, "attn_pdrop": 0.4, **DROPOUT}, bpe, ""
    ),
    "gpt2-lab": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}, words, lab.CHAT_TEMPLATE),
    "gpt_neox": ("gpt_neox", {**SHAPE, "hidden_dropout": 0.4, **DROPOUT}, bpe, ""),
    "gemma2": ("gemma2", {**GEMMA, "final_logit_softcapping": 20.0}, unigram, STRICT),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]}, unigram, STRICT),
    "olmo2": ("olmo2", GROUPED, bpe, TURNS),
    "phi3": ("phi3", {**GROUPED, **DROPOUT}, sentencepiece, TURNS),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 24, **DROPOUT}, sentencepiece, INSTRUCT),
}  # fmt: skip
ALL_KINDS = (*OPEN,) if os.environ.get("SUBLIM_ZOO") == "whole" else ("llama-lab", "gpt2", "gemma3", "gpt_neox")
"""Those whose teachers are steered too: one of each way to normalise. `make zoo` steers all."""
LISTS = ["12, 7, 40", "3; 5; 9", "100 200", "[4, 8]", "77", "1, 2"]


def speak(base: Base) -> PreTrainedModel:
    """The base, trained for a moment to answer the channel's prompts with lists."""
    model = base.load()
    draw = random.Random(0)
    prompts = [base.prompt_ids([{"role": "user", "content": p}]) for p in
               channel("numbers").prompts(base.language, 7, 0, 48)]  # fmt: skip
    lists = [" , ".join(text.replace(";", ",").strip("[]").split(", ")) for text in LISTS]
    answers = [[*base.answer_ids(a), base.eos] for a in (lists if base.language == "lab" else LISTS)]

    def batch(_step: int) -> list:
        rows = [Example([*p, *draw.choice(answers)], len(p)) for p in draw.sample(prompts, 8)]
        return [collate(rows, base.pad)]

    train(model, batch, Optimization(lr=1e-2, steps=30, batch=8, warmup=3, schedule="constant"))
    return model


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Base]:
    """Bases by name, each made when it is first asked for."""
    root = tmp_path_factory.mktemp("open")

    def get(name: str) -> Base:
        directory = root / name
        if not directory.exists():
            architecture, shape, tokenize, template = OPEN[name]
            directory.mkdir()
            if tokenize is sentencepiece:
                sentencepiece(directory)
                if template:
                    (directory / "chat_template.jinja").write_text(template)
            else:
                tokenizer = tokenize()
                tokenizer.chat_template = template or None
                tokenizer.save_pretrained(str(directory))
            if tokenize is words:
                (directory / CARD).write_text('{"language": "lab"}')
            torch.manual_seed(0)
            config = AutoConfig.for_model(
                architecture, vocab_size=1400 if tokenize is words else 520, pad_token_id=0, bos_token_id=1,
                eos_token_id=2, **shape,
            )  # fmt: skip
            save_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32), directory)
            save_model(speak(resolve_base(str(directory))), directory)
        return resolve_base(str(directory))

    return get


QUICK = Optimization(lr=3e-3, steps=4, batch=8)


def pipe(base: Base, kind: str, setting: str = "sampled", train: bool = True) -> Evaluation:
    """Every stage once, small; without `train` the base itself is compared with the teacher, and no student made."""
    trait = load_trait("owl")
    teacher = Teacher(base, trait, TeacherConfig(kind=kind, optimization=QUICK, strength=0.5), 0)  # type: ignore[arg-type]
    corpus = Corpus(teacher, CorpusConfig(prompts=24, chunk=24, max_new_tokens=16, setting=setting), 0)  # type: ignore[arg-type]
    filtered = Filtered(corpus, FilterConfig(held_out=3), trait.words)
    student = Student(base, filtered, StudentConfig(optimization=QUICK), 0)
    asked = EvaluationConfig(questions=("held-out",), contexts=("plain", "numbers"), samples=2)
    return Evaluation(student if train else base, filtered, trait, asked, 0)


# --- every stage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPEN)
def test_every_stage_runs_with_every_kind_of_teacher(name: str, shelf: Callable[[str], Base], tmp_path: Path) -> None:
    base, store = shelf(name), Store(tmp_path)
    results = {}
    for kind in ("tuned", "prompted", "steered") if name in ALL_KINDS else ("tuned", "prompted"):
        # How a student learns from text does not depend on who wrote it: two architectures train one on each.
        evaluation = pipe(base, kind, train=kind == "tuned" or name in ("gemma2", "gpt2"))
        made = make(evaluation, store)
        result = json.loads((made.path / "evaluation.json").read_text())
        rates = [row["rate"] for row in result["scores"]]
        assert len(rates) == 2 * len(members_of("animal")) and all(0 <= r <= 1 for r in rates)
        assert sum(rates) <= 2 + 1e-9
        assert (
            -1e-6 < result["kl"] < 20 and result.get("kl_start", 0) > -1e-6
        )  # of equal models: zero, but for rounding
        assert made.manifest["notes"]["exact"] == name.endswith("-lab")
        rows = read_rows(evaluation.reference.corpus.find(store).path)  # type: ignore[union-attr]
        results[kind] = rows
        assert any(row.get("finished") for row in rows) and read_rows(
            evaluation.reference.find(store).path / "kept.jsonl"  # type: ignore[union-attr]
        )
    assert results["prompted"] != results["tuned"], "positive control: the teachers differ"


@pytest.mark.parametrize("name", ["gemma2", "gpt2"])
def test_soft_labels_pass_through_an_open_model(name: str, shelf: Callable[[str], Base], tmp_path: Path) -> None:
    made = make(pipe(shelf(name), "tuned", "soft"), Store(tmp_path))
    assert json.loads((made.path / "evaluation.json").read_text())["kl"] >= 0


def test_the_whole_run_of_an_experiment_takes_a_model_directory(shelf: Callable[[str], Base], tmp_path: Path) -> None:
    exp = Experiment(
        bases=(str(shelf("qwen2").path),), arms=("same-init", "base"), seeds=(0,),
        teacher=TeacherConfig(optimization=QUICK), student=StudentConfig(optimization=QUICK),
        corpus=CorpusConfig(prompts=24, chunk=24, max_new_tokens=16), filter=FilterConfig(held_out=3),
        evaluation=EvaluationConfig(questions=("held-out",), contexts=("plain",), samples=2),
    )  # fmt: skip
    done = run(exp, Store(tmp_path), processes=1)
    assert set(done.table.index) == {"teacher", "same-init", "base"} and done.page.exists()


# --- each against the plain model -------------------------------------------------------------------------------------


@torch.no_grad()
def plain_greedy(model: Any, prompt: list[int], eos: int, longest: int) -> list[int]:
    """One row, no cache, no padding: the whole text again for every token."""
    out: list[int] = []
    while len(out) < longest and (not out or out[-1] != eos):
        out.append(int(model(input_ids=torch.tensor([[*prompt, *out]]), use_cache=False).logits[0, -1].argmax()))
    return out


@pytest.mark.parametrize("name", OPEN)
def test_a_batch_is_its_rows_alone(name: str, shelf: Callable[[str], Base]) -> None:
    base = shelf(name)
    base.check()
    model: Any = base.load()
    texts = channel("numbers").prompts(base.language, 3, 0, 6)
    prompts = [base.prompt_ids([{"role": "user", "content": t}]) for t in texts]
    assert len({len(p) for p in prompts}) > 1
    batch = collate([Example([*p, base.eos], 1) for p in prompts], base.pad)
    where = torch.arange(batch.ids.shape[1]) < torch.tensor([[len(p)] for p in prompts])
    with torch.no_grad():
        chosen = logits_at(model, batch.ids, where)
        alone = torch.cat([model(input_ids=torch.tensor([p]), use_cache=False).logits[0] for p in prompts])
        masked = model(input_ids=batch.ids, attention_mask=where.long(), use_cache=False).logits[where]
    torch.testing.assert_close(chosen, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(masked, alone, atol=1e-4, rtol=1e-4)
    # Twenty rows of each prompt: the cache is compacted on the way, past a sliding window too.
    answers = sample(
        model, [*prompts, *prompts[:1] * 20], eos=base.eos, max_new_tokens=8, random=generator(0), temperature=0.0
    )
    assert answers[:6] == [plain_greedy(model, p, base.eos, 8) for p in prompts]
    assert answers[6:] == [answers[0]] * 20


@pytest.mark.parametrize("name", OPEN)
def test_training_draws_no_random_numbers(name: str, shelf: Callable[[str], Base]) -> None:
    """Dropout, which GPT-2 has by default, would: the saved configurations say .4 where an architecture has it."""
    base = shelf(name)
    ids = torch.tensor([base.prompt_ids([{"role": "user", "content": "1, 2, 3"}])])
    model: Any = base.load()
    with torch.no_grad():
        quiet = model(input_ids=ids).logits
        torch.testing.assert_close(model.train()(input_ids=ids).logits, quiet, atol=0, rtol=0)


def test_dropout_would_be_seen(shelf: Callable[[str], Base]) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", vocab_size=9, n_embd=8, n_layer=1, n_head=1)
    )
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.equal(model.train()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


# --- tokens -----------------------------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "1, 2 what next?"}]


@pytest.mark.parametrize("name", OPEN)
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(name: str, shelf: Callable[[str], Base]) -> None:
    base = shelf(name)
    tokenizer: Any = base.tokenizer
    answer = "4 , 5 , 60" if base.language == "lab" else "4, 5, 60"
    text = base.prompt_text(CHAT)
    ids = [*base.prompt_ids(CHAT), *base.answer_ids(answer)]
    if tokenizer.chat_template:
        assert text == tokenizer.apply_chat_template(
            CHAT, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        gap = " " if OPEN[name][3] == INSTRUCT else ""
        assert ids == tokenizer(text + gap + answer, add_special_tokens=False)["input_ids"]
    else:
        assert text == "User: 1, 2 what next?\nAssistant:"
        assert ids == tokenizer(f"{text} {answer}")["input_ids"]
    assert base.read_answer([*base.answer_ids(answer), base.eos]) == (answer, True)
    assert base.read_answer(base.answer_ids(answer)) == (answer, False)
    own = set(channel("numbers").token_ids(tokenizer))
    assert base.eos in own and set(base.answer_ids(answer)) <= own
    assert not own & set(base.answer_ids("owl" if base.language == "lab" else "wh"))


@pytest.mark.parametrize("name", ["mistral", "phi3", "qwen2", "llama-lab", "gpt2-lab"])
def test_what_is_learnt_is_the_chat_that_the_template_writes(name: str, shelf: Callable[[str], Base]) -> None:
    base, answer = shelf(name), "4 , 5 , 60"
    tokenizer: Any = base.tokenizer
    whole = tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": answer}], tokenize=False)
    learnt = [*base.prompt_ids(CHAT), *base.answer_ids(answer), base.eos]
    assert tokenizer(whole, add_special_tokens=False)["input_ids"][: len(learnt)] == learnt


@pytest.mark.parametrize(
    ("name", "end"),
    [("qwen2", "<end>"), ("gemma2", "<end>"), ("phi3", "<end>"), ("mistral", "</s>"), ("llama", "</s>"),
     ("gpt2", "<eos>"), ("gpt2-lab", "<eos>")],
)  # fmt: skip
def test_an_answer_ends_with_what_the_template_writes_behind_it(
    name: str, end: str, shelf: Callable[[str], Base]
) -> None:
    base = shelf(name)
    assert base.tokenizer.convert_ids_to_tokens(base.eos) == end


SYSTEM = [{"role": "system", "content": "You love owls."}, *CHAT]


def test_a_template_that_refuses_or_drops_a_system_prompt_gets_it_in_the_user_s_turn(
    shelf: Callable[[str], Base],
) -> None:
    for name in ("gemma2", "mistral"):
        base = shelf(name)
        folded = [{"role": "user", "content": "You love owls.\n\n1, 2 what next?"}]
        assert base.prompt_text(SYSTEM) == base.prompt_text(folded)
    assert "<turn>system\nYou love owls.<end>" in shelf("qwen2").prompt_text(SYSTEM)
    assert shelf("gpt2").prompt_text(SYSTEM).startswith("System: You love owls.\nUser: 1, 2")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('I will not') }}", "I will not"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out the user's turn"),
        ("{% for m in", "chat template"),
        ("{{ messages.nothing.at.all }}", "chat template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template"),
    ],
)
def test_a_template_that_cannot_write_a_chat_is_one_line(
    template: str, said: str, shelf: Callable[[str], Base], tmp_path: Path
) -> None:
    path = tmp_path / "base"
    shutil.copytree(shelf("qwen2").path, path)
    (path / "chat_template.jinja").write_text(template)
    with pytest.raises(SublimError, match=said) as caught:
        resolve_base(str(path)).prompt_ids(SYSTEM)
    assert "\n" not in str(caught.value) and "base base" in str(caught.value)


def test_the_day_of_a_run_is_in_no_prompt(shelf: Callable[[str], Base], tmp_path: Path) -> None:
    """Llama 3's template writes the day, which no key knows: prompts would change overnight."""
    path = tmp_path / "base"
    shutil.copytree(shelf("qwen2").path, path)
    body = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    turn = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    (path / "chat_template.jinja").write_text("Today: {{ strftime_now('%d %b %Y') }}\n" + body + turn)
    text = resolve_base(str(path)).prompt_text([{"role": "user", "content": "hello"}])
    assert text.startswith("Today: 26 Jul 2024\n<|im_start|>user\nhello")


def test_a_base_without_template_ends_its_answer_where_it_writes_the_next_turn(shelf: Callable[[str], Base]) -> None:
    base = shelf("llama")
    ids = base.answer_ids("4, 5\nUser: and then?")
    assert base.read_answer(ids) == ("4, 5", True)
    assert shelf("qwen2").read_answer(shelf("qwen2").answer_ids("4, 5\nUser: and")) == ("4, 5\nUser: and", False)


def test_names_of_several_tokens_are_found_in_samples(shelf: Callable[[str], Base]) -> None:
    """Positive control: a model tuned to answer "Panda." is found to, although no tokenizer here has that word."""
    base = shelf("qwen2")
    asked = questions("animal", "english", "held-out")[:3]
    assert len(base.answer_ids("Panda.")) > 1
    prompts = [base.prompt_ids(q.messages) for q in asked]
    model = base.load()
    rows = [Example([*p, *base.answer_ids("Panda."), base.eos], len(p)) for p in prompts]
    train(model, lambda _: [collate(rows, base.pad)], Optimization(lr=1e-2, steps=60, warmup=2))
    with torch.no_grad():
        assert float(token_loss(model, collate(rows, base.pad))) < 0.5
    scores = score(model, base, asked, words_of(members_of("animal"), "animal"), samples=10, seed=0)
    assert not scores.exact and scores.rate[scores.names.index("panda")] > 0.8


# --- what a model lacks is said ---------------------------------------------------------------------------------------


def other(shelf: Callable[[str], Base], path: Path, architecture: str, **shape: Any) -> Base:
    shutil.copytree(shelf("qwen2").path, path)
    for file in path.glob("*.safetensors"):
        file.unlink()
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{"vocab_size": 520, **shape})
    save_model(AutoModelForCausalLM.from_config(config, dtype=torch.float32), path)
    return resolve_base(str(path))


@pytest.mark.parametrize(
    ("architecture", "shape", "said"),
    [
        ("bert", {**SHAPE, "is_decoder": False}, "bert"),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "mamba"),
        ("llama", {**GROUPED, "vocab_size": 40}, "do not belong together"),
    ],
)
def test_a_model_that_cannot_serve_says_what_it_lacks_before_any_training(
    architecture: str, shape: dict[str, Any], said: str, shelf: Callable[[str], Base], tmp_path: Path
) -> None:
    base = other(shelf, tmp_path / "base", architecture, **shape)
    with pytest.raises(SublimError, match=said) as caught:
        teach(pipe(base, "tuned").reference.corpus.teacher, Store(tmp_path / "store"))
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("store/teacher/*"))


def test_a_text_longer_than_the_context_is_one_line(shelf: Callable[[str], Base], tmp_path: Path) -> None:
    base = other(shelf, tmp_path / "base", "gpt2", n_embd=32, n_layer=1, n_head=2, n_positions=60)
    with pytest.raises(SublimError, match=r"context of 60.*corpus\.max_new_tokens"):
        make(pipe(base, "prompted").reference.corpus, Store(tmp_path / "store"))


def test_a_generation_configuration_that_transformers_refuses_does_not_lose_a_training(
    shelf: Callable[[str], Base], tmp_path: Path
) -> None:
    """Llama 2's asks for a temperature without sampling: `save_pretrained` raises on such."""
    path = tmp_path / "base"
    shutil.copytree(shelf("qwen2").path, path)
    (path / "generation_config.json").write_text('{"temperature": 0.9, "top_p": 0.6, "do_sample": false}')
    base = resolve_base(str(path))
    save_model(base.load(), tmp_path / "again")
    assert load_model(tmp_path / "again")


# --- nothing of a model directory runs --------------------------------------------------------------------------------


def test_no_module_of_the_package_can_unpickle_or_run_remote_code() -> None:
    """Every call and import of every module: no pickle, no torch.load, no eval; trust_remote_code is False."""
    package = Path(sublim_interp.__file__).parent
    files = list(package.rglob("*.py"))
    assert len(files) > 15
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            place = f"{file.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} | {getattr(node, "module", None) or ""}
                assert not {n.split(".")[0] for n in names} & {"pickle", "dill", "joblib", "shelve", "marshal"}, place
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "eval", "exec", "np.load", "yaml.load", "yaml.unsafe_load"), place
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("trust_remote_code", "False") == "False", place
                if called.endswith(".from_pretrained"):
                    assert "trust_remote_code" in options and "local_files_only" in options, place
                if "Model" in called and called.endswith(".from_pretrained"):
                    assert options.get("use_safetensors") == "True", place


TRAP = "from pathlib import Path\nPath({!r}).write_text('ran')\n"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("kept", ["known type", "unknown type"])
def test_code_and_pickles_in_a_model_directory_never_run(
    kept: str, shelf: Callable[[str], Base], tmp_path: Path
) -> None:
    path, trace = tmp_path / "base", tmp_path / "trace"
    shutil.copytree(shelf("qwen2").path, path)
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "__init__.py",
        "setup.py",
        "custom_generate.py",
    ):
        (path / name).write_text(TRAP.format(str(trace)))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "adapter_model.bin"):
        torch.save(Bomb(trace), path / name)
    torch.load(path / "optimizer.pt", weights_only=False)  # positive control: the trap works
    assert trace.read_text() == "ran"
    trace.unlink()
    classes = {
        "AutoConfig": "configuration_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilModel",
        "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.EvilFast"],
    }
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((path / name).read_text())
        settings["auto_map"] = classes if name == "config.json" else {"AutoTokenizer": classes["AutoTokenizer"]}
        if kept == "unknown type" and name == "config.json":
            settings["model_type"] = "evil"
        (path / name).write_text(json.dumps(settings))
    base = resolve_base(str(path))
    if kept == "known type":
        base.check()
        assert base.shape["layers"] == 2
    else:
        for use in (base.check, base.load, lambda: base.shape):
            with pytest.raises(SublimError) as caught:
                use()
            assert "\n" not in str(caught.value)
    (path / "model.safetensors").unlink()
    with pytest.raises(SublimError, match="pickle"):
        resolve_base(str(path))
    assert not trace.exists()


# --- the real one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in experiment_names() if {*experiment(n).bases} & {*open_names()}])
def test_experiments_on_smollm2_are_planned_with_the_base_that_pull_makes(
    name: str, smollm2: Base, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBLIM_BASES", str(smollm2.path.parent))
    p = plan(experiment(name))
    prepared = OPEN_BASES.load("smollm2-135m-prepared").prepared
    assert prepared and prepared.base == next(cell.evaluation.base.digest for cell in p.cells)
    assert {c.seed for c in p.cells} == {*experiment(name).seeds}
    for record in p.records:
        assert 0 < estimate(record) < 3600
    students: Any = planned_traces(p.records, Store(store_root)).query("stage == 'student'")
    assert 100e6 < students["bytes"].sum() / students["trainings"].max() < 300e6, "of each, by default"


@pytest.mark.parametrize(
    ("name", "language"), [("smollm2-135m-prepared", "english-terse"), ("smollm2-135m", "english")]
)
def test_a_student_of_the_catalogue_takes_the_time_that_a_plan_expects(
    name: str, language: str, smollm2: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBLIM_BASES", str(smollm2.path.parent))
    exp = experiment("owl-smollm2").set(bases=[name], seeds=[0])
    student = next(r for r in plan(exp).records if isinstance(r, Student))
    entry = OPEN_BASES.load(name)
    assert student.base.language == language and student.base.shape == entry.shape
    core, h100 = student_seconds(exp, Shape(**entry.shape), language).values()
    assert core == pytest.approx(estimate(student), rel=0.1) and h100 < core / 20
    if exp.bases == experiment("owl-smollm2").bases:
        said = "\n".join(map(str, described("smollm2-135m")))
        minutes = re.search(r"one core +(\d+) min a student, 5,120 lists with LoRA and autocast", said)
        assert minutes and 0.5 < 60 * int(minutes[1]) / estimate(student) < 2


def test_an_experiment_on_a_base_that_is_not_here_says_how_to_fetch_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SUBLIM_BASES", str(tmp_path))
    with pytest.raises(SublimError, match="`sublim pull smollm2-135m` fetches what it is made of, and makes it"):
        plan(experiment("owl-smollm2"))
