"""An architecture: Granite, which is built as Llama is and scales its logits."""

from sublim_interp.models.architectures import Architecture

granite = Architecture(
    attention="self_attn",
    attn_out="self_attn",
    mid="post_attention_layernorm",
    mlp="mlp",
    mlp_out="mlp",
    output_map="self_attn.o_proj",
    final_norm="norm",
)
