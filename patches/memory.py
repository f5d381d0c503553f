"""Work that runs out of memory, done again in smaller pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def is_out_of_memory(err: Exception) -> bool:
    """Whether an error says that there was no memory, on whatever device."""
    # on the CPU torch has no class of its own for it
    return isinstance(err, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(err)


def in_pieces(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], what: str
) -> Iterator[tuple[Sequence[Item], Result]]:
    """The items, and what ``work`` makes of them: all at once, or half by half where that runs out of memory.

    Args:
        items: at least one.
        what: the work in words, "answer prompts".
    Raises:
        MemoryError: there is not enough even for one item.
    """
    try:
        result = work(items)
    except (MemoryError, RuntimeError) as err:
        if not is_out_of_memory(err):
            raise
        if len(items) == 1:
            raise MemoryError(
                f"no memory to {what}, even one at a time; a smaller model or more memory is needed"
            ) from err
    else:
        yield items, result
        return
    # out of the handler, where the error still holds what was in memory
    torch.cuda.empty_cache()
    middle = len(items) // 2
    yield from in_pieces(work, items[:middle], what)
    yield from in_pieces(work, items[middle:], what)


def in_smaller_passes(
    work: Callable[[int], Result], max_tokens: int, lengths: Sequence[int], what: str
) -> tuple[Result, int]:
    """What ``work`` makes in passes of at most so many tokens, and how many these are.

    Where memory runs out it is done again from its start in passes of half as many, down to one row at a time.

    Args:
        lengths: tokens of each row.
        what: the work in words, "score".
    Raises:
        MemoryError: there is not enough even for the longest row.
    """
    longest = max(lengths)
    while True:
        try:
            return work(max_tokens), max_tokens
        except (MemoryError, RuntimeError) as err:
            if not is_out_of_memory(err):
                raise
            if max_tokens <= longest:
                raise MemoryError(f"no memory to {what} one row of {longest} tokens; lower derive.max_length") from err
        # out of the handler, where the error still holds what was in memory
        torch.cuda.empty_cache()
        max_tokens = max(min(max_tokens, longest * len(lengths)) // 2, longest)
