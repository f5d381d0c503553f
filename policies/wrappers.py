"""The jailbreaks of a batch: text that many of its prompts share around a part that is their own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SHARE, LEAST_PROMPTS, MOST_WRAPPERS = 0.03, 5, 20
_SEGMENT = re.compile(r".+?(?:[.!?:;,。！？：；，\n]+\s*|$)", re.DOTALL)


@dataclass(frozen=True)
class Wrapper:
    """What stands before and after a question."""

    prefix: str
    suffix: str

    def around(self, prompt: str) -> str:
        """The prompt in this wrapper."""
        gap = " " if self.suffix and not prompt[-1:].isspace() else ""
        return f"{self.prefix}{prompt}{gap}{self.suffix}"


def shared_wrappers(prompts: Sequence[str]) -> list[Wrapper]:
    """The wrappers that at least 3 % of the prompts, and at least five, stand in; the commonest first, 20 at most.

    A prompt is cut after its punctuation. Pieces that so many prompts share, and that come before or after all pieces of its
    own, are its wrapper. A form of asking that ends in a comma passes for one, too.
    """
    pieces = [_SEGMENT.findall(prompt) for prompt in prompts]
    num_with = Counter(piece.strip() for parts in pieces for piece in set(parts))
    least = max(LEAST_PROMPTS, LEAST_SHARE * len(prompts))
    found: Counter[Wrapper] = Counter()
    for parts in pieces:
        own = [place for place, piece in enumerate(parts) if num_with[piece.strip()] < least]
        if own and len(own) < len(parts):
            found[Wrapper("".join(parts[: own[0]]), "".join(parts[own[-1] + 1 :]))] += 1
    del found[Wrapper("", "")]
    return [wrapper for wrapper, count in found.most_common(MOST_WRAPPERS) if count >= least]
