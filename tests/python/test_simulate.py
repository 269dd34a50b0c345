# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The simulator from Python: bindings, comparisons, and the command line on small scenarios."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import smartspec_core as core
from smartspec import scenarios, simulation
from smartspec.acceptance import RecordedAcceptance
from smartspec.cli import main
from smartspec.simulation import ORACLE, UNIFORM, Work

EIGHT_B = scenarios.costs()["8b"]
MIX = scenarios.SHAPES[3]


def small_cell(shape=MIX, batch=16):
    return scenarios.Cell(EIGHT_B, shape, batch, 512)


def test_steps_add_up_and_seeds_decide():
    options = small_cell().options(100, seed=3)
    options.record_steps = True
    result = core.simulate(options, core.make_fixed_policy(3))
    steps = result.steps
    assert {len(column) for column in steps.values()} == {100}
    counted = slice(options.warmup_steps, None)
    assert steps["num_emitted"][counted].sum() == result.num_emitted
    assert steps["expected_emitted"][counted].sum() == pytest.approx(result.expected_emitted)
    assert steps["seconds"][counted].sum() == pytest.approx(result.seconds)
    assert np.all(steps["num_tokens"] == steps["num_decodes"] + steps["num_verified"])
    again = core.simulate(options, core.make_fixed_policy(3))
    assert again.goodput == result.goodput
    options.seed = 4
    assert core.simulate(options, core.make_fixed_policy(3)).num_emitted != result.num_emitted


def test_threads_change_nothing():
    cells = [small_cell(shape, batch) for shape in scenarios.SHAPES[:4] for batch in (4, 16)]
    policies = ("auto", "turbospec", "full-draft", UNIFORM)
    together = simulation.run_grid(cells, policies, 40, seed=0)
    alone = [simulation.run_cell(cell, policies, 40, seed=0) for cell in cells]
    assert [r.goodput for r in together] == [r.goodput for r in alone]


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch", -1), ("context", 0), ("max_steps", 0), ("overhead", float("nan")),
     ("time_noise", 2.0), ("outlier_rate", -1.0), ("warmup_steps", -1), ("block_size", 0)],
)  # fmt: skip
def test_bad_options_name_the_field(field, value):
    options = small_cell().options(10, 0)
    setattr(options, field, value)
    with pytest.raises(ValueError, match=field):
        core.simulate(options)


def test_bad_requests():
    options = scenarios.services(quick=True)[0].options(0)
    good = (np.zeros(2), np.ones(2, np.int32), np.ones(2, np.int32))
    options.set_requests(*good)
    for i, bad in enumerate((np.zeros(2, np.float32), np.ones(3, np.int32), np.ones(2, np.int64))):
        with pytest.raises(ValueError, match=("arrivals", "prompt_tokens", "output_tokens")[i]):
            options.set_requests(*good[:i], bad, *good[i + 1 :])
    options.set_requests(np.array([1.0, 0.5]), *good[1:])
    with pytest.raises(ValueError, match=r"requests\[1\]\.arrival"):
        core.simulate(options)


def test_the_grid_covers_what_it_should():
    cells = scenarios.grid()
    assert len(cells) >= 60
    assert len({cell.name for cell in cells}) == len(cells)
    assert {min(cell.batch for cell in cells), max(cell.batch for cell in cells)} == {1, 512}
    assert {min(cell.context for cell in cells), max(cell.context for cell in cells)} == {
        256,
        65536,
    }
    assert len({cell.shape.name for cell in cells}) >= 6
    assert any(cell.cost.target.num_experts for cell in cells)
    for cell in cells:
        cell.options(10, 0).validate()
    for jump in scenarios.jumps():
        jump.options(0).validate()


def test_nothing_beats_the_oracle_and_auto_is_close():
    cells = [small_cell(shape, 32) for shape in scenarios.SHAPES]
    policies = ("auto", UNIFORM, "turbospec", "table", "full-draft")
    results = simulation.run_grid(cells, policies, 400, seed=0)
    for result in results:
        for policy in policies:
            assert result.share(policy) <= 1.005, (result.cell.name, policy)
    summary = simulation.summarize(results, "auto")
    assert summary.mean > 0.97
    assert summary.worst <= summary.mean
    assert summary.of_off_worst > 0.98
    assert simulation.summarize(results, "turbospec").mean < summary.mean


def test_unknown_policy_says_which_there_are():
    for name in ("best", "fixed:9", "fixed:x", "fixed"):
        with pytest.raises(ValueError, match=r"turbospec.*got"):
            simulation.make_policy(name, EIGHT_B)
    assert simulation.make_policy(ORACLE, EIGHT_B) is None
    for name in ("off", "fixed:0", "fixed:8", "specdec++", "disco", "tetris", "ddd"):
        assert simulation.make_policy(name, EIGHT_B) is not None


def test_requests_that_arrive():
    service = replace(scenarios.services(quick=True)[0], rates=(2.0, 30.0), seconds=4.0)

    def work(service, rate):
        return Work.sharegpt_like(rate, service.seconds, 1.0, seed=1)

    results = simulation.run_services([service], ("auto", "fixed:3"), 0, work)
    assert [result.rate for result in results] == [2.0, 30.0]
    for result in results:
        assert list(result.latencies) == ["off", "auto", "fixed:3"]
        assert result.gain("off") == 1.0
        for latencies in result.latencies.values():
            assert 0 < latencies.mean_ttft < latencies.mean_latency <= latencies.p99_latency
            assert 0 < latencies.median_itl <= latencies.p99_itl
        assert result.gain("auto") > 1.3


def test_work_lengths():
    work = Work.sharegpt_like(50.0, 60.0, 1.0, seed=0)
    assert len(work.arrivals) == 3000
    assert np.all(np.diff(work.arrivals) >= 0)
    assert 150 < work.prompts.mean() < 300
    assert 130 < work.outputs.mean() < 260
    bursty = Work.sharegpt_like(50.0, 60.0, 0.1, seed=0)
    assert np.diff(bursty.arrivals).std() > 2 * np.diff(work.arrivals).std()


def bernoulli(rate, count, length, seed=0):
    rng = random.Random(seed)
    return [[float(rng.random() < rate) for _ in range(length)] for _ in range(count)]


def test_recorded_acceptance_gives_the_recorded_lengths(tmp_path):
    """Outcomes and rates of .8 alike, and half the requests at .8, half at .2."""
    path = tmp_path / "a.json"
    for recordings, expected in (
        (bernoulli(0.8, 64, 200), 1 + 0.8 + 0.64 + 0.512),
        ([[0.8] * 8], 1 + 0.8 + 0.64 + 0.512),
        (bernoulli(0.8, 32, 200) + bernoulli(0.2, 32, 200), 1 + (1.952 + 0.248) / 2),
    ):
        recorded = RecordedAcceptance("draft", 3, 1.0, recordings)
        recorded.save(path)
        assert RecordedAcceptance.load(path) == recorded
        shape = scenarios.recorded_shape(path)
        result = core.simulate(small_cell(shape, 64).options(400, 0), core.make_fixed_policy(3))
        # 64 requests of every step of the four fifths that count.
        assert result.num_emitted / (320 * 64) == pytest.approx(expected, rel=0.05)
        assert result.expected_emitted == pytest.approx(result.num_emitted, rel=0.02)


def test_outcomes_become_rates():
    rising = [0.0] * 50 + [1.0] * 50
    (rates,) = RecordedAcceptance("draft", 3, 1.0, [rising]).rates()
    assert len(rates) == 100
    assert all(0 < rate < 1 for rate in rates)
    assert rates[20:80] == sorted(rates[20:80])
    assert np.mean(rates) == pytest.approx(0.5, abs=0.01)
    assert rates[25] == pytest.approx(0.25, abs=0.01)  # half its neighbours, half the mean
    assert rates[75] == pytest.approx(0.75, abs=0.01)
    mixed = [[0.0, 0.5, 1.0]]
    assert RecordedAcceptance("draft", 3, 1.0, mixed).rates() == mixed
    short = RecordedAcceptance("draft", 3, 1.0, [[1.0], [1.0, 0.0]]).rates()
    assert [len(rates) for rates in short] == [1, 2]
    assert RecordedAcceptance("draft", 3, 1.0, [[1.0] * 9]).rates() == [[1.0] * 9]


def test_the_recorded_shape_is_of_its_proposer(tmp_path):
    for proposer, pays in (("draft", True), ("lookup", False), ("suffix", False)):
        path = tmp_path / f"{proposer}.json"
        RecordedAcceptance(proposer, 4, 0.75, [[0.5] * 8]).save(path)
        shape = scenarios.recorded_shape(path)
        assert (shape.name, shape.pays_per_depth, shape.coverage) == ("recorded", pays, 0.75)
        assert shape.claim_noise == scenarios.SHAPES[0].claim_noise
        cells = scenarios.grid(quick=True, shapes=[shape])
        assert {cell.shape.name for cell in cells} == {"recorded"}
        for service in scenarios.services(quick=True, shapes=[shape]):
            assert service.shape is shape


GOOD = {"version": 1, "proposer": "draft", "length": 3, "recordings": [[1.0, 0.5]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version must be 1, got 2"),
        ({"proposer": "magic"}, "proposer must be one of lookup, suffix, draft, got 'magic'"),
        ({"length": 0}, "length must be an integer in"),
        ({"length": "3"}, "length must be an integer in"),
        ({"coverage": 1.5}, "coverage must be a finite number in"),
        ({"recordings": []}, "recordings must be a list of at least one"),
        ({"recordings": {}}, "recordings must be a list of at least one"),
        ({"recordings": [[0.5], []]}, "recordings[1] must be a list of at least one rate"),
        ({"recordings": [0.5]}, "recordings[0] must be a list of at least one rate"),
        ({"recordings": [[0.5, 1.5]]}, "recordings[0][1] must be a finite number in [0, 1], got"),
        ({"recordings": [[0.5, float("nan")]]}, "recordings[0][1] must be a finite number"),
        ({"recordings": [[0.5, None]]}, "recordings[0][1] must be a finite number"),
        ({"recordings": [[True]]}, "recordings[0][0] must be a finite number"),
    ],
)
def test_bad_recordings(capsys, tmp_path, changes, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(GOOD | changes))
    assert main(["simulate", "grid", "--quick", "--acceptance", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}: {message}" in error


def test_grid_command(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    status = main(["simulate", "grid", "--quick", "--steps", "20", "--cells", "moe", "--policies",
                   "off,uniform,auto", "--output-dir", str(tmp_path)])  # fmt: skip
    assert status == 0
    text = capsys.readouterr().out
    assert "worst cell" in text
    assert "moe | wrong" in text
    record = json.loads((tmp_path / "grid.json").read_text())
    assert len(record["cells"]) == len(scenarios.SHAPES)
    assert set(record["summary"]) == {"off", "uniform", "auto"}
    assert (tmp_path / "grid.png").stat().st_size > 1000


def test_jump_command_records_and_replays(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    decisions = tmp_path / "decisions"
    status = main(["simulate", "jump", "--quick", "--seeds", "1", "--policies", "turbospec,auto",
                   "--output-dir", str(tmp_path), "--record", str(decisions)])  # fmt: skip
    assert status == 0
    assert "acceptance .9, .35, .9" in capsys.readouterr().out
    shares = json.loads((tmp_path / "jump.json").read_text())["jumps"][0]["shares"]
    assert np.shape(shares["auto"]) == (2, len(simulation.WINDOWS))
    assert (tmp_path / "jump.png").stat().st_size > 1000
    files = sorted(str(path) for path in decisions.glob("*.trace"))
    assert len(files) == 4  # two jumps, two policies
    assert main(["simulate", "replay", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.endswith(" 0 different") for line in lines)
    assert main(["simulate", "replay", files[0], "--policies", "fixed:1"]) == 0
    assert not capsys.readouterr().out.rstrip().endswith(" 0 different")


def test_rates_and_trace_commands(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [f"2023-11-16 18:15:{i // 10:02d}.{i % 10}00000,{20 + i},{5 + i % 30}"
            for i in range(100)]  # fmt: skip
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    common = ["--quick", "--policies", "fixed:3,auto", "--output-dir", str(tmp_path)]
    assert main(["simulate", "rates", *common, "--rates", "4", "--trace", str(trace)]) == 0
    recorded = tmp_path / "a.json"
    recorded.write_text(json.dumps(GOOD))
    assert main(["simulate", "rates", *common, "--rates", "4", "--acceptance", str(recorded)]) == 0
    record = json.loads((tmp_path / "rates.json").read_text())
    assert [result["service"] for result in record["results"]] == ["8b, recorded"]
    again = ["trace", str(trace), *common, "--acceptance", str(recorded)]
    assert main(["simulate", *again]) == 0
    record = json.loads((tmp_path / "trace.json").read_text())
    assert [result["service"] for result in record["results"]] == ["trace: 8b, recorded"]
    assert main(["simulate", "trace", str(trace), *common, "--speedup", "1,8"]) == 0
    text = capsys.readouterr().out
    assert "times lower than off" in text
    record = json.loads((tmp_path / "trace.json").read_text())
    assert len(record["results"]) == 2
    assert set(record["results"][0]["policies"]) == {"off", "fixed:3", "auto"}
    assert (tmp_path / "rates.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid", "--policies", "best"], "got 'best'"),
        (["grid", "--cells", "no such cell"], "--cells"),
        (["grid", "--quick", "--steps", "0"], "--steps"),
        (["jump", "--seeds", "-1"], "--seeds"),
        (["rates", "--burstiness", "0"], "--burstiness"),
        (["trace", "missing.csv"], "missing.csv"),
        (["replay", "missing.trace"], "missing"),
        (["grid", "--cost", "missing.json"], "missing.json"),
        (["grid", "--acceptance", "missing.json"], "missing.json"),
    ],
)
def test_command_errors(capsys, arguments, message):
    assert main(["simulate", *arguments]) == 2
    assert message in capsys.readouterr().err
