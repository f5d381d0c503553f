"""Invented words: pronounceable, and the same for the same seed."""

import random
from collections.abc import Sequence

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "t", "v")
_VOWELS = ("a", "e", "i", "o", "u")
# Few codas that English words seldom end in. Each closing syllable has one coda only, so that few pieces spell every
# word and a small tokenizer has room for all of them.
_CODAS = ("sk", "zz", "x", "rk", "lt", "mp", "v", "rz")
_OPEN = tuple(onset + vowel for onset in _ONSETS for vowel in _VOWELS)
_CLOSED = tuple(syllable + _CODAS[index * 3 % len(_CODAS)] for index, syllable in enumerate(_OPEN))


def invent(rng: random.Random, num_words: int, *, taken: set[str]) -> tuple[str, ...]:
    """Give ``num_words`` new words of two syllables, none in ``taken``, and add them to it.

    Raises:
        ValueError: there are not enough words left.
    """
    words: list[str] = []
    for _ in range(200 * num_words):
        if len(words) == num_words:
            return tuple(words)
        word = rng.choice(_OPEN) + rng.choice(_CLOSED)
        if word not in taken:
            taken.add(word)
            words.append(word)
    raise ValueError(f"cannot invent {num_words} words beside {len(taken)} taken ones: ask for fewer")


def join_words(words: Sequence[str]) -> str:
    """Give ``a, b and c``."""
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " and " + words[-1]
