# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Workloads, figures and sweeps of `smartspec bench serve`."""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics

import pytest
import smartspec
from smartspec import Speculation
from smartspec.acceptance import RecordedAcceptance, outcomes_of
from smartspec.cli import main
from smartspec.cli.common import with_policy
from smartspec.metrics import Spread, benchmark_result, parse_slos, summarize
from smartspec.outputs import RequestMetrics
from smartspec.requests import DraftStep
from smartspec.serving import gamma_arrivals, poisson_arrivals, read_trace, scale_lengths
from smartspec.serving_bench import (
    RECORDED,
    BenchRequests,
    Cell,
    Measuring,
    Workload,
    make_requests,
    run_cell,
    table,
)

TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:05.0319600,3180,8
2023-11-16 18:17:04.4799600,110,200
2023-11-16 18:17:13.9799600,1,1
"""


def test_gamma_arrivals_have_the_rate_and_the_burstiness():
    for shape in (0.25, 1.0, 4.0):
        times = gamma_arrivals(20_000, 5.0, shape, random.Random(1))
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert min(gaps) >= 0
        assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
        variation = statistics.pstdev(gaps) / statistics.mean(gaps)
        assert variation == pytest.approx(1 / math.sqrt(shape), rel=0.05)
    assert gamma_arrivals(9, 5.0, 1, random.Random(2)) == poisson_arrivals(9, 5, random.Random(2))
    assert gamma_arrivals(3, math.inf, 0.5, random.Random(2)) == [0, 0, 0]
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="burstiness"):
            gamma_arrivals(3, 5.0, wrong, random.Random(2))


def test_traces(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    rows = read_trace(path, 100)
    assert [round(row.arrival, 3) for row in rows] == [0, 0.5, 1.052, 10.0]
    assert [(row.num_input, row.num_output) for row in rows] == [
        (4808, 10), (110, 200), (3180, 8), (1, 1),
    ]  # fmt: skip
    assert len(read_trace(path, 2)) == 2
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n7.5,1,2\n9,3,4\n")
    assert [row.arrival for row in read_trace(path, 9)] == [0, 1.5]
    for text, message in (
        ("TIMESTAMP,ContextTokens\n1,2\n", "GeneratedTokens is missing"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no rows"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,2,3\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n1,2\n", "line 3"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nnan,2,3\n", "line 2"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n1,-2,3\n", "line 2"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_trace(path, 9)


def test_lengths_shrink_in_proportion():
    assert scale_lengths([100, 50, 1], 50) == [50, 25, 1]
    assert scale_lengths([10, 5], 50) == [10, 5]
    assert scale_lengths([4000, 0], 8) == [8, 1]


def test_arrivals_of_a_trace_keep_its_shape():
    requests = BenchRequests([None] * 3, [0.0, 1.0, 4.0])
    requests = BenchRequests([smartspec.serving.WorkItem([1], None)] * 3, requests.recorded)
    assert [i.arrival for i in requests.arriving(RECORDED, 1, 0)] == [0, 1, 4]
    assert [i.arrival for i in requests.arriving(2.0, 1, 0)] == [0, 0.25, 1.0]
    assert [i.arrival for i in requests.arriving(math.inf, 1, 0)] == [0, 0, 0]
    free = BenchRequests(requests.items)
    assert [i.arrival for i in free.arriving(2.0, 1, 5)] == poisson_arrivals(3, 2, random.Random(5))


class FakeRequest:
    def __init__(self, arrival, token_times):
        self.arrival = arrival
        self.token_times = token_times
        self.metrics = RequestMetrics(
            arrival, token_times[0][0], token_times[-1][0], token_times[-1][0]
        )
        self.prepared = type("P", (), {"token_ids": [1, 2, 3]})()

    def result(self):
        stats = smartspec.SpeculationStats(num_drafted=10, num_accepted=4, num_steps=4)
        return type("R", (), {"speculation": stats})()


def test_figures_of_known_times():
    requests = [
        FakeRequest(0.0, [(0.1, 1), (0.2, 2), (0.5, 2)]),  # ttft .1, tpot .1, e2el .5
        FakeRequest(1.0, [(1.3, 1), (1.5, 1)]),  # ttft .3, tpot .2, e2el .5
        FakeRequest(2.0, [(2.05, 1)]),  # one token: no tpot
    ]
    slos = parse_slos(["ttft:200", "tpot:150"])
    summary = summarize(requests, 2.0, [50, 90], slos)
    assert summary.slo_attainment == pytest.approx(2 / 3)
    result = benchmark_result(summary)
    assert result["mean_ttft_ms"] == pytest.approx(150)
    assert result["median_tpot_ms"] == pytest.approx(150)
    assert result["mean_itl_ms"] == pytest.approx((100 + 300 + 200) / 3)
    assert result["mean_e2el_ms"] == pytest.approx((500 + 500 + 50) / 3)
    assert result["p90_ttft_ms"] == pytest.approx(260)
    assert result["request_goodput"] == pytest.approx(1.0)
    assert result["output_throughput"] == pytest.approx(4.0)
    assert result["total_token_throughput"] == pytest.approx(8.5)
    assert result["spec_decode_acceptance_rate"] == pytest.approx(40)
    assert result["spec_decode_acceptance_length"] == pytest.approx(2)
    assert summarize(requests, 2.0).slo_attainment is None
    for wrong in ("ttft", "itl:3", "ttft:-1", "ttft:x", "ttft:inf", ":5", "tpot:nan"):
        with pytest.raises(ValueError, match="goodput must be"):
            parse_slos([wrong])
    assert Spread.of([]).std == 0


def test_policies_from_text():
    base = Speculation("lookup")
    assert with_policy(base, "off").is_off
    assert with_policy(base, "fixed:4") == Speculation("lookup", max_tokens=4)
    assert with_policy(base, "auto:6").max_tokens == 6
    assert with_policy(base, "auto").policy == "auto"
    assert with_policy(base, "fixed:3@draft") == Speculation("draft", max_tokens=3)
    assert with_policy(base, "tetris:40").capacity == 40
    assert with_policy(base, "disco:.5").threshold == 0.5
    rows = with_policy(base, "table:1-8=4/9=2").num_speculative_tokens_per_batch_size
    assert rows == ((1, 8, 4), (9, 9, 2))
    for wrong in ("", "fast", "off:3", "fixed:x", "fixed:0", "table", "table:4", "fixed:3@magic",
                  "table:1-8=4/3-9=2", "disco:nan"):  # fmt: skip
        with pytest.raises(ValueError, match=r"policy|max_tokens|proposer|threshold|num_spec"):
            with_policy(base, wrong)


@pytest.fixture(scope="module")
def engines(draft_path):
    base = smartspec.LLM(draft_path, speculation="off", num_threads=1, max_model_len=128)
    lookup = base.with_speculation(Speculation("lookup", max_tokens=3))
    assert lookup.model is base.model
    assert lookup.engine is not base.engine
    return {"off": base, "fixed:3": lookup}


def test_a_cell_compares_policies(engines):
    work = Workload(num_prompts=6, input_len=24, output_len=20, temperature=0.7)
    requests = make_requests(engines["off"], work)
    cell = Cell(max_concurrency=2)
    result = run_cell(engines, requests, cell, Measuring(repetitions=3, slos={"ttft": 1e3}))
    assert result.differing == []
    off, fixed = result.policies["off"], result.policies["fixed:3"]
    assert len(off.runs) == len(fixed.runs) == 3
    assert off.medians["completed"] == 6
    assert off.medians["slo_attainment_percent"] == 100
    assert off.medians["spec_decode_draft_tokens"] == 0 < fixed.medians["spec_decode_draft_tokens"]
    ratios = [
        b["output_throughput"] / a["output_throughput"]
        for a, b in zip(off.runs, fixed.runs, strict=True)
    ]
    assert fixed.ratios["off"] == pytest.approx(statistics.median(ratios))
    assert result.best_other("off") == "fixed:3"
    text = table(result)
    assert "at most 2 at a time" in text
    assert "FAILED" not in text
    assert json.dumps(result.to_json())


def test_differing_tokens_are_noticed(engines):
    work = Workload(num_prompts=3, input_len=24, output_len=8, temperature=0.7)
    requests = make_requests(engines["off"], work)
    changed = engines["fixed:3"].start

    def tampered(prepared):
        prepared.native.seed = 99
        return changed(prepared)

    engines["fixed:3"].start = tampered
    try:
        result = run_cell(engines, requests, Cell(), Measuring())
    finally:
        del engines["fixed:3"].start
    assert result.differing == ["fixed:3"]
    assert "FAILED" in table(result)


ENGINE = ["--model", "draft", "--num-threads", "1", "--proposer", "lookup", "--num-prompts", "4"]
SMALL = [*ENGINE, "--input-len", "16", "--output-len", "12", "--num-warmups", "1"]


def test_a_sweep(tmp_path, capsys):
    arguments = ["bench", "serve", *SMALL, "--policies", "off,fixed:2", "--request-rate", "40,inf",
                 "--max-concurrency", "1,4", "--burstiness", "0.5", "--goodput", "ttft:60000",
                 "--repetitions", "2", "--metric-percentiles", "50,95", "--ignore-eos",
                 "--save-result", "--plot", "--result-dir", str(tmp_path / "new"),
                 "--result-filename", "r.json", "--inflate-to", "12M"]  # fmt: skip
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "draft (inflated to 12M)" in text
    assert "All 2 policies produced identical tokens." in text
    record = json.loads((tmp_path / "new" / "r.json").read_text())
    assert record["model"] == "draft (inflated to 12M)"
    assert record["inflated"]
    assert abs(record["num_parameters"] - 12e6) < 5e5
    cells = record["cells"]
    assert [(c["request_rate"], c["max_concurrency"]) for c in cells] == [
        (40, 1), (40, 4), ("inf", 1), ("inf", 4),
    ]  # fmt: skip
    for cell in cells:
        assert cell["identical_outputs"]
        for name, result in cell["policies"].items():
            assert result["total_output_tokens"] == 48
            assert result["slo_attainment_percent"] == 100
            assert result["p95_ttft_ms"] >= result["p50_ttft_ms"] > 0
            assert len(result["repetitions"]) == 2
            assert result["mean_step_ms"] > 0
            assert result["mean_decision_us"] > 0
            assert set(result["throughput_ratios"]) == {"off", "fixed:2"} - {name}
    assert (tmp_path / "new" / "r.png").stat().st_size > 10_000


def test_a_single_run_and_a_trace(tmp_path, capsys):
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    arguments = ["bench", "serve", *SMALL, "--policy", "fixed:3", "--dataset", "trace",
                 "--dataset-path", str(path), "--max-input-len", "48", "--max-output-len", "20",
                 "--request-rate", "20", "--percentile-metrics", "ttft,e2el"]  # fmt: skip
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for word in ("Serving Benchmark Result", "Median TTFT (ms):", "P99 E2EL (ms):"):
        assert word in text
    assert "TPOT" not in text
    assert "Total input tokens:                      82" in text  # 48 + 1 + 32 + 1


def test_saved_acceptance_is_simulated(tmp_path, capsys):
    path = tmp_path / "new" / "acceptance.json"
    arguments = ["bench", "serve", "--model", "target", "--draft-model", "draft", "--proposer",
                 "draft", "--policies", "fixed:3", "--num-threads", "1", "--num-prompts", "4",
                 "--input-len", "24", "--output-len", "32", "--ignore-eos", "--num-warmups", "0",
                 "--repetitions", "2", "--save-acceptance", str(path), "--save-result",
                 "--result-dir", str(tmp_path), "--result-filename", "r.json"]  # fmt: skip
    assert main(arguments) == 0
    assert f"Acceptance of 4 requests: {path}" in capsys.readouterr().out
    saved = json.loads(path.read_text())
    assert (saved["version"], saved["proposer"], saved["length"]) == (1, "draft", 3)
    assert saved["coverage"] == 1
    run = json.loads((tmp_path / "r.json").read_text())["cells"][0]["policies"]["fixed:3"]
    outcomes = [outcome for recording in saved["recordings"] for outcome in recording]
    assert set(outcomes) == {0.0, 1.0}
    assert sum(outcomes) == run["repetitions"][0]["spec_decode_accepted_tokens"]
    assert len(outcomes) <= run["repetitions"][0]["spec_decode_draft_tokens"]
    # Every decoding step has at most one rejected token and adds one token to the accepted ones.
    for recording in saved["recordings"]:
        steps = 31 - sum(recording)
        assert 0 < recording.count(0.0) <= steps

    arguments = ["simulate", "grid", "--acceptance", str(path), "--quick", "--cells", "8b",
                 "--steps", "20", "--policies", "off,fixed:3,auto"]  # fmt: skip
    assert main(arguments) == 0
    assert "8b | recorded | batch 64 | context 4096" in capsys.readouterr().out


def test_steps_that_found_nothing_count_for_coverage(draft_path):
    spec = Speculation("lookup", max_tokens=3)
    llm = smartspec.LLM(draft_path, speculation=spec, num_threads=1, max_model_len=128)
    work = Workload(num_prompts=4, input_len=24, output_len=32, ignore_eos=True)
    runs = []
    run_cell({"lookup": llm}, make_requests(llm, work), Cell(), Measuring(), watch=runs.append)
    (run,) = runs
    for request in run.requests:
        (output,) = request.result().outputs
        stats = output.speculation
        assert sum(step.drafted for step in request.draft_steps) == stats.num_drafted
        assert sum(step.accepted for step in request.draft_steps) == stats.num_accepted
        # Neither the prompt's pass nor that of the last token could draft.
        assert len(request.draft_steps) in (stats.num_steps - 1, stats.num_steps - 2)
        assert sum(step.drafted == 0 for step in request.draft_steps) > 0
    recorded = RecordedAcceptance.of_requests("lookup", 3, run.requests)
    steps = [step for request in run.requests for step in request.draft_steps]
    assert recorded.coverage == sum(step.drafted > 0 for step in steps) / len(steps)
    assert 0 < recorded.coverage < 1


def test_outcomes_of_steps():
    steps = [(3, 1, 2), (3, 0, 1), (0, 0, 1), (3, 3, 4), (2, 2, 3), (3, 2, 2)]
    outcomes = outcomes_of(DraftStep(*step) for step in steps)
    assert outcomes == [1, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    few = type("R", (), {"draft_steps": [DraftStep(*step) for step in steps[:3]]})()
    with pytest.raises(ValueError, match="at least 8 draft tokens verified, got at most 3"):
        RecordedAcceptance.of_requests("draft", 3, [few])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "auto"], "such as --policy fixed:4; got auto"),
        (["--policies", "fixed:2,fixed:4"], "got fixed, fixed"),
        (["--policy", "fixed:4", "--tree-width", "2"], "--tree-width 1, got 2"),
        (["--policy", "fixed:4", "--proposer", "off"], "lookup, suffix, draft; got off"),
        (["--policy", "fixed:4", "--proposer", "auto", "--draft-model", "draft"],
         "got suffix+draft"),
        (["--policy", "off"], "got off"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded(capsys, tmp_path, arguments, message):
    path = tmp_path / "a.json"
    options = ["--proposer", "lookup", "--save-acceptance", str(path)]
    assert main(["bench", "serve", "--model", "draft", *options, *arguments]) == 2
    error = capsys.readouterr().err
    assert "--save-acceptance needs" in error
    assert message in error
    assert not path.exists()


def test_the_suffix_index_forgets_between_runs(draft_path):
    base = smartspec.LLM(draft_path, speculation="off", num_threads=1, max_model_len=128)
    engine = base.with_speculation(Speculation("suffix", max_tokens=3))
    requests = make_requests(base, Workload(num_prompts=4, input_len=24, output_len=20))
    result = run_cell({"suffix": engine}, requests, Cell(max_concurrency=1), Measuring(3))
    accepted = [run["spec_decode_accepted_tokens"] for run in result.policies["suffix"].runs]
    assert accepted == [accepted[0]] * 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["--num-prompts", "0"],
        ["--repetitions", "0"],
        ["--num-warmups", "-1"],
        ["--burstiness", "0"],
        ["--request-rate", "trace"],
        ["--dataset", "trace"],
        ["--dataset", "trace", "--dataset-path", "/nonexistent.csv"],
        ["--goodput", "itl:5"],
        ["--policies", "off,fast"],
        ["--policies", "fixed:4@draft"],
        ["--inflate-to", "lots"],
        ["--inflate-to", "3"],
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments):
    assert main(["bench", "serve", "--model", "draft", "--num-threads", "1", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("smartspec bench: ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [["--request-rate", "0"], ["--request-rate", "x"], ["--max-concurrency", "0"],
     ["--metric-percentiles", "101"], ["--percentile-metrics", "latency"], ["--dataset", "x"]],
)  # fmt: skip
def test_argparse_refuses(capsys, arguments):
    with pytest.raises(SystemExit):
        main(["bench", "serve", "--model", "draft", *arguments])
    assert "usage:" in capsys.readouterr().err


def test_bench_without_a_subcommand_needs_a_model(capsys):
    assert main(["bench"]) == 2
    assert "--model is missing" in capsys.readouterr().err
