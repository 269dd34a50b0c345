# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Workloads that the suffix proposer is replayed on: code files and answers of language models.

Code, tokenised by a byte-level BPE trained here (8,192 entries; with --large also 150,000):
  train  history: files of the old standard library, cut into responses, 3.0 M tokens
  held   files that are never in the history: prompt 512 tokens, response <= 1024
  edit   prompt is a file's old version (400-8000 tokens), response its new version (<= 1536)
  reask  prompt is 256 tokens of a file's new version, response the next 1024; the file's old
         version is in the history about as often as chance has it
  batch  256 requests to run side by side: all of the above and more like reask
Answers (two files of JSON lines with `prompt` and `output`; `small` and `large` are the models):
  *_self  history: one model's answers to half of the prompts; replayed: its other half
  *_to_*  history: all answers of one model; replayed: the other's answers to the same prompts

The choice of files is seeded, so the same inputs give the same workloads. Everything is kept under
--cache as <set>/<name>.bin: int32 count, then per request prompt length, response length, tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

Tokens = npt.NDArray[np.int32]

SEED = 20261121
SMALL_VOCAB = 8192
LARGE_VOCAB = 150_000
# Not written by people, or not text of this language version: tables, fixtures of a parser.
SKIPPED = ("site-packages/", "lib2to3/tests/data/", "encodings/", "pydoc_data/", "__pycache__/")
RESPONSE_CUT = 2048
BATCH = 256
DEFAULT_CACHE = Path(__file__).resolve().parents[2] / "build" / "suffix-bench"


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt and the response that is replayed after it."""

    prompt: Tokens
    response: Tokens


Workload = list[Request]


def write_workload(path: Path, requests: Sequence[Request]) -> None:
    parts = [np.array([len(requests)], dtype=np.int32)]
    for request in requests:
        parts.append(np.array([len(request.prompt), len(request.response)], dtype=np.int32))
        parts += [request.prompt, request.response]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # readers may poll for the final name
    np.concatenate(parts).astype(np.int32).tofile(partial)
    partial.replace(path)


def read_workload(path: Path) -> Workload:
    data = np.fromfile(path, dtype=np.int32)
    requests: Workload = []
    at = 1
    for _ in range(int(data[0])):
        prompt, response = int(data[at]), int(data[at + 1])
        at += 2
        requests.append(Request(data[at : at + prompt], data[at + prompt : at + prompt + response]))
        at += prompt + response
    if at != len(data):
        raise ValueError(f"{path}: {len(data)} numbers, {at} expected")
    return requests


def token_count(requests: Iterable[Request]) -> int:
    """Number of response tokens."""
    return sum(len(r.response) for r in requests)


def python_sources(directory: Path) -> dict[str, str]:
    """Relative path -> text of each UTF-8 .py file below `directory`, in order of path."""
    found: dict[str, str] = {}
    for path in sorted(directory.rglob("*.py")):
        name = path.relative_to(directory).as_posix()
        if any(part in f"{name}/" for part in SKIPPED):
            continue
        try:
            found[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return found


def package_texts(directory: Path, limit: int) -> Iterator[str]:
    """Texts of installed packages' .py files, up to `limit` characters in all."""
    total = 0
    for path in sorted(directory.rglob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        total += len(text)
        if total > limit:
            return
        yield text


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Mapping[str, str]) -> dict[str, Tokens]:
    encoded = tokenizer.encode_batch(list(texts.values()), add_special_tokens=False)
    return {name: np.array(e.ids, dtype=np.int32) for name, e in zip(texts, encoded, strict=True)}


def code_workloads(
    old: Mapping[str, Tokens],
    new: Mapping[str, Tokens],
    requests: int = 60,
    history_tokens: int = 3_000_000,
) -> dict[str, Workload]:
    """`new` may be empty: then there is no edit and no reask."""
    rng = random.Random(SEED)
    names = sorted(old)
    rng.shuffle(names)
    workloads: dict[str, Workload] = {}

    def take(wanted: Iterable[str]) -> list[str]:
        chosen = [name for name, _ in zip(wanted, range(requests), strict=False)]
        if len(chosen) < requests:
            print(f"note: {len(chosen)} files fit where {requests} were wanted")
        return chosen

    held = take(n for n in names if len(old[n]) >= 512 + 256)
    workloads["held"] = [Request(old[n][:512], old[n][512 : 512 + 1024]) for n in held]
    apart = set(held)
    if new:
        edited = take(
            n
            for n in names
            if n not in apart
            and n in new
            and 400 <= len(old[n]) <= 8000
            and not np.array_equal(old[n], new[n])
        )
        workloads["edit"] = [Request(old[n], new[n][:1536]) for n in edited]
        apart |= set(edited)
        asked = take(n for n in names if n not in apart and len(new.get(n, ())) >= 256 + 512)
        workloads["reask"] = [Request(new[n][:256], new[n][256 : 256 + 1024]) for n in asked]
    history = [n for n in names if n not in apart]
    rng.shuffle(history)
    workloads["train"] = cut_history((old[n] for n in history), history_tokens)
    batch = [r for name in ("held", "edit", "reask") for r in workloads.get(name, [])]
    texts = new or old
    spare = (n for n in reversed(names) if n not in apart and len(texts.get(n, ())) >= 256 + 512)
    batch += [Request(texts[n][:256], texts[n][256 : 256 + 1024]) for n in spare]
    workloads["batch"] = batch[:BATCH]
    return workloads


def cut_history(texts: Iterable[Tokens], tokens: int) -> Workload:
    empty = np.empty(0, dtype=np.int32)
    history: Workload = []
    total = 0
    for text in texts:
        for at in range(0, len(text), RESPONSE_CUT):
            part = text[at : min(at + RESPONSE_CUT, at + tokens - total)]
            if len(part):
                history.append(Request(empty, part))
            total += len(part)
    return history


def read_answers(path: Path) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [(str(r["prompt"]), str(r["output"])) for r in records]


def answer_workloads(
    models: Mapping[str, Sequence[tuple[str, str]]],
) -> dict[str, dict[str, Workload]]:
    """Set name -> {train, replay}; `models` are two, with the same prompts in any order."""
    prompts = sorted({prompt for answers in models.values() for prompt, _ in answers})
    rng = random.Random(SEED)
    rng.shuffle(prompts)
    training = set(prompts[: len(prompts) // 2])
    tokenizer = train_bpe(
        (o for answers in models.values() for p, o in answers if p in training), SMALL_VOCAB
    )

    def ids(text: str) -> Tokens:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    tokens = {
        model: [(p in training, Request(ids(p), ids(o))) for p, o in answers if o]
        for model, answers in models.items()
    }
    sets: dict[str, dict[str, Workload]] = {}
    for model, answers in tokens.items():
        sets[f"{model}_self"] = {
            "train": [r for trains, r in answers if trains],
            "replay": [r for trains, r in answers if not trains],
        }
        for other, replayed in tokens.items():
            if other != model:
                sets[f"{model}_to_{other}"] = {
                    "train": [r for _, r in answers],
                    "replay": [r for _, r in replayed],
                }
    return sets


def build_code(cache: Path, old: Path, new: Path | None, large: bool, rebuild: bool) -> Path:
    """Builds the code workloads unless they are there; returns their directory."""
    directory = cache / ("data150k" if large else "data")
    versions = {"old": str(old), "new": str(new), "seed": SEED, "version": 2}
    manifest = directory / "manifest.json"
    if not rebuild and manifest.exists() and json.loads(manifest.read_text()) == versions:
        return directory
    start = time.perf_counter()
    sources = python_sources(old)
    saved = directory / "tokenizer.json"
    if saved.exists() and not rebuild:
        tokenizer = Tokenizer.from_file(str(saved))
    elif large:
        packages = Path(sysconfig.get_paths()["purelib"])
        texts = [*sources.values(), *package_texts(packages, 160_000_000)]
        tokenizer = train_bpe(texts, LARGE_VOCAB)
    else:
        tokenizer = train_bpe(sources.values(), SMALL_VOCAB)
    encoded = encode(tokenizer, sources)
    characters = sum(map(len, sources.values())) / sum(map(len, encoded.values()))
    renewed = encode(tokenizer, python_sources(new)) if new else {}
    if not new:
        print("no --new DIR (a newer version of the same library): edit and reask are skipped")
    workloads = code_workloads(encoded, renewed)
    for name, requests in workloads.items():
        write_workload(directory / f"{name}.bin", requests)
    tokenizer.save(str(saved))
    manifest.write_text(json.dumps(versions))
    print(
        f"{directory.name}: vocabulary {tokenizer.get_vocab_size()}, "
        f"{characters:.2f} characters a token, built in {time.perf_counter() - start:.0f} s"
    )
    return directory


def build_answers(cache: Path, small: Path, large: Path, rebuild: bool) -> list[Path]:
    """Builds the workloads of two models' answers unless they are there; their directories."""
    directories = [
        cache / f"alpaca_{name}" for name in ("8b_self", "8b_to_70b", "70b_self", "70b_to_8b")
    ]
    if rebuild or not all((d / "replay.bin").exists() for d in directories):
        sets = answer_workloads({"8b": read_answers(small), "70b": read_answers(large)})
        for name, workloads in sets.items():
            for part, requests in workloads.items():
                write_workload(cache / f"alpaca_{name}" / f"{part}.bin", requests)
    return directories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workloads")
    group.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where they are kept")
    group.add_argument(
        "--old",
        type=Path,
        default=Path(sysconfig.get_paths()["stdlib"]),
        help="a Python standard library (default: this interpreter's)",
    )
    group.add_argument("--new", type=Path, help="a newer one; without it no edit and no reask")
    group.add_argument("--answers", type=Path, nargs=2, metavar=("8B", "70B"), help="JSON lines")
    group.add_argument("--large", action="store_true", help="also with 150,000 vocabulary entries")
    group.add_argument("--rebuild", action="store_true", help="even where they exist")


def build_all(args: argparse.Namespace) -> list[Path]:
    """Builds what the arguments ask for; returns the directories, code with 8k first."""
    directories = [build_code(args.cache, args.old, args.new, False, args.rebuild)]
    if args.answers:
        small, large = args.answers
        directories += build_answers(args.cache, small, large, args.rebuild)
    if args.large:
        directories.append(build_code(args.cache, args.old, args.new, True, args.rebuild))
    return directories


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    for directory in build_all(parser.parse_args()):
        for path in sorted(directory.glob("*.bin")):
            requests = read_workload(path)
            prompts = sum(len(r.prompt) for r in requests)
            print(
                f"{directory.name:18} {path.stem:7} {len(requests):5} requests "
                f"{prompts:9} prompt tokens {token_count(requests):9} response tokens"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
