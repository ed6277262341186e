"""Variants of a base: other weights made of its own by name, such as `rescaled(lab-small-0, seed=1)`.

A variant is written as an ordinary base directory. Its card says of which bases it was made, by their digests, and how.
A new one is a record of `VARIANTS`. Those that are said to be the same function have their base's logits.
"""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import locked, one_line, sync
from sublim_interp.core.keys import digest_directory, stage_key
from sublim_interp.core.registry import Registry, instances_of
from sublim_interp.core.settings import Config, validate
from sublim_interp.core.yaml import load_yaml
from sublim_interp.models.architectures import decoder_layers
from sublim_interp.models.loading import CARD, copy_tokenizer, load_model, save_model
from sublim_interp.models.open_bases import bases_folder, is_variant
from sublim_interp.models.trainable import body_parameters

_TYPES = ("llama", "mistral")
"""Types of model of which function-identical variants are known."""


class Parent(NamedTuple):
    """A base of which a variant is made."""

    name: str
    path: Path
    digest: str
    card: Mapping[str, Any]


Make = Callable[[Any, Sequence[Any]], Any]
"""Called with the settings and a fresh model of each parent; changes the first in place, or returns another."""


@dataclass(frozen=True)
class Variant:
    """One way to make a base of others.

    make: changes the weights
    meaning: one plain sentence
    settings: its fields
    example: such fields, to show how it is named
    parents: of how many bases it is made
    same_function: whether its logits are those of the first
    alike: whether its parents must have weights of the same names and shapes
    takes: seconds on one core that its settings come to, where it trains; it is then told beforehand
    version: in its key; raised by hand when it makes other weights
    """

    make: Make
    meaning: str
    settings: type[Config]
    example: tuple[str, ...] = ()
    parents: int = 1
    same_function: bool = False
    alike: bool = True
    takes: Callable[[Any], float] | None = None
    version: int = 1


class Call(NamedTuple):
    """A variant as it is named."""

    variant: str
    parents: tuple[str, ...]
    """Names of its bases, which may be variants themselves."""
    settings: Config

    @property
    def name(self) -> str:
        """The name in its one form: settings that are not at their default, in the order of the fields."""
        fields = type(self.settings).model_fields
        given = {name: getattr(self.settings, name) for name in fields}
        said = [f"{name}={value}" for name, value in given.items() if value != fields[name].default]
        return f"{self.variant}({', '.join([*self.parents, *said])})"


def parse(name: str) -> Call:
    """`rescaled(lab-small-0, seed=1)` → its parts. Raises SublimError, with the valid choices, for what is none."""
    word, _, rest = name.strip().partition("(")
    variant = VARIANTS[word]
    parents, given = [], {}
    for part in _split(rest[:-1], name):
        field = re.fullmatch(r"([a-z_]+)=(.*)", part, re.DOTALL)
        if field:
            given[field[1]] = load_yaml(field[2], f"base '{name}'")
        elif given:
            raise SublimError(f"base '{name}': {part} stands behind a setting; bases come first")
        else:
            parents.append(parse(part).name if is_variant(part) else part)
    if len(parents) != variant.parents:
        raise SublimError(f"base '{name}': {word} is made of {variant.parents} bases, as in {_example(word)}")
    return Call(word, tuple(parents), validate(variant.settings, given, f"base '{name}'"))


def _split(text: str, name: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            break
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    parts = [part.strip() for part in parts]
    if depth or not all(parts):
        raise SublimError(f"base '{name}': expected VARIANT(BASE, setting=value), such as {_example('rescaled')}")
    return parts


def _example(word: str) -> str:
    variant = VARIANTS[word]
    return f"{word}({', '.join([*(f'lab-small-{i}' for i in range(variant.parents)), *variant.example])})"


def variant_key(call: Call, parents: Sequence[Parent]) -> str:
    """What enters the keys of all that is made from a variant: its recipe and its parents' digests.

    So it is the same on a machine that rounds a last bit otherwise.
    """
    config = {"variant": call.variant, **call.settings.model_dump(mode="json")}
    inputs = {str(i): parent.digest for i, parent in enumerate(parents)}
    return stage_key("variant", VARIANTS[call.variant].version, config, inputs)


def place_of(call: Call, parents: Sequence[Parent]) -> Path:
    """Where a variant lies, or will lie, among the pulled bases."""
    return bases_folder() / "variants" / variant_key(call, parents)[:16]


def card_of(call: Call, parents: Sequence[Parent]) -> dict[str, Any]:
    """What a variant's card has of its first base: the language, and how good it is where the function is the same."""
    kept = ["language", "language_version", "language_digest"]
    kept += ["held_out_loss"] * VARIANTS[call.variant].same_function
    return {name: parents[0].card[name] for name in kept if name in parents[0].card}


def written(call: Call, parents: Sequence[Parent]) -> Path:
    """The directory of a variant among the pulled bases; made there where it is not, by one process, all or nothing.

    Raises SublimError for parents of which it cannot be made, and for a directory that is damaged.
    """
    key = variant_key(call, parents)
    final = place_of(call, parents)
    folder = final.parent
    with (
        one_line(f"{call.name} is not written to {folder}", place=("folder for bases", "$SUBLIM_BASES", "")),
        locked(folder / ".locks" / f"{key[:16]}.lock", call.name),
    ):
        if not final.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{key[:16]}~", dir=folder) as scratch:
                made = Path(scratch) / "base"
                _write(call, parents, made, key)
                sync(made)
                made.rename(final)
            sync(folder)
    card = json.loads((final / CARD).read_text(encoding="utf-8"))
    if card["variant"]["files"] != _content(final):
        raise SublimError(f"base {call.name} is damaged; delete {final}, it is made again")
    return final


def _content(directory: Path) -> str:
    return digest_directory(directory, ("README.md", CARD))


def _write(call: Call, parents: Sequence[Parent], directory: Path, key: str) -> None:
    variant, first = VARIANTS[call.variant], parents[0]
    if variant.takes:
        seconds = max(1, round(variant.takes(call.settings)))
        print(f"making base {call.name}, once: about {seconds} s of one core", file=sys.stderr, flush=True)
    models = [load_model(parent.path, device="cpu") for parent in parents]
    if variant.alike:
        _require_alike(call, models)
    with torch.no_grad():
        model = variant.make(call.settings, models) or models[0]
    directory.mkdir()
    copy_tokenizer(first.path, directory)
    save_model(model, directory)
    told = {"name": call.name, "key": key, "of": [{"name": p.name, "digest": p.digest} for p in parents],
            "settings": call.settings.model_dump(mode="json"), "same_function": variant.same_function,
            "files": _content(directory)}  # fmt: skip
    card = card_of(call, parents) | {"parameters": sum(p.numel() for p in model.parameters()), "variant": told}
    (directory / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    made_of = "\n".join(f"| made of | {p.name}, digest `{p.digest[:12]}` |" for p in parents)
    settings = ", ".join(f"{name} {value}" for name, value in told["settings"].items()) or "none"
    (directory / "README.md").write_text(
        f"# {call.name}\n{variant.meaning}\n\n| | |\n|---|---|\n{made_of}\n| settings | {settings} |\n"
        f"| same function | {'yes: its logits are those of ' + first.name if variant.same_function else 'no'} |\n",
        encoding="utf-8",
    )


@torch.no_grad()
def _require_alike(call: Call, models: Sequence[Any]) -> None:
    """Raises SublimError unless weights of each base mean the same in the first: there they must give its logits.

    Shapes alone do not tell heads, positions and norms: SmolLM and SmolLM2 have one shape, and other frequencies.
    """
    first = models[0]
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in models]
    if any(shape != shapes[0] for shape in shapes):
        raise SublimError(f"base {call.name}: its bases have weights of other names or shapes")
    read = {"input_ids": _ids_to_try(*models), "use_cache": False}
    for name, model in zip(call.parents[1:], models[1:], strict=True):
        moved = torch.func.functional_call(first, dict(model.named_parameters()), kwargs=read).logits.float()
        if not _near(model(**read).logits.float(), moved):
            raise SublimError(
                f"base {call.name}: weights of {name} are another model by the configuration of {call.parents[0]}, so "
                "its bases have no coordinates in common"
            )


def _ids_to_try(*models: Any) -> Int[Tensor, "1 position"]:
    """One text that shows how models count positions: as long as the shortest context, 512 tokens at most."""
    texts = [model.config.get_text_config() for model in models]
    longest = min(getattr(text, "max_position_embeddings", None) or 512 for text in texts)
    return torch.arange(min(512, longest))[None] % texts[0].vocab_size


def _near(one: Float[Tensor, "*axes"], other: Float[Tensor, "*axes"]) -> bool:
    """Whether logits differ by no more than rounding."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.std()))


# --- made of any model ------------------------------------------------------------------------------------------------


class Noise(Config):
    """θ₀ + σε."""

    sigma: float = Field(ge=0, le=100)
    """Standard deviation of the noise, in root mean squares of each tensor: the relative distance of the weights."""
    seed: int = Field(default=0, ge=0)
    """Decides ε."""
    part: Literal["body", "all"] = "body"
    """Which weights get it."""


def _noise(settings: Noise, models: Sequence[Any]) -> None:
    draw = torch.Generator().manual_seed(settings.seed)
    model = models[0]
    chosen = body_parameters(model) if settings.part == "body" else dict(model.named_parameters())
    for _, p in sorted(chosen.items()):
        wide = p.double()
        noise = torch.randn(p.shape, generator=draw, dtype=torch.float64)
        p.copy_(wide + settings.sigma * wide.square().mean().sqrt() * noise)


class Line(Config):
    """A point of the straight line between two bases."""

    at: float = Field(ge=0, le=1)
    """Where on the line: 0 is the first base, 1 the second."""


def _line(settings: Line, models: Sequence[Any]) -> None:
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        first.copy_(torch.lerp(first.double(), second.double(), settings.at))


class Transplant(Config):
    """Which part is the second base's."""

    part: str = Field(pattern=r"^(embeddings|head|layer[0-9]{1,4})$")
    """embeddings, head, or one layer as layer0."""


def _transplant(settings: Transplant, models: Sequence[Any]) -> None:
    patient, donor = (_part(model, settings.part) for model in models)
    for own, other in zip(patient.parameters(), donor.parameters(), strict=True):
        own.copy_(other)


def _part(model: Any, part: str) -> Any:
    if part in ("embeddings", "head"):
        if model.config.get_text_config().tie_word_embeddings:
            raise SublimError(f"transplant: part={part} of a model whose head is its embeddings; choose a layer")
        return model.get_input_embeddings() if part == "embeddings" else model.get_output_embeddings()
    layers, number = decoder_layers(model), int(part.removeprefix("layer"))
    if number >= len(layers):
        raise SublimError(f"transplant: part={part} of a model with {len(layers)} layers, the first of which is layer0")
    return layers[number]


class Dropped(Config):
    """Which layer goes."""

    layer: int = Field(ge=0, le=10_000)
    """Its number; the first is 0."""


def _dropped(settings: Dropped, models: Sequence[Any]) -> None:
    model, layers = models[0], decoder_layers(models[0])
    if not settings.layer < len(layers) > 1:
        raise SublimError(f"dropped: layer={settings.layer} of a model with {len(layers)} layers; one must stay")
    config, depth = model.config.get_text_config(), len(layers)
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list) and "token" not in name}
    for name, value in lists.items():
        if len(value) == depth:
            setattr(config, name, [one for i, one in enumerate(value) if i != settings.layer])
        elif "layer" in name and any(isinstance(i, int) and i >= settings.layer for i in value):
            raise SublimError(f"dropped: {name}={value} of {config.model_type} counts layers; drop one behind them")
    del layers[settings.layer]
    config.num_hidden_layers = len(layers)
    _require_same_on_disk(model, f"dropped: layer={settings.layer}")


@torch.no_grad()
def _require_same_on_disk(model: Any, what: str) -> None:
    """Raises SublimError where a model that is written and read again is another: its layers are not as it says."""
    text = model.config.get_text_config()
    ids = _ids_to_try(model)
    with tempfile.TemporaryDirectory() as scratch:
        save_model(model, Path(scratch))
        try:
            again = load_model(Path(scratch), device="cpu")
        except SublimError as error:
            raise SublimError(f"{what} of {text.model_type}, whose layers are then not as it says: {error}") from None
    one, other = (read(input_ids=ids, use_cache=False).logits.float() for read in (model, again))
    if not _near(one, other):
        raise SublimError(f"{what} of {text.model_type}, whose layers are then not as its configuration says")


# --- the same function, of models of Llama's type ---------------------------------------------------------------------


class Seeded(Config):
    """What is drawn."""

    seed: int = Field(default=0, ge=0)
    """Decides the draw."""


class Rescaled(Config):
    """How far, and which maps."""

    seed: int = Field(default=0, ge=0)
    """Decides the scales."""
    octaves: int = Field(default=2, ge=1, le=8)
    """Scales are powers of two from 2^−octaves to 2^octaves, so that no bit of the function changes."""
    maps: Literal["all", "qk", "vo", "mlp"] = "all"
    """Which pairs: queries and keys, values and outputs, up and down of the MLP, or all three."""


class Plain(Config):
    """Nothing to set."""


def _rescaled(settings: Rescaled, models: Sequence[Any]) -> None:
    layers, heads = llama_layers(models[0])
    draw = torch.Generator().manual_seed(settings.seed)

    def scales(*shape: int) -> Float[Tensor, "..."]:
        low, high = -settings.octaves, settings.octaves + 1
        return 2.0 ** torch.randint(low, high, shape, generator=draw).double()

    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        pairs = scales(heads.kv, heads.size // 2).repeat(1, 2)  # both halves of a rotary pair alike
        values, neurons = scales(heads.kv, heads.size), scales(mlp.up_proj.out_features)
        if settings.maps in ("all", "qk"):
            _scale_rows(attention.q_proj, heads.to_queries(pairs))
            _scale_rows(attention.k_proj, 1 / pairs.flatten())
        if settings.maps in ("all", "vo"):
            _scale_rows(attention.v_proj, values.flatten())
            _scale_columns(attention.o_proj, 1 / heads.to_queries(values))
        if settings.maps in ("all", "mlp"):
            _scale_rows(mlp.up_proj, neurons)
            _scale_columns(mlp.down_proj, 1 / neurons)


class Pruned(Config):
    """How many heads go."""

    heads: int = Field(default=1, ge=1, le=10_000)
    """Of each layer; those go whose output matrix is smallest. The number left must divide the width."""


def _pruned(settings: Pruned, models: Sequence[Any]) -> None:
    model = models[0]
    layers, heads = llama_layers(model)
    left, width = heads.kv - settings.heads, model.config.hidden_size
    if heads.group != 1 or left < 1 or width % left:
        raise SublimError(
            f"pruned: heads={settings.heads} of {heads.kv} a layer; each needs keys and values of its own, and as "
            f"many must be left as divide the width {width}"
        )
    for layer in layers:
        attention = layer.self_attn
        norms = rearrange(attention.o_proj.weight, "d (head size) -> head (d size)", head=heads.kv).norm(dim=1)
        stay = norms.argsort(descending=True)[:left].sort().values
        rows = _places(stay, torch.arange(heads.size).expand(len(stay), -1), heads.size)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            _take_part(linear, rows, 0)
        _take_part(attention.o_proj, rows, 1)
    config = model.config
    config.head_dim = heads.size
    config.num_attention_heads = config.num_key_value_heads = left


class Thinned(Config):
    """How many neurons go."""

    neurons: int = Field(ge=1, le=10_000_000)
    """Of each MLP; those go that add least: whose gate, up and down vectors have the smallest product of lengths."""


def _thinned(settings: Thinned, models: Sequence[Any]) -> None:
    model = models[0]
    layers, _ = llama_layers(model)
    left = model.config.intermediate_size - settings.neurons
    if left < 1:
        raise SublimError(f"thinned: neurons={settings.neurons} of {model.config.intermediate_size} an MLP; one stays")
    for layer in layers:
        mlp = layer.mlp
        added = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
        stay = added.argsort(descending=True)[:left].sort().values
        for linear in (mlp.gate_proj, mlp.up_proj):
            _take_part(linear, stay, 0)
        _take_part(mlp.down_proj, stay, 1)
    model.config.intermediate_size = left
    _require_same_on_disk(model, f"thinned: neurons={settings.neurons}")


class Narrowed(Config):
    """How narrow."""

    width: int = Field(ge=1, le=1_000_000)
    """Dimensions of the residual stream that are left; a multiple of the number of query heads."""


def _narrowed(settings: Narrowed, models: Sequence[Any]) -> None:
    """Leaves the stream its principal directions, as SliceGPT does (Ashkboos et al., arXiv 2401.15024, section 3).

    They are those of the stream behind embeddings and layers on random tokens, each position scaled as a norm does.
    """
    model, width = models[0], settings.width
    layers, heads = llama_layers(model)
    config, whole, queries = model.config, model.config.hidden_size, heads.kv * heads.group
    if width >= whole or width % queries:
        raise SublimError(f"narrowed: width={width} of {whole}; give fewer, a multiple of its {queries} query heads")
    fold(model)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (64, min(64, config.max_position_embeddings)), generator=draw)
    seen = torch.stack(model.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states).double()
    rows = torch.nn.functional.normalize(seen.flatten(0, 2), dim=-1)
    kept = torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -width:]

    for holder in (model.get_input_embeddings(), model.get_output_embeddings(), *chain(*map(readers, layers))):
        holder.weight = torch.nn.Parameter((holder.weight.double() @ kept).to(holder.weight.dtype))
    for layer in layers:
        for linear in writers(layer):
            linear.weight = torch.nn.Parameter((kept.T @ linear.weight.double()).to(linear.weight.dtype))
            if linear.bias is not None:
                linear.bias = torch.nn.Parameter((kept.T @ linear.bias.double()).to(linear.bias.dtype))
    for norm in _norms(model):  # a norm divides by a mean of squares, now over fewer dimensions
        norm.weight = torch.nn.Parameter(norm.weight[:width] * (whole / width) ** 0.5)
    config.head_dim, config.hidden_size = heads.size, width
    _require_same_on_disk(model, f"narrowed: width={width}")


def _take_part(linear: Any, places: Int[Tensor, " kept"], axis: int) -> None:
    """Leaves a linear map fewer outputs (axis 0) or inputs (axis 1)."""
    linear.weight = torch.nn.Parameter(linear.weight.index_select(axis, places))
    if linear.bias is not None and axis == 0:
        linear.bias = torch.nn.Parameter(linear.bias.index_select(0, places))


def _permuted(settings: Seeded, models: Sequence[Any]) -> None:
    model = models[0]
    layers, heads = llama_layers(model)
    draw = torch.Generator().manual_seed(settings.seed)
    stream = torch.randperm(model.config.hidden_size, generator=draw)
    for weight in ends(model):
        weight.copy_(weight[:, stream])
    for norm in _norms(model):
        norm.weight.copy_(norm.weight[stream])
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in readers(layer):
            linear.weight.copy_(linear.weight[:, stream])
        for linear in writers(layer):
            _take_rows(linear, stream)
        neurons = torch.randperm(mlp.up_proj.out_features, generator=draw)
        for linear in (mlp.gate_proj, mlp.up_proj):
            _take_rows(linear, neurons)
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, neurons])
        kv = torch.randperm(heads.kv, generator=draw)
        within = torch.stack([torch.randperm(heads.group, generator=draw) for _ in range(heads.kv)])
        queries = (kv[:, None] * heads.group + within).flatten()
        inner = torch.stack([torch.randperm(heads.size, generator=draw) for _ in range(heads.kv)])
        plain = torch.arange(heads.size)
        _take_rows(attention.q_proj, _places(queries, plain.expand(len(queries), -1), heads.size))
        _take_rows(attention.k_proj, _places(kv, plain.expand(len(kv), -1), heads.size))
        _take_rows(attention.v_proj, _places(kv, inner, heads.size))
        columns = _places(queries, inner.repeat_interleave(heads.group, 0), heads.size)
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, columns])


def _folded(settings: Plain, models: Sequence[Any]) -> None:
    fold(models[0])


def fold(model: Any) -> None:
    """Folds the gains of a model's norms into the maps that read them; its head is then one of its own."""
    layers, _ = llama_layers(model)
    head = model.get_output_embeddings()
    if model.config.tie_word_embeddings:
        head.weight = torch.nn.Parameter(head.weight.clone())
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, linears in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for linear in linears:
                _scale_columns(linear, norm.weight)
    _scale_columns(head, model.model.norm.weight)
    for norm in _norms(model):
        norm.weight.fill_(1.0)


def _rotated(settings: Seeded, models: Sequence[Any]) -> None:
    model = models[0]
    fold(model)
    layers, _ = llama_layers(model)
    draw = torch.Generator().manual_seed(settings.seed)
    size = model.config.hidden_size
    q, r = torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))
    turn = q * r.diagonal().sign()  # uniform over all rotations and reflections: Mezzadri 2007, math-ph/0609050
    for weight in ends(model):
        weight.copy_(weight.double() @ turn)
    for layer in layers:
        for linear in readers(layer):
            linear.weight.copy_(linear.weight.double() @ turn)
        for linear in writers(layer):
            linear.weight.copy_(turn.T @ linear.weight.double())
            if linear.bias is not None:
                linear.bias.copy_(turn.T @ linear.bias.double())


class Heads(NamedTuple):
    """How a layer's queries, keys and values are parted."""

    kv: int
    """Heads of keys and values."""
    group: int
    """Query heads that share one of these."""
    size: int

    def to_queries(self, each: Float[Tensor, "kv size"]) -> Float[Tensor, " query_size"]:
        """What stands for each dimension of the keys' heads, for each of the queries'."""
        return each.repeat_interleave(self.group, 0).flatten()


def llama_layers(model: Any) -> tuple[Any, Heads]:
    """The layers of a model of Llama's type, and its heads. Raises SublimError for another type."""
    config = model.config
    if config.model_type not in _TYPES:
        raise SublimError(f"no such variant of a {config.model_type} is known; valid types: {', '.join(_TYPES)}")
    kv, queries = config.num_key_value_heads, config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    return decoder_layers(model), Heads(kv, queries // kv, size)


def ends(model: Any) -> list[Tensor]:
    """The weights of embeddings and head, one where they are tied."""
    ends = {id(w): w for w in (model.get_input_embeddings().weight, model.get_output_embeddings().weight)}
    return list(ends.values())


def _norms(model: Any) -> list[Any]:
    inner = [(layer.input_layernorm, layer.post_attention_layernorm) for layer in decoder_layers(model)]
    return [*chain(*inner), model.model.norm]


def readers(layer: Any) -> tuple[Any, ...]:
    """The linear maps that read the residual stream."""
    a, m = layer.self_attn, layer.mlp
    return a.q_proj, a.k_proj, a.v_proj, m.gate_proj, m.up_proj


def writers(layer: Any) -> tuple[Any, ...]:
    """The linear maps that write to the residual stream."""
    return layer.self_attn.o_proj, layer.mlp.down_proj


def _scale_rows(linear: Any, scales: Float[Tensor, " d_out"]) -> None:
    linear.weight.copy_(linear.weight.double() * scales[:, None])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias.double() * scales)


def _scale_columns(linear: Any, scales: Float[Tensor, " d_in"]) -> None:
    linear.weight.copy_(linear.weight.double() * scales)


def _take_rows(linear: Any, rows: Int[Tensor, " d_out"]) -> None:
    linear.weight.copy_(linear.weight[rows])
    if linear.bias is not None:
        linear.bias.copy_(linear.bias[rows])


def _places(heads: Int[Tensor, " head"], inner: Int[Tensor, "head size"], size: int) -> Int[Tensor, " d_out"]:
    """Rows of heads in a new order, and within each in a new order."""
    return (heads[:, None] * size + inner).flatten()


VARIANTS: Registry[Variant] = Registry(
    "variant",
    "sublim_interp.variants",
    {
        "noise": Variant(_noise, "Its base with noise on the weights, θ₀ + σε.", Noise, ("sigma=0.1", "seed=1")),
        "line": Variant(_line, "A point of the straight line between two bases.", Line, ("at=0.5",), parents=2),
        "transplant": Variant(
            _transplant, "The first base with one part of the second.", Transplant, ("part=layer0",), parents=2
        ),
        "dropped": Variant(_dropped, "Its base without one layer.", Dropped, ("layer=1",)),
        "pruned": Variant(_pruned, "Its base with fewer heads in each layer.", Pruned, ("heads=2",)),
        "thinned": Variant(_thinned, "Its base with fewer neurons in each MLP.", Thinned, ("neurons=96",)),
        "narrowed": Variant(
            _narrowed, "Its base, folded, with a narrower residual stream: its principal directions.", Narrowed,
            ("width=48",),
        ),
        "healed": "sublim_interp.lab.continued:healed",
        "distilled": "sublim_interp.lab.continued:distilled",
        "authors": "sublim_interp.lab.continued:authors",
        "matched": "sublim_interp.models.matching:matched",
        "permuted": Variant(
            _permuted, "Its base with residual stream, neurons and heads in another order. SGD and Adam commute with "
            "that, so whatever is trained of it is the same function too.", Seeded, ("seed=1",), same_function=True,
        ),
        "rescaled": Variant(
            _rescaled, "Its base with queries against keys, values against outputs and up against down rescaled. "
            "Neither SGD nor Adam commutes with that.", Rescaled, ("seed=1",), same_function=True,
        ),
        "folded": Variant(
            _folded, "Its base with the norms' gains folded into the maps that read them; embeddings and head are "
            "then two.", Plain, same_function=True,
        ),
        "rotated": Variant(
            _rotated, "Its base, folded, with the residual stream rotated. While norms are frozen SGD commutes with "
            "that, Adam does not.", Seeded, ("seed=1",), same_function=True,
        ),
    },
    instances_of("variant", Variant),
)  # fmt: skip
"""Every variant by name."""
