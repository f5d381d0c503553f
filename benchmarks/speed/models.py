"""Model folders of the Llama shape with random weights, made on the spot: bf16, in shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

TOKENIZER: Final = Path(__file__).resolve().parent.parent / "world" / "model"
SHARD_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Shape:
    """A Llama."""

    name: str
    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocabulary: int = 32000

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in the order of the checkpoint."""
        hidden, head = self.hidden, self.hidden // self.num_heads
        yield "model.embed_tokens.weight", (self.vocabulary, hidden)
        for number in range(self.num_layers):
            prefix = f"model.layers.{number}"
            for name, rows in (("q", self.num_heads), ("k", self.num_kv_heads), ("v", self.num_kv_heads)):
                yield f"{prefix}.self_attn.{name}_proj.weight", (rows * head, hidden)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, hidden)
            yield f"{prefix}.mlp.gate_proj.weight", (self.intermediate, hidden)
            yield f"{prefix}.mlp.up_proj.weight", (self.intermediate, hidden)
            yield f"{prefix}.mlp.down_proj.weight", (hidden, self.intermediate)
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield f"{prefix}.{name}.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocabulary, hidden)

    @property
    def num_entries(self) -> int:
        """Of all tensors."""
        return sum(_numel(shape) for _, shape in self.tensors())


SHAPES: Final = {
    shape.name: shape
    for shape in (
        Shape("0.1B", 640, 1728, 12, 10, 10),
        Shape("0.3B", 1024, 2816, 24, 16, 16),
        Shape("1B", 2048, 5632, 22, 32, 4),
        Shape("3B", 3200, 8640, 26, 32, 32),
        Shape("8B", 4096, 14336, 32, 32, 8, vocabulary=128256),
    )
}


def make(shape: Shape, folder: Path) -> Path:
    """A model folder that transformers could load: config, the demo's tokenizer, shards of 1 GiB, index."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (TOKENIZER / name).exists():
            shutil.copy(TOKENIZER / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config_of(shape), indent=2))
    generator = torch.Generator().manual_seed(0)
    parts: list[dict[str, torch.Tensor]] = [{}]
    names: list[list[str]] = []
    aside: list[Path] = []
    num_bytes = 0
    for name, size in shape.tensors():
        if num_bytes + 2 * _numel(size) > SHARD_BYTES and parts[-1]:
            aside.append(_save(parts[-1], folder, len(aside)))
            names.append(list(parts[-1]))
            parts[-1], num_bytes = {}, 0
        spread = 0.02 if len(size) > 1 else 0.0
        parts[-1][name] = (torch.randn(size, generator=generator) * spread + (len(size) == 1)).to(torch.bfloat16)
        num_bytes += 2 * _numel(size)
    aside.append(_save(parts[-1], folder, len(aside)))
    names.append(list(parts[-1]))
    _index(folder, aside, names)
    return folder


def config_of(shape: Shape) -> dict[str, object]:
    """What its config.json says."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def _save(part: dict[str, torch.Tensor], folder: Path, number: int) -> Path:
    path = folder / f"part-{number}.safetensors"
    save_file(part, path, metadata={"format": "pt"})
    return path


def _index(folder: Path, parts: list[Path], names: list[list[str]]) -> None:
    """Shards and index by the names that everybody gives them."""
    total = len(parts)
    if total == 1:
        parts[0].rename(folder / "model.safetensors")
        return
    shards = [f"model-{number + 1:05d}-of-{total:05d}.safetensors" for number in range(total)]
    for path, shard in zip(parts, shards, strict=True):
        path.rename(folder / shard)
    weight_map = {name: shard for shard, held in zip(shards, names, strict=True) for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _numel(shape: tuple[int, ...]) -> int:
    num = 1
    for size in shape:
        num *= size
    return num
