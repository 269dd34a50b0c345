# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Text, byte by byte: detokenization is incremental, exact, and cuts at stop strings."""

from __future__ import annotations

import random

import pytest
from smartspec.tokenizer import Detokenizer, Tokenizer

METASPACE = {
    "version": "1.0",
    "added_tokens": [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, text in enumerate(["<unk>", "<s>", "</s>"])
    ],
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]},
    "model": {
        "type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True,
        "vocab": {
            "<unk>": 0, "<s>": 1, "</s>": 2,
            **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)},
            "▁": 259, "a": 260, "b": 261, "▁a": 262, "é": 263,
        },
        "merges": [["▁", "a"]],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def byte_level(llm):
    return llm.tokenizer


@pytest.fixture(scope="module")
def metaspace():
    return Tokenizer(METASPACE, "test", 300)


def pieces(tokenizer, token_ids, rng, **options):
    """Text handed out in steps of random size."""
    detokenizer = Detokenizer(tokenizer, **options)
    parts, at = [], 0
    while at < len(token_ids):
        size = rng.randint(1, 4)
        detokenizer.append(token_ids[at : at + size])
        at += size
        parts.append(detokenizer.take())
    return [*parts, detokenizer.finish()]


def test_every_id_has_its_bytes(byte_level):
    for token in range(1, 4096):
        expected = byte_level.decode([token])
        assert byte_level.token_bytes[token].decode("utf-8", "replace") == expected
    assert byte_level.token_bytes[0] == b"<|endoftext|>"
    assert byte_level.stop_bytes()[0] == b""


def test_incremental_equals_full_decoding(byte_level):
    rng = random.Random(0)
    for round_ in range(300):
        token_ids = [rng.randrange(0, 4096) for _ in range(rng.randint(1, 40))]
        if round_ % 2:  # raw bytes: mostly invalid UTF-8
            token_ids = [rng.randrange(1, 257) for _ in token_ids]
        for skip in (True, False):
            parts = pieces(byte_level, token_ids, rng, skip_special_tokens=skip)
            assert "".join(parts) == byte_level.decode(token_ids, skip_special_tokens=skip)


def test_unfinished_character_is_held_back(byte_level):
    token_ids = [
        token for byte in "a€😀".encode() for token in [byte_level.token_bytes.index(bytes([byte]))]
    ]
    detokenizer = Detokenizer(byte_level)
    parts = []
    for token in token_ids:
        detokenizer.append([token])
        parts.append(detokenizer.take())
    assert parts == ["a", "", "", "€", "", "", "", "😀"]
    detokenizer.append(token_ids[1:3])
    assert detokenizer.take() == ""
    assert detokenizer.finish() == "\ufffd"


def test_stop_string_is_cut_exactly_wherever_tokens_end(byte_level):
    rng = random.Random(1)
    text = "for é in range(10):\n    print('€', é)\n"
    stops = ["range(", "€', é", "\n    p", "é"]
    for _ in range(200):
        spelling = []
        rest = text.encode()
        while rest:  # a random segmentation into known tokens
            sizes = [n for n in range(1, 8) if rest[:n] in byte_level.token_bytes]
            size = rng.choice(sizes)
            spelling.append(byte_level.token_bytes.index(rest[:size]))
            rest = rest[size:]
        stop = rng.choice(stops)
        for include in (False, True):
            detokenizer = Detokenizer(byte_level, [stop], include_stop=include)
            seen, given = b"", ""
            for token in spelling:
                detokenizer.append([token])
                seen += byte_level.token_bytes[token]
                if stop.encode() in seen:
                    given += detokenizer.finish(0)
                    break
                given += detokenizer.take()
                assert text.startswith(given)
                assert stop not in given
            end = text.index(stop) + (len(stop) if include else 0)
            assert given == text[:end]


def test_special_tokens_around_a_cut(byte_level):
    token_ids = [*byte_level.encode("ab"), 0, *byte_level.encode("cd stop ef")]
    for skip, expected in ((True, "abcd "), (False, "ab<|endoftext|>cd ")):
        detokenizer = Detokenizer(byte_level, ["stop"], skip_special_tokens=skip)
        detokenizer.append(token_ids[: len(byte_level.encode("ab")) + 1])
        first = detokenizer.take()
        stream = b""
        for token in token_ids[len(byte_level.encode("ab")) + 1 :]:
            detokenizer.append([token])
            stream += byte_level.token_bytes[token]
            if b"stop" in stream:
                break
        assert first + detokenizer.finish(0) == expected


def test_special_token_right_before_a_cut(byte_level):
    detokenizer = Detokenizer(byte_level, ["stop"], skip_special_tokens=False)
    token_ids = [*byte_level.encode("ab"), 0, *byte_level.encode("stop")]
    detokenizer.append(token_ids)
    detokenizer._last_size = len(b"stop")
    assert detokenizer.finish(0) == "ab<|endoftext|>"


def test_metaspace_and_byte_fallback(metaspace):
    assert metaspace.token_bytes[262] == b" a"
    assert metaspace.token_bytes[3 + 0xE2] == b"\xe2"
    assert metaspace.token_bytes[263] == "é".encode()
    assert metaspace.token_bytes[299] == b""
    rng = random.Random(2)
    euro = [3 + byte for byte in "€".encode()]
    token_ids = [262, 260, *euro, 261, 262, 263, *euro]
    text = "".join(pieces(metaspace, token_ids, rng))
    assert text == " aa€b aé€"
    assert metaspace.decode(token_ids) == text[1:]  # the library strips the first space


def test_other_decoders_are_read_token_by_token():
    data = {**METASPACE, "decoder": {"type": "BPEDecoder", "suffix": "</w>"}}
    assert Tokenizer(data, "test", 264).token_bytes[260] == b"a"
    bare = {**METASPACE, "decoder": None}
    assert Tokenizer(bare, "test", 264).token_bytes[260] == b" a"


def test_bad_words_follow_vllms_rule():
    class Spelt(Tokenizer):
        def __init__(self, table):
            self.table = table

        def encode(self, text, add_special_tokens=True):
            assert not add_special_tokens
            return self.table[text]

    table = {
        "one": [1, 2], " one": [3, 2],  # as many tokens, another first one: both forms
        "two": [1, 2], " two": [3, 1, 2],  # more tokens: the bare form only
        "six": [5, 1], " six": [5, 6],  # the space is a token of its own: bare only
    }  # fmt: skip
    spelt = Spelt(table)
    assert spelt.bad_word_ids(["one"]) == [[1, 2], [3, 2]]
    assert spelt.bad_word_ids(["  two", "six"]) == [[1, 2], [5, 1]]
