"""What of the list stays whole although networks of its kind could lose it, and what is refused, as it is today.

Each entry is something that the engine cannot do on the network's own class yet.
"""

from __future__ import annotations

from dataclasses import replace

from tests.graph.networks.entry import Network, words

STAYS: dict[tuple[str, ...], list[str]] = {
    ("head",): words("""
torchvision/swin_b torchvision/swin_s torchvision/swin_t torchvision/swin_v2_b torchvision/swin_v2_s
torchvision/swin_v2_t torchvision/vit_b_16 torchvision/vit_b_32 torchvision/vit_h_14 torchvision/vit_l_16
torchvision/vit_l_32 timm/vit_relpos_small_patch16_224 timm/vit_relpos_base_patch16_clsgap_224
timm/vit_srelpos_small_patch16_224 timm/vit_small_patch16_dinov3 timm/eva02_tiny_patch14_224
timm/beit_base_patch16_224 timm/beitv2_base_patch16_224 timm/cait_xxs24_224 timm/xcit_nano_12_p16_224
timm/convit_tiny timm/samvit_base_patch16 timm/swinv2_tiny_window8_256 timm/swinv2_cr_tiny_ns_224
timm/pvt_v2_b0 timm/pvt_v2_b2_li timm/twins_pcpvt_small timm/twins_svt_small timm/mvitv2_tiny
timm/tnt_s_patch16_224 timm/nest_tiny timm/davit_tiny timm/gcvit_xxtiny timm/volo_d1_224 timm/tiny_vit_5m_224
timm/coat_lite_tiny timm/efficientformerv2_s0 timm/caformer_s18
transformers/BloomForCausalLM other/seq2seq_transformer
transformers/IBertForSequenceClassification
"""),
    ("neuron",): words("""
timm/levit_conv_128s
"""),
    ("neuron", "head"): words("""
timm/nextvit_small
"""),
    ("channel", "head"): words("""
timm/edgenext_xx_small
"""),
}
REFUSED: dict[str, str] = {
    "timm/resnetv2_50x1_bit": "weights are standardized",
    "timm/nf_resnet26": "weights are standardized",
    "timm/gmlp_ti16_224": "its statistics run over this axis",
    "transformers/ConvNextV2ForImageClassification": "averages over this axis",
    "other/patch_critic": "the extent of a kernel is fixed",
}
_MISSING = {name: set(kinds) for kinds, names in STAYS.items() for name in names}


def as_it_is(network: Network) -> Network:
    """The network with what is expected of it today."""
    if network.name in REFUSED:
        return replace(network, prunes=(), expected="refused", reason=REFUSED[network.name])
    missing = _MISSING.get(network.name, set())
    return replace(network, prunes=tuple(kind for kind in network.prunes if kind not in missing))
