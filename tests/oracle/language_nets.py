"""Tiny transformers models with random weights, in float64, and tokens for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus


def llama(layers: int = 2, **changes: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    given = {"vocab_size": 31, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2}
    given |= {"intermediate_size": 24, "max_position_embeddings": 32}
    return _made(LlamaForCausalLM, LlamaConfig(**given | {"num_hidden_layers": layers} | changes))


def gpt2(layers: int = 2) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    given = {"vocab_size": 31, "n_embd": 16, "n_head": 2, "n_positions": 16, "bos_token_id": 0, "eos_token_id": 0}
    return _made(GPT2LMHeadModel, GPT2Config(**given, n_layer=layers))


def opt(layers: int = 2) -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    given = {"vocab_size": 31, "hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 2, "word_embed_proj_dim": 16}
    return _made(OPTForCausalLM, OPTConfig(**given, max_position_embeddings=16, num_hidden_layers=layers))


def bert(layers: int = 2) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    given = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return _made(
        BertForSequenceClassification, BertConfig(**given, max_position_embeddings=16, num_hidden_layers=layers)
    )


def _made(kind: type, config: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = kind(config).double().eval()
        for p in model.parameters():  # trained norms are no ones, trained biases no zeros
            with torch.no_grad():
                p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.1))
    return model


def tokens(count: int = 2, length: int = 8) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    return [{"input_ids": torch.randint(31, (3, length), generator=draw)} for _ in range(count)]


def next_token(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten())


def language_task(**changes: object) -> prunus.Task:
    return prunus.Task(**{"loss": next_token, "calib": tokens(), "example": tokens()[0]} | changes)


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    from prunus.graph.wide import Wide

    with torch.no_grad(), Wide():
        return model.eval()(**batch).logits
