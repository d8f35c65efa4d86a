"""Vectors for texts from an OpenAI-compatible `/v1/embeddings`, for semantic diversity.

Knows one route and batches. Does NOT know what the vectors are compared for.
"""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import msgspec
import numpy as np

from gateway.evaluation.diversity import Vectors
from gateway.evaluation.wire import Malformed, Refused, Unreachable, decode

BATCH = 64  # texts per request


class _Row(msgspec.Struct):
    index: int
    embedding: list[float]


class _Listing(msgspec.Struct):
    data: list[_Row]


class Embedder(msgspec.Struct, frozen=True):
    """Callable: texts -> a row each. `base_url` with or without /v1. Raises ClientError."""

    base_url: str
    model: str
    api_key: str | None = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        rows: list[list[float]] = []
        for start in range(0, len(texts), BATCH):
            rows += self._ask([text or " " for text in texts[start : start + BATCH]])  # engines refuse empty input
        return np.array(rows, dtype=float)

    def _ask(self, texts: Sequence[str]) -> list[list[float]]:
        url = self.base_url.rstrip("/").removesuffix("/v1") + "/v1/embeddings"
        headers = {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        try:
            answer = httpx.post(url, json={"model": self.model, "input": texts}, headers=headers, timeout=120)
        except httpx.TransportError as error:
            raise Unreachable(f"{url}: {error or type(error).__name__}") from error
        if not answer.is_success:
            raise Refused(f"{url}: {answer.status_code} {answer.text[:200]}", status=answer.status_code)
        rows = sorted(decode(answer.content, _Listing).data, key=lambda row: row.index)
        if len(rows) != len(texts) or len({len(row.embedding) for row in rows}) != 1:
            raise Malformed(f"{url}: expected {len(texts)} vectors of one length, got {len(rows)}")
        return [row.embedding for row in rows]
