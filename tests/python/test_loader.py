# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Model directories: sharded, damaged, hostile."""

from __future__ import annotations

import json
import pickle
import sys

import numpy as np
import pytest
import smartspec
import smartspec_core as core
from models_for_tests import TINY, random_weights, write_model
from smartspec import FormatError, SamplingParams
from smartspec.loader import open_weights

PROMPT = [3, 1, 4, 1, 5]


def tokens(engine):
    params = SamplingParams(temperature=0.0, max_tokens=20)
    return engine.generate(PROMPT, params, use_tqdm=False)[0].outputs[0].token_ids


def test_sharded_equals_single(tmp_path, tiny):
    sharded = smartspec.LLM(write_model(tmp_path, shards=3), num_threads=1)
    assert tokens(sharded) == tokens(tiny)
    assert sharded.model.num_parameters == tiny.model.num_parameters


def test_weights_outlive_their_files_and_names(tmp_path):
    folder = write_model(tmp_path, shards=2)
    engine = smartspec.LLM(folder, num_threads=1)
    expected = tokens(engine)
    for path in folder.iterdir():
        path.unlink()
    assert tokens(engine) == expected


def test_model_from_arrays(tiny):
    """Without any file: NumPy arrays by name, from a dict or a callable."""
    weights = random_weights(TINY)
    config = tiny.model_config
    expected = tiny.model.forward_logits(PROMPT)
    for source in (weights, weights.get):
        model = core.Model.from_tensors(core.make_runtime("cpu", 1), config, source)
        assert np.array_equal(model.forward_logits(PROMPT), expected)
    held = core.Model.from_tensors(core.make_runtime("cpu", 1), config, random_weights(TINY))
    junk = [np.zeros(10_000, np.float32) for _ in range(100)]  # would reuse freed memory
    assert np.array_equal(held.forward_logits(PROMPT), expected)
    assert len(junk) == 100


def test_bfloat16_bits(tiny):
    exact = {
        k: (v.view(np.uint32) >> 16).astype(np.uint16) for k, v in random_weights(TINY).items()
    }
    wide = {k: (v.astype(np.uint32) << 16).view(np.float32) for k, v in exact.items()}
    runtime = core.make_runtime("cpu", 1)
    as_bf16 = {k: core.Tensor(v, dtype="bfloat16") for k, v in exact.items()}
    a = core.Model.from_tensors(runtime, tiny.model_config, as_bf16)
    b = core.Model.from_tensors(runtime, tiny.model_config, as_bf16, dtype="float32")
    c = core.Model.from_tensors(runtime, tiny.model_config, wide)
    assert (a.dtype, b.dtype, c.dtype) == ("bfloat16", "float32", "float32")
    assert np.array_equal(b.forward_logits(PROMPT), c.forward_logits(PROMPT))
    assert np.abs(a.forward_logits(PROMPT) - c.forward_logits(PROMPT)).max() < 0.5


def test_source_errors_come_through(tiny):
    def source(name):
        raise KeyError(f"no {name} here")

    with pytest.raises(KeyError, match=r"model\.embed_tokens"):
        core.Model.from_tensors(core.make_runtime("cpu", 1), tiny.model_config, source)
    weights = random_weights(TINY)
    name = "model.layers.1.mlp.up_proj.weight"
    for value, error in (
        (None, FormatError),
        (weights[name].T.copy(), FormatError),
        (weights[name].T, ValueError),  # not contiguous
        (weights[name].astype(np.float64), ValueError),
        ("text", RuntimeError),
    ):
        with pytest.raises(error):
            core.Model.from_tensors(
                core.make_runtime("cpu", 1), tiny.model_config, {**weights, name: value}
            )


def test_truncated_shard(tmp_path):
    folder = write_model(tmp_path, shards=2)
    shard = sorted(folder.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    for keep in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:keep])
        with pytest.raises(FormatError):
            smartspec.LLM(folder)
    shard.unlink()
    with pytest.raises(FormatError, match="does not exist"):
        smartspec.LLM(folder)


@pytest.mark.parametrize(
    "target",
    ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b.safetensors", "",
     "x.bin", "..\\x.safetensors", "x\0.safetensors", 7, None, ["x"], {"a": 1}],
)  # fmt: skip
def test_index_must_stay_in_its_directory(tmp_path, target):
    folder = write_model(tmp_path / "model", shards=2)
    single = write_model(tmp_path / "other") / "model.safetensors"
    single.rename(tmp_path / "outside.safetensors")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = target
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match="weight_map"):
        open_weights(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}', "{"])
def test_bad_index(tmp_path, text):
    folder = write_model(tmp_path, shards=2)
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FormatError, match="index"):
        open_weights(folder)


def test_index_naming_a_missing_tensor(tmp_path):
    folder = write_model(tmp_path, shards=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"model\.extra"):
        open_weights(folder)


def test_pickles_and_code_are_never_touched(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FormatError, match="pickled weights are never loaded"):
        smartspec.LLM(folder)
    write_model(folder, auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'boom')!r}, 'w')\n")
    smartspec.LLM(folder)
    assert "evil" not in sys.modules
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null", b'{"a": ' * 50_000]
)
def test_damaged_json(tmp_path, name, data):
    folder = write_model(tmp_path)
    (folder / name).write_bytes(data)
    with pytest.raises(FormatError, match=name):
        smartspec.LLM(folder)


def test_weights_that_do_not_fit_the_config(tmp_path):
    folder = write_model(tmp_path)
    write_config = {**TINY, "intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(write_config))
    with pytest.raises(FormatError, match=r"mlp\.gate_proj\.weight has shape"):
        smartspec.LLM(folder)
    (folder / "config.json").write_text(json.dumps({**TINY, "num_hidden_layers": 3}))
    with pytest.raises(FormatError, match=r"layers\.2\..* is missing"):
        smartspec.LLM(folder)


def test_config_too_large(tmp_path):
    folder = write_model(tmp_path)
    (folder / "config.json").write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(FormatError, match="larger than"):
        smartspec.LLM(folder)


def test_safetensors_views(tmp_path):
    file = core.SafetensorsFile(str(write_model(tmp_path) / "model.safetensors"))
    weights = random_weights(TINY)
    assert sorted(file.names()) == sorted(weights)
    assert file.find("nothing") is None
    array = file.find("model.norm.weight").numpy()
    del file  # the view keeps the map
    assert np.array_equal(array, weights["model.norm.weight"])
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
