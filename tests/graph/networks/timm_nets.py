"""timm: networks by name, the smallest member of each kind, shortened where the library allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tests.graph.networks.entry import CONV, MLP, Network, image

HEADS = (*MLP, "head")
BOTH = (*CONV, "head")
SMALL_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
SMALL_SWIN: dict[str, Any] = {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)}

FAST = {"resnet10t", "mobilenetv3_small_050", "repvgg_a0", "convnext_atto", "deit_tiny_patch16_224", "lcnet_050"}

# name, side of the images, what must be prunable, arguments beside the number of classes
ROWS: list[tuple[str, int, tuple[str, ...], dict[str, Any]]] = [
    # ConvNeXt and other modern convolutional networks
    ("convnext_atto", 64, CONV, {}),
    ("convnext_atto_ols", 64, CONV, {}),
    ("convnextv2_atto", 64, CONV, {}),
    ("inception_next_atto", 64, CONV, {}),
    ("convmixer_768_32", 56, CONV, {}),
    ("mambaout_femto", 64, MLP, {}),
    ("rdnet_tiny", 64, CONV, {}),
    ("starnet_s050", 64, CONV, {}),
    ("fasternet_t0", 64, CONV, {}),
    ("focalnet_tiny_srf", 64, CONV, {}),
    ("hgnetv2_b0", 64, CONV, {}),
    ("repvit_m0_9", 64, CONV, {}),
    ("lcnetv2_small", 64, CONV, {}),
    # ResNets and what became of them
    ("resnet10t", 64, CONV, {}),
    ("resnet26d", 64, CONV, {}),
    ("resnetblur50d", 64, CONV, {"layers": (1, 1, 1, 1)}),
    ("resnetaa34d", 64, CONV, {"layers": (1, 1, 1, 1)}),
    ("seresnet18", 64, CONV, {}),
    ("ecaresnet26t", 64, CONV, {}),
    ("skresnet18", 64, CONV, {}),
    ("skresnext50_32x4d", 64, CONV, {}),
    ("resnest14d", 64, CONV, {}),
    ("resnest50d_4s2x40d", 64, CONV, {}),
    ("res2net50_26w_4s", 64, CONV, {}),
    ("res2next50", 64, CONV, {}),
    ("legacy_seresnet18", 64, CONV, {}),
    ("resnetv2_18", 64, CONV, {}),
    ("resnetv2_50x1_bit", 64, CONV, {}),
    ("resnetrs50", 64, CONV, {}),
    ("tresnet_m", 64, CONV, {}),
    ("gcresnext26ts", 64, CONV, {}),
    ("selecsls42", 64, CONV, {}),
    # weight-standardized, no normalization
    ("nf_resnet26", 64, CONV, {}),
    ("nf_regnet_b0", 64, CONV, {}),
    ("nf_seresnet26", 64, CONV, {}),
    ("eca_nfnet_l0", 64, CONV, {}),
    ("dm_nfnet_f0", 64, CONV, {}),
    # RegNet, DenseNet, DPN, Inception, VovNet, CSPNet, HRNet, DLA
    ("regnetx_002", 64, CONV, {}),
    ("regnety_002", 64, CONV, {}),
    ("regnetz_b16", 64, CONV, {}),
    ("densenet121", 64, CONV, {}),
    ("dpn48b", 64, CONV, {}),
    ("dpn68", 64, CONV, {}),
    ("inception_v3", 128, CONV, {}),
    ("inception_v4", 128, CONV, {}),
    ("inception_resnet_v2", 128, CONV, {}),
    ("vovnet39a", 64, CONV, {}),
    ("ese_vovnet19b_slim", 64, CONV, {}),
    ("ese_vovnet19b_dw", 64, CONV, {}),
    ("eca_vovnet39b", 64, CONV, {}),
    ("cspresnet50", 64, CONV, {}),
    ("cspdarknet53", 64, CONV, {}),
    ("cspresnext50", 64, CONV, {}),
    ("cs3darknet_s", 64, CONV, {}),
    ("darknet17", 64, CONV, {}),
    ("hrnet_w18_small", 64, CONV, {}),
    ("dla46_c", 64, CONV, {}),
    ("dla60_res2net", 64, CONV, {}),
    ("xception41", 64, CONV, {}),
    ("legacy_xception", 80, CONV, {}),
    # re-parameterized
    ("repvgg_a0", 32, CONV, {}),
    ("mobileone_s0", 64, CONV, {}),
    ("repghostnet_050", 64, CONV, {}),
    # mobile networks
    ("efficientnet_b0", 64, CONV, {}),
    ("efficientnet_b0_gn", 64, CONV, {}),
    ("tf_efficientnetv2_b0", 64, CONV, {}),
    ("efficientnetv2_rw_t", 64, CONV, {}),
    ("tf_efficientnet_lite0", 64, CONV, {}),
    ("efficientnet_cc_b0_4e", 64, CONV, {}),
    ("mobilenetv1_100", 64, CONV, {}),
    ("mobilenetv2_035", 64, CONV, {}),
    ("mobilenetv3_small_050", 64, CONV, {}),
    ("mobilenetv4_conv_small_035", 64, CONV, {}),
    ("mobilenetv4_hybrid_medium", 64, CONV, {}),
    ("mnasnet_small", 64, CONV, {}),
    ("mixnet_s", 64, CONV, {}),
    ("fbnetc_100", 64, CONV, {}),
    ("fbnetv3_b", 64, CONV, {}),
    ("hardcorenas_a", 64, CONV, {}),
    ("tinynet_e", 64, CONV, {}),
    ("lcnet_050", 64, CONV, {}),
    ("rexnet_100", 64, CONV, {}),
    ("ghostnet_050", 64, CONV, {}),
    ("ghostnetv2_100", 64, CONV, {}),
    ("ghostnetv3_050", 64, CONV, {}),
    # vision transformers: class token, distillation, relative positions, layer scale, registers, parallel branches
    ("vit_tiny_patch16_224", 32, HEADS, SMALL_VIT),
    ("deit_tiny_patch16_224", 32, HEADS, SMALL_VIT),
    ("deit_tiny_distilled_patch16_224", 32, HEADS, SMALL_VIT),
    ("deit3_small_patch16_224", 32, HEADS, SMALL_VIT),
    ("vit_relpos_small_patch16_224", 32, HEADS, SMALL_VIT),
    ("vit_relpos_base_patch16_clsgap_224", 32, HEADS, SMALL_VIT),
    ("vit_srelpos_small_patch16_224", 32, HEADS, SMALL_VIT),
    ("vit_medium_patch16_reg4_gap_256", 32, HEADS, SMALL_VIT),
    ("vit_base_patch16_clip_224", 32, HEADS, SMALL_VIT),
    ("vit_base_patch16_siglip_224", 32, HEADS, SMALL_VIT),
    ("vit_small_patch16_18x2_224", 32, HEADS, SMALL_VIT),
    ("vit_base_patch16_rpn_224", 32, HEADS, SMALL_VIT),
    ("vit_small_patch16_dinov3", 32, HEADS, SMALL_VIT),
    ("eva02_tiny_patch14_224", 32, HEADS, SMALL_VIT),
    ("beit_base_patch16_224", 32, HEADS, SMALL_VIT),
    ("beitv2_base_patch16_224", 32, HEADS, SMALL_VIT),
    ("cait_xxs24_224", 32, HEADS, SMALL_VIT),
    ("xcit_nano_12_p16_224", 32, HEADS, {"img_size": 32, "depth": 2}),
    ("convit_tiny", 32, HEADS, SMALL_VIT),
    ("samvit_base_patch16", 32, HEADS, {**SMALL_VIT, "global_attn_indexes": (1,), "window_size": 2}),
    ("vit_tiny_r_s16_p8_224", 64, HEADS, {"img_size": 64, "depth": 2}),
    # hierarchical transformers
    ("swin_tiny_patch4_window7_224", 56, HEADS, {"img_size": 56, **SMALL_SWIN}),
    ("swinv2_tiny_window8_256", 64, HEADS, {"img_size": 64, **SMALL_SWIN}),
    ("swinv2_cr_tiny_ns_224", 56, HEADS, {"img_size": 56, **SMALL_SWIN}),
    ("swin_s3_tiny_224", 56, HEADS, {"img_size": 56, "window_size": 7, "depths": (2, 2, 2, 2)}),
    ("pvt_v2_b0", 64, HEADS, {}),
    ("pvt_v2_b2_li", 64, HEADS, {"depths": (1, 1, 1, 1)}),
    ("twins_pcpvt_small", 64, HEADS, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    ("twins_svt_small", 64, HEADS, {"img_size": 64, "depths": (2, 2, 2, 2)}),
    ("levit_128s", 64, HEADS, {"img_size": 64}),
    ("levit_conv_128s", 64, HEADS, {"img_size": 64}),
    ("mvitv2_tiny", 64, HEADS, {"img_size": 64}),
    ("pit_ti_224", 64, HEADS, {"img_size": 64}),
    ("tnt_s_patch16_224", 32, HEADS, {"img_size": 32, "depth": 2}),
    ("nest_tiny", 64, HEADS, {"img_size": 64}),
    ("crossvit_tiny_240", 240, HEADS, {"depth": ((1, 1, 0), (1, 1, 0))}),
    ("davit_tiny", 64, HEADS, {"depths": (1, 1, 1, 1)}),
    ("gcvit_xxtiny", 64, HEADS, {"img_size": 64}),
    ("volo_d1_224", 64, HEADS, {"img_size": 64}),
    ("hiera_tiny_224", 64, HEADS, {"img_size": 64}),
    ("tiny_vit_5m_224", 64, HEADS, {}),
    ("coat_lite_tiny", 64, HEADS, {"img_size": 64}),
    ("nextvit_small", 64, HEADS, {}),
    # convolution and attention together
    ("maxvit_rmlp_pico_rw_256", 64, BOTH, {"img_size": 64}),
    ("maxvit_tiny_tf_224", 64, BOTH, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    ("coatnet_pico_rw_224", 64, BOTH, {"img_size": 64}),
    ("coatnet_rmlp_nano_rw_224", 64, BOTH, {"img_size": 64, "depths": (1, 1, 1, 1)}),
    ("efficientformer_l1", 224, BOTH, {}),
    ("efficientformerv2_s0", 64, BOTH, {"img_size": 64}),
    ("edgenext_xx_small", 64, BOTH, {}),
    ("poolformer_s12", 64, CONV, {}),
    ("poolformerv2_s12", 64, CONV, {}),
    ("caformer_s18", 64, BOTH, {}),
    ("convformer_s18", 64, CONV, {}),
    ("mobilevit_xxs", 64, BOTH, {}),
    ("mobilevitv2_050", 64, CONV, {}),
    ("fastvit_t8", 64, CONV, {}),
    ("efficientvit_b0", 64, CONV, {}),
    ("efficientvit_m0", 64, CONV, {"img_size": 64}),
    ("shvit_s1", 64, CONV, {}),
    ("visformer_tiny", 64, BOTH, {"img_size": 64}),
    ("botnet26t_256", 64, CONV, {"img_size": 64}),
    ("halonet26t", 256, CONV, {}),
    ("lambda_resnet26t", 64, CONV, {"img_size": 64}),
    ("bat_resnext26ts", 256, CONV, {}),
    # multilayer perceptrons and recurrence
    ("mixer_s32_224", 64, MLP, {"img_size": 64}),
    ("gmixer_12_224", 64, MLP, {"img_size": 64}),
    ("resmlp_12_224", 64, MLP, {"img_size": 64}),
    ("gmlp_ti16_224", 64, MLP, {"img_size": 64}),
    ("sequencer2d_s", 56, MLP, {"img_size": 56, "layers": (1, 1, 1, 1)}),
    # cells that were searched for, selective scans, and newer families
    ("nasnetalarge", 64, CONV, {}),
    ("csatv2", 128, HEADS, {}),
    ("cpubone_b0_bfrobust", 64, BOTH, {}),
    ("lowformer_b0", 64, BOTH, {}),
    ("efficientvim_m1", 64, CONV, {}),
    ("cspnext_tiny", 64, CONV, {}),
    ("iformer_t", 64, CONV, {}),
    ("mobilenetv5_base", 64, ("width", "head"), {}),
    ("swiftformer_xs", 64, CONV, {}),
    ("vitamin_small_224", 64, (*BOTH, *MLP), {"img_size": 64}),
    ("hieradet_small", 224, HEADS, {}),
    ("naflexvit_base_patch16_map", 32, HEADS, SMALL_VIT),
    ("gemma4_vit_167m", 96, HEADS, {"img_size": 96, "embed_dim": 48, "depth": 2, "num_heads": 4}),
    ("qwen3_vit_306m", 64, HEADS, {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4}),
    ("convnext_zepto_rms", 64, CONV, {}),
    ("resnetv2_50d_frn", 64, CONV, {}),
    ("regnetz_c16_evos", 64, CONV, {}),
]  # fmt: skip


def builder(name: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **options)
        return model

    return build


# Attention over blocks of positions takes only images that the blocks divide.
STEP = {"halonet26t": 256, "bat_resnext26ts": 256}


def larger(name: str, size: int, prunes: tuple[str, ...], options: dict[str, Any]) -> Callable[[], Tensor] | None:
    """Convolutional networks take images of any size."""
    return image(size + STEP.get(name, 32), batch=1) if prunes == CONV and "img_size" not in options else None


NETWORKS = [
    Network(
        f"timm/{name}",
        "timm",
        builder(name, options),
        image(size),
        larger(name, size, prunes, options),
        prunes,
        fast=name in FAST,
    )
    for name, size, prunes, options in ROWS
]
