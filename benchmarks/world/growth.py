"""A wider model that starts from what a narrower one knows, so that half an hour of two cores is enough to train it.

Net2WiderNet (arXiv 1511.05641) for a Llama shape with tied embeddings: every unit is repeated, what reads the copies is divided
by their number, and noise makes the copies differ. Without noise the wide model computes what the narrow one does.
"""

import torch
from transformers import LlamaForCausalLM


def grow(wide: LlamaForCausalLM, narrow: LlamaForCausalLM, *, noise: float, seed: int) -> None:
    """Overwrite ``wide`` with repeated copies of ``narrow``.

    Args:
        noise: standard deviation of what is added to every weight matrix, as a share of the matrix's own.
    Raises:
        ValueError: the wide model is not the narrow one with every width multiplied by one whole number.
    """
    copies = wide.config.hidden_size // narrow.config.hidden_size
    _require_multiple(wide, narrow, copies)
    generator = torch.Generator().manual_seed(seed)
    source = narrow.state_dict()
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            grown = _grown(name, source[name].float(), copies)
            if weight.dim() == 2:
                grown = grown + noise * grown.std() * torch.randn(grown.shape, generator=generator)
            weight.copy_(grown)


def _grown(name: str, weight: torch.Tensor, copies: int) -> torch.Tensor:
    """One weight of the narrow model, for inputs and outputs that come in copies."""
    if name == "model.embed_tokens.weight":
        return weight.repeat(1, copies)
    if name == "model.norm.weight":
        return weight.repeat(copies) / copies  # the tied head sums over the copies
    return weight.repeat(copies) if weight.dim() == 1 else weight.repeat(copies, copies) / copies


def _require_multiple(wide: LlamaForCausalLM, narrow: LlamaForCausalLM, copies: int) -> None:
    for field in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if getattr(wide.config, field) != copies * getattr(narrow.config, field):
            raise ValueError(
                f"{field} {getattr(wide.config, field)} is not {copies} times {getattr(narrow.config, field)}: a model is "
                "grown by one whole number in every width"
            )
    if wide.config.num_hidden_layers != narrow.config.num_hidden_layers or not wide.config.tie_word_embeddings:
        raise ValueError("only a model of as many layers, with tied embeddings, is grown")
