# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Texts, and the brute force that the suffix index is compared with."""

from __future__ import annotations

from smartspec_core import SuffixIndex

KIB = 1024
SMALL = {"max_bytes": 1024 * KIB, "generation_bytes": 16 * KIB}  # about 280 tokens a generation


class Oracle:
    """All texts of one namespace, searched from the front each time. Tokens below 256."""

    def __init__(self, texts=()):
        self.texts = [bytes(text) for text in texts]

    def places(self, pattern):
        for text in self.texts:
            at = text.find(pattern)
            while at >= 0:
                yield text, at + len(pattern)
                at = text.find(pattern, at + 1)

    def lookup(self, context):
        """Match length, occurrences, and those of each continuation."""
        for begin in range(len(context)):
            suffix = bytes(context[begin:])
            places = list(self.places(suffix))
            if places:
                following = [text[end] for text, end in places if end < len(text)]
                return len(suffix), len(places), {t: following.count(t) for t in set(following)}
        return 0, 0, {}

    def check(self, found, context):
        length, count, following = self.lookup(context)
        assert (found.match_length, found.count) == (length, count), context
        assert found.best_count == max(following.values(), default=0)
        if following:
            assert following[found.best_token] == found.best_count
        else:
            assert found.best_token == -1


def some_text(rng, length, alphabet=4):
    """Random, with repeats of itself."""
    text = [rng.randrange(alphabet) for _ in range(length)]
    for _ in range(length // 20):
        begin, to = rng.randrange(length), rng.randrange(length)
        size = min(rng.randrange(1, 20), length - begin, length - to)
        text[to : to + size] = text[begin : begin + size]
    return text


def some_contexts(rng, texts, count):
    for _ in range(count):
        context = [rng.randrange(4) for _ in range(rng.randrange(8))]
        if texts and rng.random() < 0.7:  # something known behind something unknown
            text = rng.choice(texts)
            end = rng.randrange(len(text) + 1)
            context += text[max(0, end - rng.randrange(40)) : end]
        yield context


def check_lookups(index, texts, rng, count=60, name_space=""):
    oracle = Oracle(texts)
    for context in some_contexts(rng, texts, count):
        oracle.check(index.lookup(context, name_space), context)


def drafts_of(index, ids, **options):
    """As Python values, up to each length."""
    drafts = index.draft(ids, **options)
    return [
        (
            drafts.tokens[i, :n].tolist(),
            drafts.parents[i, :n].tolist(),
            drafts.survival[i, :n].tolist(),
            int(drafts.match_lengths[i]),
        )
        for i, n in enumerate(drafts.lengths.tolist())
    ]


def grown(rng, num_requests=9):
    index = SuffixIndex()
    for i in range(num_requests):
        index.start_request(i, some_text(rng, 40))
        index.extend(i, some_text(rng, 40))
    return index
