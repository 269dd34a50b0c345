# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The command line, run as users run it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import smartspec
from smartspec.cli import build_parser, main
from smartspec.metrics import Spread, percentile


def test_help_of_every_command(capsys):
    for command in ([], ["demo"], ["generate"], ["bench"], ["bench", "serve"], ["info"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert "smartspec" in text
        if command:
            assert "examples:" in text
    assert build_parser().prog == "smartspec"


def test_module_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "smartspec", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"smartspec {smartspec.__version__}"


def test_info(capsys):
    assert main(["info", "--model", "draft"]) == 0
    text = capsys.readouterr().out
    for word in ("CPU kernels", "threads", "CUDA", "parameters", "KV bytes per token"):
        assert word in text


def test_generate_json(capsys, llm):
    arguments = ["generate", "--model", "draft", "--prompt", "import os\n", "--max-tokens", "12",
                 "--temperature", "0", "--max-model-len", "512", "--num-threads", "1"]  # fmt: skip
    assert main([*arguments, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    params = smartspec.SamplingParams(temperature=0.0, max_tokens=12)
    (expected,) = llm.generate("import os\n", params, use_tqdm=False)
    assert plain["outputs"][0]["token_ids"] == expected.outputs[0].token_ids
    for extra in (["--speculation", "lookup"], ["--draft-model", "draft"]):
        assert main([*arguments, *extra, "--json"]) == 0
        fast = json.loads(capsys.readouterr().out)
        assert fast["outputs"] == plain["outputs"]
    assert main([*arguments, "--stream"]) == 0
    assert capsys.readouterr().out == expected.outputs[0].text + "\n"


def test_generate_with_wishes(capsys):
    arguments = ["generate", "--model", "draft", "--draft-model", "draft", "--proposer", "draft",
                 "--prompt", "import os\n", "--max-tokens", "24", "--temperature", "0",
                 "--ignore-eos", "--max-model-len", "256", "--num-threads", "1",
                 "--json"]  # fmt: skip

    def run(*extra):
        assert main([*arguments, *extra]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    (full,) = run("--policy", "fixed:4")
    (none,) = run("--policy", "fixed:4", "--no-speculation")
    (short,) = run("--policy", "fixed:4", "--max-draft-tokens", "1")
    (least,) = run("--policy", "auto", "--min-draft-tokens", "3")
    (timed,) = run("--policy", "auto", "--tpot-target-ms", "0.5")
    for each in (none, short, least, timed):
        assert each["outputs"] == full["outputs"]
    # 24 tokens: one of the prompt's pass, then 4 drafts and one more a step.
    assert (full["speculation"]["num_steps"], none["speculation"]["num_steps"]) == (6, 24)
    assert none["speculation"]["num_drafted"] == 0
    assert none["speculation"]["reason"] == "request"
    assert short["speculation"]["num_steps"] == 13
    assert least["speculation"]["num_steps"] <= 7
    streamed = run("--policy", "fixed:4", "--no-speculation", "--stream")
    assert len(streamed) == 24


@pytest.mark.parametrize(
    "arguments",
    [
        ["--min-draft-tokens", "-1"],
        ["--max-draft-tokens", "-1"],
        ["--max-draft-tokens", "2", "--min-draft-tokens", "3"],
        ["--tpot-target-ms", "0"],
        ["--tpot-target-ms", "nan"],
    ],
)
def test_wrong_wishes_name_the_option(capsys, arguments):
    assert main(["generate", "--model", "draft", "--prompt", "x", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"smartspec generate: {arguments[0]} must be ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--model", "/nonexistent", "--prompt", "x"],
        ["generate", "--model", "draft", "--prompt", "x", "--temperature", "nan"],
        ["generate", "--model", "draft", "--prompt", ""],
        ["generate", "--model", "draft", "--prompt", "x", "--chat"],
        ["generate", "--model", "draft", "--prompt", "x", "--speculation", "draft"],
        ["bench", "--model", "draft", "--num-prompts", "0"],
        ["bench", "--model", "draft", "--request-rate", "0"],
        ["demo", "--request-rate", "-1"],
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"smartspec {arguments[0]}: ")
    assert "Traceback" not in captured.err


def test_bench(capsys, tmp_path):
    path = tmp_path / "result.json"
    arguments = ["bench", "--model", "draft", "--draft-model", "draft", "--proposer", "draft",
                 "--draft-tokens", "4", "--num-prompts", "4",
                 "--input-len", "16", "--output-len", "12", "--max-concurrency", "2",
                 "--num-threads", "1", "--save-result", str(path)]  # fmt: skip
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for word in (
        "Request throughput (req/s):", "Output token throughput (tok/s):", "Mean TTFT (ms):",
        "P99 TPOT (ms):", "Median ITL (ms):", "P99 E2EL (ms):", "Acceptance length:",
    ):  # fmt: skip
        assert word in text
    record = json.loads(path.read_text())
    assert record["completed"] == 4
    assert record["total_output"] == 48
    assert record["num_accepted"] > 0
    assert record["ttft"]["mean"] > 0


def test_small_demo(tmp_path, capsys):
    arguments = ["demo", "--num-prompts", "4", "--alone", "2", "--request-rate", "50",
                 "--output-dir", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "identical tokens" in text
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["identical"]
    assert set(record["load"]) == {"off", "lookup", "suffix", "draft", "auto"}
    assert record["load"]["draft"]["num_drafted"] > 0
    assert "auto" in text
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_demo_notices_wrong_tokens(tmp_path, monkeypatch, capsys):
    from smartspec import demo

    original = demo._tokens
    calls = []

    def tampered(run):
        calls.append(run)
        tokens = original(run)
        if len(calls) == 3:
            tokens[1][0] += 1
        return tokens

    monkeypatch.setattr(demo, "_tokens", tampered)
    arguments = ["demo", "--num-prompts", "3", "--alone", "1", "--request-rate", "50",
                 "--output-dir", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 1
    assert "FAILED: tokens differ" in capsys.readouterr().out


def test_percentiles():
    assert percentile([], 99) == 0
    assert percentile([5], 99) == 5
    assert percentile(range(101), 99) == 99
    assert percentile([1, 2], 50) == 1.5
    assert Spread.of([1.0, 3.0]).mean == 2.0
