"""Counting tokens, off the hot path: exact bounds when money is short, partial answers, nothing else."""

import asyncio
from collections.abc import Callable, Sequence

from proxy.gateway.counting.counter_client import CounterClient
from proxy.gateway.counting.vocabulary import Vocabularies, encoding_name
from proxy.gateway.workload.body_shape import is_heavy

INLINE_CHARACTERS = 4_096


class Tokenizer:
    """Counts in the counting process where there is one, and here where there is none or it does not answer."""

    def __init__(self, counter: CounterClient | None = None) -> None:
        """Load nothing yet."""
        self._vocabularies, self._counter = Vocabularies(), counter

    async def count(self, model: str, texts: Sequence[str]) -> int:
        """Tokens of all texts together in the model's encoding (unknown model: o200k_base). Raises TokenizerError."""
        if not any(texts):
            return 0
        name = encoding_name(model)
        counted = await self._counter.count(name, texts) if self._counter is not None else None
        if counted is not None:
            return counted
        if name in self._vocabularies and sum(map(len, texts)) <= INLINE_CHARACTERS:
            return self._vocabularies.count(name, texts)
        return await asyncio.to_thread(self._vocabularies.count, name, texts)

    async def count_body(self, model: str, texts_of: Callable[[bytes], tuple[list[str], int]], body: bytes) -> int:
        """Tokens of a body's texts (see Endpoint.texts) with their framing; a heavy body is read beside the loop."""
        texts, framing = await asyncio.to_thread(texts_of, body) if is_heavy(body) else texts_of(body)
        return framing + await self.count(model, texts)
