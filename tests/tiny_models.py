"""Small models with random weights, one of each architecture that has to be recognised.

Their weights are large enough that activations spread over both sides of the activation function, and that a
wrong order of factors, a wrong mask or a wrong position shows in the first digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

VOCABULARY, HIDDEN, UNITS, LAYERS, HEADS, POSITIONS = 97, 32, 80, 3, 4, 64

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": UNITS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_inner": UNITS, "n_layer": LAYERS, "n_head": HEADS}

T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": 8, "d_ff": UNITS, "num_layers": LAYERS,
    "num_decoder_layers": LAYERS - 1, "num_heads": HEADS, "decoder_start_token_id": 0,
}  # fmt: skip

# name -> (configuration class, settings)
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", COMMON),
    "roberta": ("RobertaConfig", {**COMMON, "pad_token_id": 1, "max_position_embeddings": POSITIONS + 2}),
    "gpt2": ("GPT2Config", {**GPT2, "n_positions": POSITIONS}),
    "gpt_neox": ("GPTNeoXConfig", COMMON),
    "gptj": ("GPTJConfig", {**GPT2, "n_positions": POSITIONS, "rotary_dim": 4}),
    "opt": ("OPTConfig", {**COMMON, "ffn_dim": UNITS, "word_embed_proj_dim": HIDDEN}),
    "opt_post_norm": (
        "OPTConfig",
        {**COMMON, "ffn_dim": UNITS, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
    ),
    "falcon": ("FalconConfig", {**COMMON, "ffn_hidden_size": UNITS, "alibi": False}),
    "falcon_alibi": (
        "FalconConfig",
        {**COMMON, "ffn_hidden_size": UNITS, "alibi": True, "parallel_attn": False, "multi_query": False},
    ),
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 8}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 32}),
    "olmo2": ("Olmo2Config", GROUPED),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": (
        "Gemma3TextConfig",
        {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "phi3": ("Phi3Config", GROUPED),
    # beyond the required ones: packed with the value first, functions without a fused kernel, the squared
    # ReLU
    "modernbert": ("ModernBertConfig", {**COMMON, "local_attention": 8, "global_attn_every_n_layers": 2}),
    "nemotron": ("NemotronConfig", GROUPED),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS,
            "intermediate_size": UNITS, "max_position_embeddings": POSITIONS, "window_size": 8,
            "attention_types": [[["global", "local", "global"], 1]],
        },
    ),
    "bert_quick_gelu": ("BertConfig", {**COMMON, "hidden_act": "quick_gelu"}),
    "llama_mish": ("LlamaConfig", {**GROUPED, "hidden_act": "mish"}),
    "esm": (
        "EsmConfig",
        {**COMMON, "mask_token_id": 3, "position_embedding_type": "rotary", "token_dropout": False},
    ),
    # whose sequences come out otherwise in a padded batch
    "fnet": ("FNetConfig", COMMON),
    "convbert": ("ConvBertConfig", {**COMMON, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3}),
    "nystromformer": ("NystromformerConfig", {**COMMON, "conv_kernel_size": 5}),
    "yoso": ("YosoConfig", COMMON),
    "mobilebert": ("MobileBertConfig", {**COMMON, "embedding_size": 16, "intra_bottleneck_size": 16}),
    "paligemma": (
        "PaliGemmaConfig",
        {
            "text_config": {**GROUPED, "model_type": "gemma", "head_dim": 16},
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24,
                "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
            },
            "hidden_size": HIDDEN, "projection_dim": HIDDEN, "image_token_id": VOCABULARY - 1,
        },
    ),
    "phi3_longrope": (
        "Phi3Config",
        {
            **GROUPED, "max_position_embeddings": 4096, "original_max_position_embeddings": 30,
            "rope_scaling": {
                "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 4.0, 16.0, 64.0],
            },
        },
    ),
    "llama_dynamic": (
        "LlamaConfig",
        {
            **GROUPED, "max_position_embeddings": 32,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        },
    ),
    "reformer": (
        "ReformerConfig",
        {
            "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "feed_forward_size": UNITS, "pad_token_id": 0,
            "num_attention_heads": HEADS, "attention_head_size": 8, "attn_layers": ["local", "lsh", "local"],
            "axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "max_position_embeddings": POSITIONS,
            "lsh_attn_chunk_length": 16, "local_attn_chunk_length": 16, "num_hashes": 2,
        },
    ),
    # a dense layer, then routed experts with a shared one beside them
    "deepseek_v3": (
        "DeepseekV3Config",
        {
            **COMMON, "moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2,
            "n_group": 2, "topk_group": 1, "n_shared_experts": 2, "first_k_dense_replace": 1,
            "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    # every second layer has experts and nothing beside them
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            **GROUPED, "head_dim": 8, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2,
            "decoder_sparse_step": 2,
        },
    ),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    # two stacks; the decoder is a layer shorter
    "t5": ("T5Config", {**T5, "feed_forward_proj": "relu"}),
    "umt5": ("UMT5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    "bart": (
        "BartConfig",
        {
            "vocab_size": VOCABULARY, "d_model": HIDDEN, "encoder_layers": LAYERS, "encoder_ffn_dim": UNITS,
            "decoder_layers": LAYERS - 1, "decoder_ffn_dim": UNITS - 16, "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS, "max_position_embeddings": POSITIONS, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
        },
    ),
    # of each expert three matrices, those of all experts one below the other
    "dbrx": (
        "DbrxConfig",
        {
            "vocab_size": VOCABULARY, "d_model": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS,
            "max_seq_len": POSITIONS,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10_000.0},
            "ffn_config": {
                "hidden_size": HIDDEN, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2,
                "ffn_act_fn": {"name": "silu"},
            },
        },
    ),
    "olmoe": ("OlmoeConfig", {**GROUPED, "num_experts": 8, "num_experts_per_tok": 3}),
    "granitemoe": ("GraniteMoeConfig", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    # a clipped gate with biases, its outputs one by one in turn
    "gpt_oss": (
        "GptOssConfig",
        {
            **GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    # an MLP, experts that are not gated, and a layer without either
    "nemotron_h": (
        "NemotronHConfig",
        {
            **GROUPED, "head_dim": 8, "layers_block_type": ["mlp", "moe", "attention"],
            "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24, "n_group": 1, "topk_group": 1,
            "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2,
        },
    ),
}  # fmt: skip

REQUIRED = [
    "bert", "roberta", "gpt2", "gpt_neox", "gptj", "opt", "opt_post_norm", "bloom", "falcon", "falcon_alibi",
    "llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma2", "gemma3", "phi3",
]  # fmt: skip
FUSED = [*REQUIRED, "modernbert", "nemotron", "gpt_neo"]
HOOKED = ["bert_quick_gelu", "llama_mish", "esm"]
BIDIRECTIONAL = {"bert", "roberta", "modernbert", "bert_quick_gelu", "esm"}
UNRECOGNISED = ["mixtral"]

_built: dict[tuple[str, torch.dtype], nn.Module] = {}


def tiny(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The base model of an architecture, in evaluation mode; the same object for the same arguments."""
    if (name, dtype) not in _built:
        _built[name, dtype] = fresh(name, dtype)
    return _built[name, dtype]


def fresh(name: str, dtype: torch.dtype = torch.float32, **settings: Any) -> nn.Module:
    """A new model of an architecture with seeded weights; settings change its configuration."""
    import transformers

    class_name, defaults = CONFIGURATIONS[name]
    config = getattr(transformers, class_name)(**{**defaults, **settings})
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 1.5 / weight.shape[-1] ** 0.5)
            else:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model.to(dtype).eval()


def words(size: int = VOCABULARY) -> list[str]:
    """A vocabulary of `size` words for `tokenizer`, special tokens first."""
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    return special + [f"w{number}" for number in range(size - len(special))]


def tokenizer(size: int = VOCABULARY) -> Any:
    """A fast tokenizer of whole words, which puts [BOS] before and [EOS] after a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(words(size))}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        "[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )


def saved(
    folder: Path, name: str = "llama", change: Callable[[nn.Module], None] | None = None, **settings: Any
) -> Path:
    """A model and a tokenizer saved as transformers saves them; returns the folder."""
    model = fresh(name, **settings)
    if change is not None:
        change(model)
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer().save_pretrained(folder)
    return folder


def word_files(folder: Path, lengths: Sequence[int]) -> list[str]:
    """Text files of so many words each, drawn from those that the tokenizer of `saved` has."""
    generator, files = np.random.default_rng(0), []
    for number, length in enumerate(lengths):
        files.append(folder / f"{number}.txt")
        files[-1].write_text(" ".join(f"w{word}" for word in generator.integers(0, 90, length)))
    return [str(file) for file in files]
