# SPDX-License-Identifier: Apache-2.0
"""Prompts to embeddings: clean, tokenize, encode, pad. Only a prompt of the user's own needs this room."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .engine import Engine
from .errors import MissingExtraError

Embedding = npt.NDArray[np.float32]


def clean_prompt(prompt: str) -> str:
    """Mend broken characters, resolve HTML entities twice, and collapse white space.

    Source: Wan2.1 tokenizers.py, `clean="whitespace"`; facts only.
    """
    try:
        import ftfy
    except ImportError as error:
        raise MissingExtraError("ftfy", extra="text", purpose="reading a prompt") from error
    mended = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", mended).strip()


def tokenize(prompts: Sequence[str], *, tokenizer: Path, length: int) -> list[npt.NDArray[np.int64]]:
    """Return each prompt's token ids, at most `length` of them, the last one the end token."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", extra="text", purpose="reading a prompt") from error
    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    reader.enable_truncation(length)
    return [np.asarray(reader.encode(clean_prompt(prompt)).ids, dtype=np.int64) for prompt in prompts]


def embed(prompts: Sequence[str], *, tokenizer: Path, length: int, encoder: Engine) -> list[Embedding]:
    """Return the embedding of each prompt: [tokens, width], without the zero rows that pad it."""
    embeddings: list[Embedding] = []
    for ids in tokenize(prompts, tokenizer=tokenizer, length=length):
        feeds = {"ids": ids[None], "mask": np.ones_like(ids)[None]}
        embeddings.append(encoder.run(feeds)["hidden"])
    return embeddings


def padded(embedding: Embedding, *, length: int) -> Embedding:
    """Return the embedding as the network takes it: [1, length, width], zero past its end."""
    result = np.zeros((1, length, embedding.shape[1]), dtype=np.float32)
    result[0, : len(embedding)] = embedding[:length]
    return result
