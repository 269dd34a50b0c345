# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import smartspec
from models_for_tests import write_model


@pytest.fixture(scope="session")
def draft_path() -> str:
    return smartspec.shipped_model("draft")


@pytest.fixture(scope="session")
def llm(draft_path: str) -> smartspec.LLM:
    """The shipped draft model as a target: small, trained, with a real tokenizer."""
    return smartspec.LLM(draft_path, speculation="off", num_threads=1, max_model_len=512)


@pytest.fixture(scope="session")
def lookup_llm(draft_path: str) -> smartspec.LLM:
    spec = smartspec.Speculation("lookup", policy="fixed")
    return smartspec.LLM(draft_path, speculation=spec, num_threads=1, max_model_len=512)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> smartspec.LLM:
    """Random weights, 96 tokens, no tokenizer."""
    return smartspec.LLM(tiny_path, speculation="off", num_threads=1)
