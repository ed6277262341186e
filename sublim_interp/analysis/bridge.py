"""The bridge to TransformerLens: one call, on a copy of a model, with its logits checked. No analysis of its own."""

import tempfile
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import torch

from sublim_interp.analysis.probes import Subject, model_of
from sublim_interp.core.errors import SublimError
from sublim_interp.core.randomness import seeded
from sublim_interp.models.architectures import text_config
from sublim_interp.models.forward import longest_text
from sublim_interp.models.loading import reason_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

TOLERANCE = 1e-3
"""Largest difference of a log-probability that passes for rounding; eager attention alone can make 1e-4."""


def bridge(
    subject: Subject, tokenizer: Any = None, *, processed: bool = False, tolerance: float = TOLERANCE
) -> "TransformerBridge":
    """A `TransformerBridge` on a copy of a model, on the CPU; the original stays as it is.

    subject: a model, its directory, a base or a replicate
    tokenizer: else that of the base or replicate, else one whose words are the ids themselves
    processed: whether norms are folded into weights, which are centred, as the logit lens and direct attribution of
        TransformerLens expect; never compare directions there
    tolerance: largest difference of a log-probability from the plain model's, in nats

    Text becomes the tokens that the model's own tokenizer makes of it: none is put before them. Wrapping changes the
    copy's weights for good, so it is for analysis, not for training. It needs no row in architectures.py: which types
    it knows is for TransformerLens to say.

    Raises SublimError where TransformerLens cannot wrap the model, where d_vocab = d_model, which it corrupts, or where
    its log-probabilities differ from the plain model's by more than the tolerance.
    """
    model = cast(Any, model_of(subject))
    config = text_config(model)
    if config.vocab_size == config.hidden_size:
        raise SublimError(
            f"bridge: TransformerLens corrupts models with d_vocab = d_model, here both {config.vocab_size}"
        )
    if tokenizer is None:
        owner = getattr(subject, "base", subject)
        tokenizer = getattr(owner, "tokenizer", None) or _numbered(config.vocab_size)
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    # TransformerLens and the copy, made anew, draw random numbers
    with seeded(0), tempfile.TemporaryDirectory() as directory:
        # A deep copy of the model fails after a backward pass; its config is changed by the wrapper.
        try:
            copy = type(model)(deepcopy(model.config))
            copy.load_state_dict(model.state_dict())
            copy.config.architectures = [type(copy).__name__]  # what a model made in memory does not say
            copy.eval().config.save_pretrained(directory)
            random = torch.Generator().manual_seed(0)
            ids = torch.randint(config.vocab_size, (4, min(16, longest_text(config) or 16)), generator=random)
            with torch.no_grad():  # in float32, as the bridge is, whatever the model's own precision
                plain = copy(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            tokenizer.save_pretrained(directory)  # one that was made in memory must be reloaded
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            with patch("subprocess.check_call", _install_nothing):
                wrapped = TransformerBridge.boot_transformers(
                    directory, hf_model=copy, tokenizer=tokenizer, device="cpu"
                )
            if processed:
                wrapped.enable_compatibility_mode()
        except Exception as error:  # the adapters raise many kinds; each means: cannot be wrapped
            raise SublimError(f"TransformerLens cannot wrap {type(model).__name__}: {reason_of(error)}") from None
    wrapped.eval()
    # TransformerLens would put a token before every text; a model reads what its own tokenizer gives it.
    config_of_bridge: Any = wrapped.cfg
    config_of_bridge.default_prepend_bos = bool(wrapped.cfg.tokenizer_prepends_bos)
    try:
        with torch.no_grad():  # processing may shift all logits, never these
            found = float((wrapped(ids).log_softmax(-1) - plain).abs().max())
    except Exception as error:  # as above: an adapter that does not fit
        raise SublimError(f"TransformerLens cannot run {type(model).__name__}: {reason_of(error)}") from None
    if not found <= tolerance:
        raise SublimError(
            f"bridge: log-probabilities differ from the plain model's by up to {found:.2g}, more than {tolerance:g}"
        )
    return wrapped


def _install_nothing(*_: object, **__: object) -> None:
    """TransformerLens runs pip for models that see or hear, which can put another torch in place of the one that runs.

    It goes on without what it wanted, a processor of images that no text needs.
    """
    raise OSError("the bridge installs nothing")


def _numbered(vocabulary: int) -> Any:
    """TransformerLens needs a tokenizer: one whose words are the ids themselves."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(i): i for i in range(vocabulary)}, unk_token="0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="0", bos_token="0")
