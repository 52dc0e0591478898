"""transformers, continued: architectures that differ from those of the first list in how they are written."""

from __future__ import annotations

from typing import Any

import torch

from tests.graph.networks.entry import Network, ids
from tests.graph.networks.transformers_nets import (
    CONV,
    DECODER,
    GROUPED,
    HEADS,
    IMAGE,
    MOE,
    NO_GQA,
    OTHER,
    SEQ2SEQ,
    SMALL,
    SPEECH,
    STAGES,
    STATE,
    Row,
    builder,
    detr,
    pair,
    pixels,
    text,
    wave,
)

BLOCKS: dict[str, Any] = {**STAGES, "num_attention_heads": [1, 2, 2, 4]}
SERIES: dict[str, Any] = {
    **{k: v for k, v in SEQ2SEQ.items() if k.split("_")[0] in ("d", "encoder", "decoder") and not k.endswith("_id")},
    "prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1, "use_cache": False,
}  # fmt: skip
SHORT: dict[str, Any] = {"d_kv": 8, "d_ff": 48, "d_model": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64,
                         "use_cache": False, "decoder_start_token_id": 0}  # fmt: skip
MAMBA: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "use_cache": False,
                         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


def rows() -> dict[str, Any]:
    return {"input_ids": ids(8)}


def series() -> dict[str, Any]:
    past = {"past_values": torch.randn(2, 10), "past_observed_mask": torch.ones(2, 10)}
    future = {"future_values": torch.randn(2, 4), "future_time_features": torch.randn(2, 4, 1)}
    return {**past, "past_time_features": torch.randn(2, 10, 1), **future}


def channels() -> dict[str, Any]:
    return {"past_values": torch.randn(2, 16, 3)}


def film() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 4, 3, 32, 32)}


def steps() -> dict[str, Any]:
    sizes = {"states": 5, "actions": 3, "rewards": 1, "returns_to_go": 1}
    made = {name: torch.randn(2, 6, size) for name, size in sizes.items()}
    return {**made, "timesteps": torch.arange(6).repeat(2, 1), "attention_mask": torch.ones(2, 6)}


def detector(*stages: str) -> dict[str, Any]:
    settings = detr()
    return {**settings, "backbone_config": {**settings["backbone_config"], "out_features": list(stages)}}


ROWS: list[Row] = [
    # encoders
    ("LongformerForSequenceClassification", "LongformerConfig", {**SMALL, "attention_window": 4}, rows, STATE),
    ("XLNetLMHeadModel", "XLNetConfig", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "vocab_size": 64},
     text, HEADS),
    ("FunnelForSequenceClassification", "FunnelConfig",
     {"vocab_size": 64, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 32, "n_head": 4, "d_head": 8,
      "d_inner": 48, "max_position_embeddings": 64}, text, HEADS),
    ("ReformerForSequenceClassification", "ReformerConfig",
     {"attention_head_size": 8, "attn_layers": ["local", "lsh"], "axial_pos_shape": [4, 4], "hash_seed": 0,
      "axial_pos_embds_dim": [16, 16], "hidden_size": 32, "feed_forward_size": 48, "num_attention_heads": 4,
      "vocab_size": 64, "max_position_embeddings": 16, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4,
      "num_buckets": 2, "num_hashes": 1, "pad_token_id": 0}, lambda: {"input_ids": ids(16)}, STATE),
    ("ConvBertForSequenceClassification", "ConvBertConfig", {**SMALL, "embedding_size": 16}, text, STATE),
    ("IBertForSequenceClassification", "IBertConfig", SMALL, text, HEADS),
    ("PerceiverForSequenceClassification", "PerceiverConfig",
     {"num_latents": 8, "d_latents": 32, "d_model": 24, "num_blocks": 1, "num_self_attends_per_block": 2,
      "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "vocab_size": 64, "max_position_embeddings": 16},
     lambda: {"inputs": ids(16)}, STATE),
    # decoders
    ("GlmForCausalLM", "GlmConfig", DECODER, text, ("neuron", "kv group", "width")),
    ("Glm4MoeForCausalLM", "Glm4MoeConfig", {**MOE, "n_routed_experts": 4, "first_k_dense_replace": 1}, text, GROUPED),
    ("PersimmonForCausalLM", "PersimmonConfig", NO_GQA, text, HEADS),
    ("JetMoeForCausalLM", "JetMoeConfig",
     {**NO_GQA, "num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, text,
     ("neuron", "head", "width")),
    ("DbrxForCausalLM", "DbrxConfig",
     {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 64, "use_cache": False,
      "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
      "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}}, text, GROUPED),
    ("Gemma3nForCausalLM", "Gemma3nTextConfig",
     {**DECODER, "sliding_window": 4, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8,
      "num_kv_shared_layers": 0, "laurel_rank": 4}, text, GROUPED),
    ("ImageGPTForImageClassification", "ImageGPTConfig",
     {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 64, "use_cache": False}, text, HEADS),
    # state spaces and recurrences
    ("RwkvForCausalLM", "RwkvConfig", {**MAMBA, "context_length": 64, "intermediate_size": 48}, text, STATE),
    ("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig",
     {**DECODER, "lru_width": 32, "attention_window_size": 4, "block_types": ["recurrent", "attention"]}, text,
     ("neuron", "width")),
    ("JambaForCausalLM", "JambaConfig",
     {**DECODER, "num_experts": 4, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
      "attn_layer_period": 2, "attn_layer_offset": 1}, text, ("neuron", "width")),
    ("xLSTMForCausalLM", "xLSTMConfig", {**MAMBA, "num_blocks": 2, "num_heads": 4, "chunk_size": 4}, rows, STATE),
    # encoder-decoders
    ("LongT5ForConditionalGeneration", "LongT5Config", {**SHORT, "local_radius": 4, "global_block_size": 4}, pair,
     HEADS),
    ("M2M100ForConditionalGeneration", "M2M100Config", SEQ2SEQ, pair, HEADS),
    ("ProphetNetForConditionalGeneration", "ProphetNetConfig",
     {**{k: v for k, v in SMALL.items() if k not in ("num_hidden_layers", "num_attention_heads")},
      "num_encoder_layers": 2, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
      "num_decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "use_cache": False}, pair,
     STATE),
    # sound
    ("SEWForCTC", "SEWConfig", {**SPEECH, "squeeze_factor": 2}, wave, HEADS),
    ("WavLMForCTC", "WavLMConfig", SPEECH, wave, STATE),
    ("ASTForAudioClassification", "ASTConfig",
     {**IMAGE, "max_length": 64, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
     lambda: {"input_values": torch.randn(2, 64, 16)}, HEADS),
    ("DacModel", "DacConfig",
     {"encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "decoder_hidden_size": 32, "n_codebooks": 2,
      "codebook_size": 16, "codebook_dim": 4}, lambda: {"input_values": torch.randn(2, 1, 128)}, CONV),
    ("UnivNetModel", "UnivNetConfig",
     {"model_in_channels": 8, "model_hidden_channels": 8, "num_mel_bins": 10, "resblock_kernel_sizes": [3, 3],
      "resblock_stride_sizes": [4, 4], "resblock_dilation_sizes": [[1, 3], [1, 3]],
      "kernel_predictor_hidden_channels": 8},
     lambda: {"input_features": torch.randn(1, 6, 10), "noise_sequence": torch.randn(1, 6, 8)}, CONV),
    # images
    ("RegNetForImageClassification", "RegNetConfig",
     {"embedding_size": 8, "hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "groups_width": 8}, pixels(64),
     CONV),
    ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.35}, pixels(64), CONV),
    ("PoolFormerForImageClassification", "PoolFormerConfig", STAGES, pixels(64), CONV),
    ("PvtForImageClassification", "PvtConfig",
     {**BLOCKS, "image_size": 64, "num_encoder_blocks": 4, "patch_sizes": [4, 2, 2, 2]}, pixels(64), HEADS),
    ("HieraForImageClassification", "HieraConfig",
     {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "query_stride": [2, 2],
      "masked_unit_size": [4, 4], "num_query_pool": 1}, pixels(64), HEADS),
    ("LevitForImageClassification", "LevitConfig",
     {"image_size": 64, "hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 2, 4], "depths": [1, 1, 1],
      "key_dim": [8, 8, 8]}, pixels(64), ("channel", "neuron")),
    ("FocalNetForImageClassification", "FocalNetConfig",
     {"image_size": 32, "embed_dim": 16, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3],
      "hidden_sizes": [16, 32]}, pixels(), STATE),
    ("GLPNForDepthEstimation", "GLPNConfig", {**BLOCKS, "decoder_hidden_size": 16}, pixels(64), (*HEADS, "channel")),
    ("YolosForObjectDetection", "YolosConfig", {**IMAGE, "image_size": [64, 64], "num_detection_tokens": 5},
     pixels(64), HEADS),
    ("DeformableDetrForObjectDetection", "DeformableDetrConfig",
     {**detector("stage1", "stage2", "stage3", "stage4"), "disable_custom_kernels": True}, pixels(64),
     ("channel", "neuron")),
    ("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", detr(), pixels(64), ("channel", *HEADS)),
    ("TimesformerForVideoClassification", "TimesformerConfig", {**IMAGE, "num_frames": 4}, film, STATE),
    ("VideoMAEForVideoClassification", "VideoMAEConfig", {**IMAGE, "num_frames": 4}, film, HEADS),
    # several kinds of input, series, decisions
    ("BlipForConditionalGeneration", "BlipConfig",
     {"text_config": {**SMALL, "encoder_hidden_size": 32}, "vision_config": IMAGE},
     lambda: {"input_ids": ids(), "pixel_values": torch.randn(2, 3, 32, 32)}, HEADS),
    ("LlavaForConditionalGeneration", "LlavaConfig",
     {"text_config": {"model_type": "llama", **DECODER}, "vision_config": {"model_type": "clip_vision_model", **IMAGE},
      "image_token_id": 63, "image_token_index": 63, "image_seq_length": 16, "vision_feature_layer": -1},
     lambda: {"input_ids": torch.cat([torch.full((2, 16), 63), ids(vocabulary=60)], 1),
              "pixel_values": torch.randn(2, 3, 32, 32)}, (*HEADS, "kv group")),
    ("InformerForPrediction", "InformerConfig", SERIES, series, STATE),
    ("AutoformerForPrediction", "AutoformerConfig", {**SERIES, "moving_average": 3, "label_length": 4}, series, STATE),
    ("PatchTSTForPrediction", "PatchTSTConfig",
     {"num_input_channels": 3, "context_length": 16, "patch_length": 4, "patch_stride": 4, "num_hidden_layers": 2,
      "d_model": 32, "num_attention_heads": 4, "ffn_dim": 48, "prediction_length": 4}, channels, HEADS),
    ("PatchTSMixerForPrediction", "PatchTSMixerConfig",
     {"num_input_channels": 3, "context_length": 16, "patch_length": 4, "patch_stride": 4, "num_layers": 2,
      "d_model": 16, "prediction_length": 4, "mode": "mix_channel"}, channels, STATE),
    ("DecisionTransformerModel", "DecisionTransformerConfig",
     {"state_dim": 5, "act_dim": 3, "hidden_size": 32, "n_head": 4, "n_layer": 2, "max_ep_len": 16}, steps, HEADS),
]  # fmt: skip

NETWORKS = [
    Network(
        f"transformers/{model}", "transformers", builder(model, config, arguments), inputs, OTHER.get(inputs), prunes
    )
    for model, config, arguments, inputs, prunes in ROWS
]
