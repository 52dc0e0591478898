"""transformers: one small configuration of each architecture, with the sizes that its own arguments are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.graph.networks.entry import Network, ids

HEADS = ("neuron", "head")
GROUPED = ("neuron", "kv group")
EXPERTS = ("expert", "kv group")
STATE = ("neuron",)
CONV = ("channel",)

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DECODER: dict[str, Any] = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "use_cache": False}
NO_GQA: dict[str, Any] = {**SMALL, "use_cache": False}
MOE: dict[str, Any] = {
    **DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "decoder_sparse_step": 1,
}  # fmt: skip
SEQ2SEQ: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "use_cache": False,
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
SPEECH: dict[str, Any] = {
    **SMALL, "conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False,
}  # fmt: skip
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
TEXT_TOWER: dict[str, Any] = {**SMALL, "projection_dim": 16}
VISION_TOWER: dict[str, Any] = {**IMAGE, "projection_dim": 16}


def text(length: int = 7) -> dict[str, Any]:
    return {"input_ids": ids(length)}


def pixels(size: int = 32) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(2, 3, size, size)}


def pair(length: int = 7) -> dict[str, Any]:
    return {"input_ids": ids(length), "decoder_input_ids": ids(length - 2)}


def text_and_pixels() -> dict[str, Any]:
    return {"input_ids": ids(), "pixel_values": torch.randn(2, 3, 32, 32)}


def wave() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 400)}


def mel_and_text() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": ids(5)}


def detr() -> dict[str, Any]:
    layers = {**STAGES, "embedding_size": 8, "layer_type": "basic", "out_features": ["stage4"]}
    backbone = {"model_type": "resnet", **layers}
    sizes = {k: v for k, v in SEQ2SEQ.items() if not k.endswith("_id") and k not in ("vocab_size", "use_cache")}
    return {**sizes, "backbone_config": backbone, "use_timm_backbone": False, "backbone": None, "num_queries": 5,
            "use_pretrained_backbone": False}  # fmt: skip


# model, configuration, its arguments, inputs, what must be prunable
Row = tuple[str, str, dict[str, Any], Callable[[], dict[str, Any]], tuple[str, ...]]
ROWS: list[Row] = [
    # encoders
    ("BertForSequenceClassification", "BertConfig", SMALL, text, HEADS),
    ("BertForMaskedLM", "BertConfig", SMALL, text, HEADS),
    ("RobertaForSequenceClassification", "RobertaConfig", SMALL, text, HEADS),
    ("XLMRobertaForTokenClassification", "XLMRobertaConfig", SMALL, text, HEADS),
    ("DistilBertForSequenceClassification", "DistilBertConfig",
     {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 64, "max_position_embeddings": 64},
     text, HEADS),
    ("AlbertForSequenceClassification", "AlbertConfig", {**SMALL, "embedding_size": 16}, text, HEADS),
    ("DebertaForSequenceClassification", "DebertaConfig",
     {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, text, HEADS),
    ("DebertaV2ForSequenceClassification", "DebertaV2Config",
     {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True,
      "position_buckets": 16, "norm_rel_ebd": "layer_norm"}, text, HEADS),
    ("ElectraForSequenceClassification", "ElectraConfig", {**SMALL, "embedding_size": 16}, text, HEADS),
    ("MPNetForSequenceClassification", "MPNetConfig", SMALL, text, HEADS),
    ("MobileBertForSequenceClassification", "MobileBertConfig",
     {**SMALL, "embedding_size": 16, "intra_bottleneck_size": 32}, text, ("neuron",)),
    ("FNetForSequenceClassification", "FNetConfig", SMALL, text, ("neuron",)),
    ("SqueezeBertForSequenceClassification", "SqueezeBertConfig", {**SMALL, "embedding_size": 32}, text, ()),
    ("ModernBertForSequenceClassification", "ModernBertConfig", {**SMALL, "cls_token_id": 1, "sep_token_id": 2}, text,
     HEADS),
    # decoders
    ("GPT2LMHeadModel", "GPT2Config",
     {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64, "bos_token_id": 1,
      "eos_token_id": 2, "use_cache": False}, text, HEADS),
    ("GPTBigCodeForCausalLM", "GPTBigCodeConfig",
     {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64, "bos_token_id": 1,
      "eos_token_id": 2, "use_cache": False}, text, ("neuron",)),
    ("GPTNeoForCausalLM", "GPTNeoConfig",
     {**NO_GQA, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4},
     text, HEADS),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", NO_GQA, text, HEADS),
    ("GPTJForCausalLM", "GPTJConfig",
     {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 64, "n_positions": 64,
      "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}, text, HEADS),
    ("CodeGenForCausalLM", "CodeGenConfig",
     {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 64, "n_positions": 64,
      "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}, text, ("neuron",)),
    ("OPTForCausalLM", "OPTConfig", {**NO_GQA, "ffn_dim": 48, "word_embed_proj_dim": 32}, text, HEADS),
    ("BloomForCausalLM", "BloomConfig", {**NO_GQA, "n_layer": 2, "n_head": 4}, text, HEADS),
    ("LlamaForCausalLM", "LlamaConfig", DECODER, text, GROUPED),
    ("MistralForCausalLM", "MistralConfig", {**DECODER, "sliding_window": 4}, text, GROUPED),
    ("Qwen2ForCausalLM", "Qwen2Config", DECODER, text, GROUPED),
    ("Qwen3ForCausalLM", "Qwen3Config", DECODER, text, GROUPED),
    ("GemmaForCausalLM", "GemmaConfig", DECODER, text, GROUPED),
    ("Gemma2ForCausalLM", "Gemma2Config", {**DECODER, "query_pre_attn_scalar": 8, "sliding_window": 4}, text, GROUPED),
    ("Gemma3ForCausalLM", "Gemma3TextConfig", {**DECODER, "query_pre_attn_scalar": 8, "sliding_window": 4}, text,
     GROUPED),
    ("PhiForCausalLM", "PhiConfig", NO_GQA, text, HEADS),
    ("Phi3ForCausalLM", "Phi3Config", {**NO_GQA, "num_key_value_heads": 2}, text, GROUPED),
    ("FalconForCausalLM", "FalconConfig",
     {**NO_GQA, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False}, text, GROUPED),
    ("CohereForCausalLM", "CohereConfig", DECODER, text, GROUPED),
    ("OlmoForCausalLM", "OlmoConfig", DECODER, text, GROUPED),
    ("Olmo2ForCausalLM", "Olmo2Config", DECODER, text, GROUPED),
    ("StableLmForCausalLM", "StableLmConfig", DECODER, text, GROUPED),
    ("Starcoder2ForCausalLM", "Starcoder2Config", DECODER, text, GROUPED),
    ("GraniteForCausalLM", "GraniteConfig", DECODER, text, GROUPED),
    ("SmolLM3ForCausalLM", "SmolLM3Config", DECODER, text, GROUPED),
    # mixtures of experts
    ("MixtralForCausalLM", "MixtralConfig", {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}, text,
     EXPERTS),
    ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", MOE, text, EXPERTS),
    ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", MOE, text, EXPERTS),
    ("OlmoeForCausalLM", "OlmoeConfig", MOE, text, EXPERTS),
    ("GptOssForCausalLM", "GptOssConfig",
     {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}, text, EXPERTS),
    ("DeepseekV3ForCausalLM", "DeepseekV3Config",
     {**NO_GQA, "num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
      "n_group": 2, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
      "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1}, text, ("neuron", "expert")),
    # state spaces
    ("MambaForCausalLM", "MambaConfig",
     {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4, "time_step_rank": 4,
      "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}, text, STATE),
    ("Mamba2ForCausalLM", "Mamba2Config",
     {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 8, "head_dim": 16, "num_heads": 4,
      "n_groups": 2, "chunk_size": 4, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
     text, ()),
    # encoder-decoders
    ("T5ForConditionalGeneration", "T5Config",
     {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "use_cache": False,
      "decoder_start_token_id": 0}, pair, HEADS),
    ("MT5ForConditionalGeneration", "MT5Config",
     {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "use_cache": False,
      "decoder_start_token_id": 0}, pair, HEADS),
    ("BartForConditionalGeneration", "BartConfig", SEQ2SEQ, pair, HEADS),
    ("MBartForConditionalGeneration", "MBartConfig", SEQ2SEQ, pair, HEADS),
    ("PegasusForConditionalGeneration", "PegasusConfig", SEQ2SEQ, pair, HEADS),
    ("MarianMTModel", "MarianConfig", SEQ2SEQ, pair, HEADS),
    # speech
    ("WhisperForConditionalGeneration", "WhisperConfig",
     {**SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16, "suppress_tokens": None,
      "begin_suppress_tokens": None}, mel_and_text, HEADS),
    ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, wave, HEADS),
    ("HubertForCTC", "HubertConfig", SPEECH, wave, HEADS),
    # images
    ("ViTForImageClassification", "ViTConfig", IMAGE, pixels(), HEADS),
    ("DeiTForImageClassification", "DeiTConfig", IMAGE, pixels(), HEADS),
    ("BeitForImageClassification", "BeitConfig", {**IMAGE, "use_relative_position_bias": True}, pixels(), HEADS),
    ("Dinov2ForImageClassification", "Dinov2Config", {**IMAGE, "mlp_ratio": 2}, pixels(), HEADS),
    ("SwinForImageClassification", "SwinConfig",
     {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
     pixels(), HEADS),
    ("Swinv2ForImageClassification", "Swinv2Config",
     {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
     pixels(), HEADS),
    ("SegformerForSemanticSegmentation", "SegformerConfig",
     {**STAGES, "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16, "sr_ratios": [4, 2, 1, 1],
      "mlp_ratios": [2, 2, 2, 2]}, pixels(64), HEADS),
    ("ConvNextForImageClassification", "ConvNextConfig", STAGES, pixels(64), ("neuron",)),
    ("ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES, pixels(64), ("neuron",)),
    ("ResNetForImageClassification", "ResNetConfig", {**STAGES, "embedding_size": 8}, pixels(64), CONV),
    ("MobileViTForImageClassification", "MobileViTConfig",
     {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 40]}, pixels(64),
     ("channel", "head")),
    ("DetrForObjectDetection", "DetrConfig", detr(), pixels(64), HEADS),
    ("CLIPModel", "CLIPConfig", {"text_config": TEXT_TOWER, "vision_config": VISION_TOWER, "projection_dim": 16},
     text_and_pixels, HEADS),
    ("SiglipModel", "SiglipConfig", {"text_config": SMALL, "vision_config": IMAGE}, text_and_pixels, HEADS),
]  # fmt: skip

FAST = {"BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM", "ViTForImageClassification",
        "T5ForConditionalGeneration", "MixtralForCausalLM", "AlbertForSequenceClassification"}  # fmt: skip


# The longer text is longer than the windows, and than half of the tables of positions.
OTHER: dict[Any, Callable[[], dict[str, Any]]] = {text: lambda: text(40), pair: lambda: pair(40)}


def builder(model: str, config: str, arguments: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**arguments))
        return made

    return build


NETWORKS = [
    Network(f"transformers/{model}", "transformers", builder(model, config, arguments), inputs,
            OTHER.get(inputs), prunes, fast=model in FAST)
    for model, config, arguments, inputs, prunes in ROWS
]  # fmt: skip
