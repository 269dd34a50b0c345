# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Text to token ids and back, from a tokenizer.json, exact to the byte."""

from __future__ import annotations

import codecs
import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from smartspec_core import FormatError
from tokenizers import Tokenizer as HfTokenizer

from .files import read_json

MAX_TOKENIZER_BYTES = 256 << 20


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in set(plain)]
    table = {chr(byte): byte for byte in plain}
    table.update({chr(256 + i): byte for i, byte in enumerate(moved)})
    return table


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:  # an added token that was never spelt in the alphabet
        return token.encode("utf-8", "replace")


def _metaspace(mark: str) -> Callable[[str], bytes]:
    def decode(token: str) -> bytes:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace(mark, " ").encode("utf-8", "replace")

    return decode


def _word_piece(token: str) -> bytes:
    text = token[2:] if token.startswith("##") else " " + token
    return text.encode("utf-8", "replace")


def _flatten(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [leaf for part in decoder.get("decoders", []) for leaf in _flatten(part)]
    return [decoder]


def _decoder_of(spec: Any) -> Callable[[str], bytes] | None:
    """How one token reads in the middle of a text; None: only the library knows."""
    leaves = _flatten(spec)
    kinds = {leaf.get("type") for leaf in leaves}
    if not leaves:
        return lambda token: (" " + token).encode("utf-8", "replace")
    if "ByteLevel" in kinds:
        return _byte_level
    if "Metaspace" in kinds:
        marks = [leaf.get("replacement") for leaf in leaves if leaf.get("type") == "Metaspace"]
        return _metaspace(str(marks[0] or "\u2581"))
    if "ByteFallback" in kinds:
        return _metaspace("\u2581")
    if "WordPiece" in kinds:
        return _word_piece
    return None


class Tokenizer:
    """A Hugging Face tokenizer.json with the bytes of every token.

    Text of a completion is the concatenation of its tokens' bytes, so cutting and streaming are
    exact; for ByteLevel tokenizers that is also what the library decodes. Metaspace tokenizers
    keep a first token's leading space, which the library strips, because text follows a prompt.
    """

    def __init__(self, data: dict[str, Any], source: str, vocab_size: int) -> None:
        try:
            self._tokenizer = HfTokenizer.from_str(json.dumps(data))
        except Exception as error:  # the library raises bare Exception
            raise FormatError(f"{source}: not a tokenizer the tokenizers library reads: {error}")  # noqa: B904
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.token_bytes = self._byte_table(_decoder_of(data.get("decoder")), vocab_size)

    @staticmethod
    def from_directory(folder: Path, vocab_size: int) -> Tokenizer | None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        return Tokenizer(read_json(path, MAX_TOKENIZER_BYTES), str(path), vocab_size)

    def _byte_table(self, decode: Callable[[str], bytes] | None, vocab_size: int) -> list[bytes]:
        """[vocab_size]; ids without a token are empty, special tokens are spelt out."""
        table = [b""] * vocab_size
        for token, index in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if not 0 <= index < vocab_size:
                continue
            if index in self.special_ids:
                table[index] = token.encode("utf-8", "replace")
            elif decode is not None:
                table[index] = decode(token)
            else:
                table[index] = self._tokenizer.decode([index]).encode("utf-8", "replace")
        return table

    def stop_bytes(self) -> list[bytes]:
        """What stop strings look at: special tokens have no text."""
        return [b"" if i in self.special_ids else text for i, text in enumerate(self.token_bytes)]

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The library's own decoding of a whole text."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        return self.token_bytes[token_id].decode("utf-8", "replace")

    def bad_word_ids(self, words: Iterable[str]) -> list[list[int]]:
        """vLLM's rule: the word at the start of a text, and after a space if that is the same
        number of tokens with another first one."""
        sequences: list[list[int]] = []
        for word in words:
            bare = self.encode(word.lstrip(), add_special_tokens=False)
            spaced = self.encode(" " + word.lstrip(), add_special_tokens=False)
            if not bare:
                raise ValueError(f"bad_words: {word[:80]!r} has no tokens")
            sequences.append(bare)
            if len(spaced) == len(bare) and spaced[0] != bare[0]:
                sequences.append(spaced)
        return sequences


class Detokenizer:
    """The text of one completion, incrementally. What it gives out is never taken back: an
    unfinished UTF-8 character and what may become a stop string stay inside."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._table = tokenizer.token_bytes
        self._special = tokenizer.special_ids
        self._stop = [text.encode("utf-8") for text in stop]
        self._include_stop = include_stop
        self._skip_special = skip_special_tokens
        self._text = bytearray()  # without special tokens, as the engine's stop check sees it
        self._inserts: deque[tuple[int, bytes]] = deque()  # special tokens by offset in _text
        self._last_size = 0
        self._released = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def append(self, token_ids: Iterable[int]) -> None:
        for token in token_ids:
            if token not in self._special:
                text = self._table[token]
                self._text += text
                self._last_size = len(text)
            else:
                self._last_size = 0
                if not self._skip_special:
                    self._inserts.append((len(self._text), self._table[token]))

    def take(self) -> str:
        """What is certain by now."""
        return self._release(len(self._text) - self._held_back())

    def finish(self, stop_index: int = -1) -> str:
        """The rest; `stop_index`: the stop string that the last token completed, or -1."""
        end = len(self._text)
        if stop_index >= 0:
            stop = self._stop[stop_index]
            begin = max(0, end - self._last_size - len(stop) + 1)
            found = self._text.find(stop, begin)
            if found >= 0:
                end = found + len(stop) if self._include_stop else found
        return self._release(end) + self._decoder.decode(b"", final=True)

    def _held_back(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _release(self, end: int) -> str:
        parts = []
        while self._inserts and self._inserts[0][0] <= end:
            offset, text = self._inserts.popleft()
            parts += [self._decoder.decode(self._text[self._released : offset] + text)]
            self._released = offset
        parts.append(self._decoder.decode(self._text[self._released : end]))
        self._released = max(self._released, end)
        return "".join(parts)
