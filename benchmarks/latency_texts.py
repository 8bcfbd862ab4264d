"""On what is time measured? Random texts of common words, each of exactly so many tokens, no two alike."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

COMMON_WORDS = 5000


class Texts:
    """Draws them; lengths are in tokens of ``tokenizer`` (tokenizers.Tokenizer), special ones included.

    The words are the first COMMON_WORDS of its vocabulary that are one token each, the commoner the oftener,
    as in a language.
    """

    def __init__(self, tokenizer: Any, rng: random.Random) -> None:
        self._tokenizer, self._rng = tokenizer, rng
        self._frame = len(tokenizer.encode("").ids)
        by_id = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        plain = (word for word, _ in by_id if len(word) > 1 and word.isascii() and word.isalpha())
        self._words = list(itertools.islice(filter(self._is_one_token, plain), COMMON_WORDS))
        weights = (1 / (rank + 10) for rank in range(len(self._words)))
        self._cumulated = list(itertools.accumulate(weights))
        self._drawn: set[int] = set()  # hashes

    def draw(self, n: int, n_tokens: int) -> list[str]:
        """``n`` texts that were never drawn before."""
        return [self._new(n_tokens) for _ in range(n)]

    def mixed(self, n: int, shortest: int, longest: int) -> list[str]:
        """``n`` new texts of ``shortest`` to ``longest`` tokens, as many in each doubling."""
        ends = math.log(shortest), math.log(longest)
        return [self._new(round(math.exp(self._rng.uniform(*ends)))) for _ in range(n)]

    def _is_one_token(self, word: str) -> bool:
        return len(self._tokenizer.encode(word).ids) == self._frame + 1

    def _new(self, n_tokens: int) -> str:
        while True:
            words = self._rng.choices(self._words, cum_weights=self._cumulated, k=n_tokens - self._frame)
            text = " ".join(words)
            if hash(text) not in self._drawn:
                self._drawn.add(hash(text))
                return text
