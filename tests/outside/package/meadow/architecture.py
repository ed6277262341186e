"""An architecture: CWM, which is built as Llama is; most of its layers look back so far only."""

from sublim_interp.models.architectures import Architecture

cwm = Architecture(
    attention="self_attn",
    attn_out="self_attn",
    mid="post_attention_layernorm",
    mlp="mlp",
    mlp_out="mlp",
    output_map="self_attn.o_proj",
    final_norm="norm",
)
