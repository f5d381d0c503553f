"""How much memory a round takes on its device, by the size of the model: computed from what the code holds, not measured.

`python -m benchmarks.sizing` prints the table of docs/operations.md. Activations and the cache of generation come on top:
they depend on `derive.max_length` and are made smaller where memory runs out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

from patches.snip import ENTRIES_AT_ONCE

GIB: Final = 1 << 30
SCORE_BYTES: Final = 4
"""Choosing entries: a float32 sum for each entry of the decoder's matrices (`patches/snip.py`)."""
CHOSEN_BYTES: Final = 4 + 4 + 4 + 2 * 4
"""Training a chosen entry: its place, its value, its gradient and two moments of AdamW (`patches/sparse.py`); its old value
is in main memory."""
FULL_BYTES: Final = 4 + 4 + 2 * 4
"""Training every entry: value in float32, gradient, two moments. The old value takes the place of the model's own."""
PATCH_BYTES: Final = 2 * 4 + 1
"""In main memory an entry of the decoder: both patches in float32, and a byte that says whether it was chosen. The model's own
value, of its type, comes on top: it waits there while the second patch is trained on top of the first."""


@dataclass(frozen=True)
class Shape:
    """A model of the Llama shape, without biases, its output embeddings its own."""

    hidden: int
    intermediate: int
    num_layers: int
    vocabulary: int
    kv_fraction: float
    """Share of the attention heads that have keys and values of their own."""

    @property
    def decoder(self) -> int:
        """Entries of the decoder's matrices, which a round may change."""
        attention = self.hidden**2 * (2 + 2 * self.kv_fraction)
        return round(self.num_layers * (attention + 3 * self.hidden * self.intermediate))

    @property
    def parameters(self) -> int:
        """Entries of the whole model."""
        return self.decoder + 2 * self.vocabulary * self.hidden + (2 * self.num_layers + 1) * self.hidden

    @property
    def largest(self) -> int:
        """Entries of the decoder's largest matrix."""
        return self.hidden * max(self.hidden, self.intermediate)


SHAPES: Final = (
    Shape(1024, 2816, 24, 32_000, 1.0),
    Shape(2048, 8192, 16, 128_000, 0.25),
    Shape(3072, 8192, 28, 128_000, 1 / 3),
    Shape(4096, 14_336, 32, 128_000, 0.25),
    Shape(5120, 13_824, 40, 32_000, 1.0),
)


def choosing(shape: Shape, type_bytes: int) -> int:
    """Bytes on the device while entries are chosen."""
    at_once = max(ENTRIES_AT_ONCE["cuda"], shape.largest)
    return type_bytes * shape.parameters + SCORE_BYTES * (shape.decoder + shape.largest) + type_bytes * at_once


def training_sparse(shape: Shape, type_bytes: int, fraction: float = 0.1) -> int:
    """Bytes on the device while chosen entries are trained."""
    chosen = round(fraction * shape.decoder)
    return type_bytes * (shape.parameters + shape.largest) + CHOSEN_BYTES * chosen


def training_full(shape: Shape, type_bytes: int) -> int:
    """Bytes on the device while every entry of the decoder is trained."""
    return type_bytes * shape.parameters + FULL_BYTES * shape.decoder


def measuring(shape: Shape, type_bytes: int) -> int:
    """Bytes on the device while v0 and another model are there."""
    return 2 * type_bytes * shape.parameters


def in_main_memory(shape: Shape, type_bytes: int, fraction: float = 0.1) -> int:
    """Bytes of main memory at the end of the second training, when the chosen entries' old values are still there."""
    return (PATCH_BYTES + type_bytes) * shape.decoder + type_bytes * round(fraction * shape.decoder)


def table(type_bytes: int = 2) -> str:
    """All shapes in Markdown; with 2 bytes an entry, which is bfloat16."""
    head = "| parameters | layers x hidden | choosing | training | both models | `full` instead | main memory |\n"
    lines = [head, f"|{' --- |' * 7}\n"]
    for shape in SHAPES:
        parts = (choosing, training_sparse, measuring, training_full, in_main_memory)
        needed = [each(shape, type_bytes) for each in parts]
        figures = " | ".join(f"{each / GIB:.1f} GiB" for each in needed)
        lines.append(f"| {shape.parameters / 1e9:.1f} B | {shape.num_layers} x {shape.hidden} | {figures} |\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table())
