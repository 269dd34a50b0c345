"""Tokenizer and corpus of the shipped pair: the Python standard library, split by file.

A file is held out when the SHA-256 of its path inside the standard library is a multiple of 20.
Held-out files never reach the tokenizer, the target or the draft.
"""

from __future__ import annotations

import argparse
import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
HELD_OUT_EVERY = 20
MIN_CHARACTERS = 500
MAX_CHARACTERS = 400_000
SPLIT_PATTERN = r" ?\w+| ?[^\s\w]+|\n[ \t]*|[ \t]+"

TokenArray = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Corpus:
    """The source texts of one split, keyed by path inside the standard library."""

    train: dict[str, str]
    held_out: dict[str, str]


def is_held_out(relative_path: str) -> bool:
    """Tell whether a file belongs to the held-out split; depends on its path alone."""
    digest = hashlib.sha256(relative_path.encode()).hexdigest()
    return int(digest, 16) % HELD_OUT_EVERY == 0


def is_library_source(relative_path: str) -> bool:
    """Keep library modules; leave out installed packages and the test suites."""
    parts = Path(relative_path).parts
    return "site-packages" not in parts and not any(part.startswith("test") for part in parts[1:])


def read_corpus(root: Path) -> Corpus:
    """Read every UTF-8 source file under `root` and split it by `is_held_out`."""
    corpus = Corpus(train={}, held_out={})
    for path in sorted(root.rglob("*.py"), key=str):
        relative = path.relative_to(root).as_posix()
        if not is_library_source("/" + relative):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if MIN_CHARACTERS < len(text) < MAX_CHARACTERS:
            split = corpus.held_out if is_held_out(relative) else corpus.train
            split[relative] = text
    return corpus


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train the byte-level BPE of `VOCAB_SIZE` tokens that both models share."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern=Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_files(tokenizer: Tokenizer, texts: list[str]) -> TokenArray:
    """Encode files into one array, each closed by the end-of-text token."""
    ids: list[int] = []
    for text in texts:
        ids.extend(tokenizer.encode(text).ids)
        ids.append(END_OF_TEXT_ID)
    return np.array(ids, dtype=np.uint16)


def split_files(tokens: TokenArray) -> list[TokenArray]:
    """Undo `encode_files`: one array per file, without the end-of-text tokens."""
    ends = np.flatnonzero(tokens == END_OF_TEXT_ID)
    pieces = np.split(tokens, ends + 1)
    return [piece[:-1] for piece in pieces if len(piece) > 1]


def load_tokens(work: Path, split: str) -> TokenArray:
    """Load the tokens of a split ("train" or "held_out") that this module wrote to `work`."""
    tokens: TokenArray = np.load(work / f"{split}.npy", allow_pickle=False)
    return tokens


def build(root: Path, out: Path, tokenizer_file: Path | None) -> None:
    """Write tokenizer, token arrays and the list of held-out files into `out`."""
    corpus = read_corpus(root)
    train_texts = list(corpus.train.values())
    if tokenizer_file is None:
        tokenizer = train_tokenizer(train_texts)
    else:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    train = encode_files(tokenizer, train_texts)
    held_out = encode_files(tokenizer, list(corpus.held_out.values()))

    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    np.save(out / "train.npy", train, allow_pickle=False)
    np.save(out / "held_out.npy", held_out, allow_pickle=False)
    (out / "heldout_files.txt").write_text("\n".join(corpus.held_out) + "\n", encoding="utf-8")
    characters = sum(map(len, train_texts))
    print(
        f"train: {len(corpus.train)} files, {len(train)} tokens"
        f" ({characters / len(train):.2f} characters a token)\n"
        f"held out: {len(corpus.held_out)} files, {len(held_out)} tokens"
    )


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="work folder to write to")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(sysconfig.get_paths()["stdlib"]),
        help="folder of sources (default: this interpreter's standard library)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=None,
        help="reuse this tokenizer.json instead of training one",
    )
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    arguments = parse_arguments()
    build(arguments.root, arguments.out, arguments.tokenizer)


if __name__ == "__main__":
    main()
