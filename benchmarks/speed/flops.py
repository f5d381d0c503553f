"""How much arithmetic a training needs, and how much a card can do: what utilisation is taken from."""

from __future__ import annotations

from typing import Final

from benchmarks.speed.models import Shape
from patches.backends import BackendName
from patches.chat import Encoded

PEAKS: Final = (
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
)
"""Dense bf16 operations a second by the vendor's data sheets; the first name that a card's name holds counts."""
_PASSES: Final[dict[BackendName, int]] = {"lora": 2, "sparse": 3, "full": 3}
"""Products with each matrix of the decoder: forward, back to what went in, and, but for frozen weights, to the weight."""


def peak(card: str) -> float | None:
    """Operations a second of a card by its name; None of one that is not known, whose utilisation is then not known."""
    return next((value for name, value in PEAKS if name in card), None)


def training_flops(shape: Shape, rows: list[Encoded], backend: BackendName) -> float:
    """What one forward and backward pass over the rows needs, padding and recomputation left out.

    Two operations a weight, token and pass. The head is frozen, and has the positions that predict a response only.
    Attention is counted as causal, three passes; adapters and norms are not counted.
    """
    matrices = sum(size[0] * size[1] for name, size in shape.tensors() if ".layers." in name and len(size) == 2)
    tokens = sum(len(row.ids) for row in rows)
    responses = sum(row.num_response_tokens for row in rows)
    pairs = sum(len(row.ids) ** 2 for row in rows) / 2  # of tokens that see each other
    linear = 2.0 * _PASSES[backend] * matrices * tokens
    head = 2.0 * 2 * shape.hidden * shape.vocabulary * responses
    attention = 3 * 2.0 * 2 * shape.hidden * pairs * shape.num_layers
    return linear + head + attention
