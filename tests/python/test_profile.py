# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Cost models from Python, and the cached profiles they start from."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import smartspec_core as core
from models_for_tests import write_model
from smartspec import profile
from smartspec.cli import main
from smartspec.config import load_config
from smartspec.loader import load_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Never the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "smartspec" / "profiles"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("profiled"))


def open_model(folder, threads=1):
    return load_model(core.make_runtime("cpu", threads), folder, load_config(folder))


@pytest.fixture(scope="module")
def model(folder):
    return open_model(folder)


@pytest.fixture(scope="module")
def samples(model):
    return profile.measure(model, 0.5, max_num_seqs=8, max_num_tokens=128)


def coefficients(**fields):
    result = core.CostCoefficients()
    result.tokens, result.seconds = [1, 16, 256], [1e-3, 1.5e-3, 8e-3]
    result.per_logit, result.per_kv_token = 1e-5, 3e-8
    for name, value in fields.items():
        setattr(result, name, value)
    return result


def numbers(c):
    return [c.tokens, c.seconds, c.tiers, c.per_sequence, c.per_logit, c.per_kv_token,
            c.per_attention_pair, c.num_experts, c.experts_per_token, c.per_expert]  # fmt: skip


def test_cost_model_predicts_and_learns():
    cost = core.CostModel(coefficients())
    load = core.StepLoad(num_tokens=16, num_sequences=4, num_logits=16, kv_tokens=1000)
    assert cost.predict(load) == pytest.approx(1.5e-3 + 16e-5 + 3e-5)
    for _ in range(60):
        cost.observe(load, 3e-3)
    assert cost.predict(load) == pytest.approx(3e-3, rel=0.02)
    assert cost.num_observed == 60
    again = core.CostModel(cost.coefficients())
    assert again.predict(load) * cost.speed == pytest.approx(cost.predict(load))
    for bad in (math.nan, math.inf, 0.0, -1.0):
        cost.observe(load, bad)
    assert cost.num_observed == 60


def test_bad_coefficients_are_named():
    for field, value in (("seconds", [1.0]), ("tokens", []), ("per_logit", math.nan),
                         ("tiers", [2, 1]), ("experts_per_token", 3)):  # fmt: skip
        with pytest.raises(ValueError, match=field):
            core.CostModel(coefficients(**{field: value}))
    options = core.CostModelOptions()
    options.memory_passes = 0
    with pytest.raises(ValueError, match="memory_passes"):
        core.CostModel(coefficients(), options)


def test_fit_finds_known_coefficients():
    truth = core.CostModel(coefficients())
    loads = [
        core.StepLoad(num_tokens=n * k, num_sequences=n, num_logits=n * k, kv_tokens=n * context,
                      attention_pairs=n * k * context)
        for n in (1, 2, 4, 8, 16, 32) for k in (1, 2, 5, 8) for context in (10, 300, 2000)
    ]  # fmt: skip
    samples = [core.CostSample(load, truth.predict(load)) for load in loads]
    fitted = core.fit_cost(samples)
    assert max(profile.errors_of(fitted, samples)) < 0.01
    assert fitted.per_kv_token == pytest.approx(3e-8, rel=0.05)
    with pytest.raises(ValueError, match="samples"):
        core.fit_cost([])
    with pytest.raises(ValueError, match=r"samples\[0\]"):
        core.fit_cost([core.CostSample(core.StepLoad(), math.nan)])


def test_profile_measures_all_kinds_of_passes(samples):
    assert len(samples) > 40
    assert all(sample.seconds > 0 for sample in samples)
    loads = [sample.load for sample in samples]
    assert max(load.num_tokens for load in loads) > 64
    assert max(load.num_tokens for load in loads) <= 128
    assert max(load.num_sequences for load in loads) == 8
    assert any(load.num_tokens == load.num_sequences for load in loads)
    assert any(load.num_logits == load.num_tokens > load.num_sequences for load in loads)
    assert any(load.num_logits < load.num_tokens for load in loads)
    core.fit_cost(samples).validate()


def test_profile_options_and_callbacks(model):
    shares = []
    assert core.profile_model(model, seconds=0.05, progress=shares.append)
    assert shares
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    assert len(core.profile_model(model, seconds=0)) == 1

    def stop(_share):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        core.profile_model(model, progress=stop)
    for option in ("max_num_seqs", "max_num_tokens", "max_context", "block_size",
                   "kv_memory_bytes"):  # fmt: skip
        with pytest.raises(ValueError, match=option):
            core.profile_model(model, **{option: 0})
    for seconds in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="seconds"):
            profile.measure(model, seconds)


def test_little_memory_and_short_contexts(tmp_path):
    small = open_model(write_model(tmp_path, max_position_embeddings=8))
    assert core.profile_model(small, seconds=0.05)
    with pytest.raises(ValueError, match="kv_memory_bytes"):
        core.profile_model(small, kv_memory_bytes=1)
    assert core.profile_model(small, seconds=0.05, kv_memory_bytes=8192)


def test_roofline_follows_the_shape(model, tmp_path):
    one = core.roofline_of(model)
    two = core.roofline_of(model, 2)
    assert two.flops_per_second == 2 * one.flops_per_second
    assert one.kv_bytes_per_token == model.bytes_per_kv_token()
    assert one.flops_per_logit == 2 * 96 * 32
    deeper = core.roofline_of(open_model(write_model(tmp_path, num_hidden_layers=4)))
    assert deeper.flops_per_token == pytest.approx(2 * one.flops_per_token, rel=0.01)
    core.make_roofline(one).validate()
    one.bytes_per_second = 0.0
    with pytest.raises(ValueError, match="bytes_per_second"):
        core.make_roofline(one)
    with pytest.raises(ValueError, match="num_threads"):
        core.roofline_of(model, -1)


def test_files_round_trip(model, samples, tmp_path):
    made = profile.profile_of(model, samples)
    assert 0 <= made.median_error <= made.p95_error
    path = profile.save(tmp_path / "a" / "b.json", [made, made])
    loaded = profile.load(path)
    assert len(loaded) == 2
    assert numbers(loaded[0].coefficients) == numbers(made.coefficients)
    assert loaded[1].key == made.key
    assert replace(loaded[0], coefficients=made.coefficients) == made
    assert [file.name for file in path.parent.iterdir()] == ["b.json"]


def stored(tmp_path):
    key = profile.ProfileKey("cpu", "avx2", 2, "ab" * 16)
    path = profile.save(tmp_path / "p.json", [profile.ModelProfile(key, coefficients())])
    return path, json.loads(path.read_text())


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["format"], "vllm"),
        (["version"], 2),
        (["version"], None),
        (["profiles"], []),
        (["profiles"], {}),
        (["profiles", 0], 3),
        (["profiles", 0, "cpu"], None),
        (["profiles", 0, "cpu"], "x" * 1000),
        (["profiles", 0, "threads"], "2"),
        (["profiles", 0, "threads"], True),
        (["profiles", 0, "threads"], 10**400),
        (["profiles", 0, "coefficients"], []),
        (["profiles", 0, "coefficients", "tokens"], [1, 1, 2]),
        (["profiles", 0, "coefficients", "tokens"], [1.5, 2, 3]),
        (["profiles", 0, "coefficients", "tokens"], list(range(1, 6000))),
        (["profiles", 0, "coefficients", "seconds"], [1e-3, 1e-4, 1e-5]),
        (["profiles", 0, "coefficients", "seconds"], [1e-3]),
        (["profiles", 0, "coefficients", "seconds"], [math.nan] * 3),
        (["profiles", 0, "coefficients", "per_logit"], -1.0),
        (["profiles", 0, "coefficients", "per_kv_token"], math.inf),
        (["profiles", 0, "coefficients", "num_experts"], 2**40),
    ],
)
def test_damaged_files_are_format_errors(tmp_path, where, value):
    path, record = stored(tmp_path)
    assert profile.load(path)
    entry = record
    for step in where[:-1]:
        entry = entry[step]
    entry[where[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(core.FormatError, match=r"p\.json"):
        profile.load(path)


def test_files_that_are_no_json(tmp_path):
    path, _ = stored(tmp_path)
    text = path.read_bytes()
    for data in (b"", text[:-20], b"[]", b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20)):
        path.write_bytes(data)
        with pytest.raises(core.FormatError, match=r"p\.json"):
            profile.load(path)
    with pytest.raises(core.FormatError):
        profile.load(tmp_path / "absent.json")


def test_cache_finds_what_fits_only(model, samples, cache, folder, tmp_path):
    assert profile.load_cached(model) is None
    made = profile.profile_of(model, samples)
    path = profile.save_cached(made)
    assert path.parent == cache
    found = profile.load_cached(open_model(folder), open_model(folder))
    assert numbers(found.target) == numbers(found.draft) == numbers(made.coefficients)
    assert profile.load_cached(open_model(folder, threads=2)) is None
    other = open_model(write_model(tmp_path / "other", num_hidden_layers=3))
    assert profile.load_cached(other) is None
    assert profile.load_cached(model, other).draft is None


def test_damaged_and_foreign_cache_files_are_ignored(model, samples):
    made = profile.profile_of(model, samples)
    path = profile.save_cached(made)
    path.write_text("{")
    with pytest.warns(UserWarning, match="profile ignored"):
        assert profile.load_cached(model) is None
    foreign = replace(made, key=replace(made.key, cpu="another"))
    profile.save(path, [foreign])
    with pytest.warns(UserWarning, match="another machine"):
        assert profile.load_cached(model) is None
    profile.save_cached(made)
    assert profile.load_cached(model) is not None


def test_cache_directory_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert profile.cache_directory() == tmp_path / ".cache/smartspec/profiles"


def test_command(folder, cache, capsys, tmp_path):
    arguments = ["profile", "--model", str(folder), "--seconds", "0.3", "--num-threads", "1"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for word in ("decodes + drafts", "prompt chunks", "left out", "all", str(cache)):
        assert word in text
    assert profile.load_cached(open_model(folder)) is not None
    output = tmp_path / "out.json"
    both = ["--draft-model", str(folder), "--output", str(output), "--max-num-seqs", "4"]
    assert main([*arguments, *both]) == 0
    assert "written to" in capsys.readouterr().out
    assert len(profile.load(output)) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "/nonexistent"],
        ["--model", "draft", "--seconds", "0"],
        ["--model", "draft", "--seconds", "nan"],
        ["--model", "draft", "--max-num-seqs", "0"],
    ],
)
def test_mistakes_are_told_in_one_line(capsys, arguments):
    assert main(["profile", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("smartspec profile: ")
    assert "Traceback" not in captured.err
