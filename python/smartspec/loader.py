# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Weights of a model directory: safetensors, single or sharded, mapped and never copied here."""

from __future__ import annotations

from pathlib import Path

import smartspec_core as core
from smartspec_core import FormatError

from .files import read_json
from .inflate import inflated_layers, inflated_weights, parse_parameters

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_SHARDS = 4096
_MAX_INDEX_BYTES = 64 << 20


def model_directory(field: str, path: object) -> Path:
    """A directory with a config.json, or ValueError naming the field. Nothing is downloaded."""
    if not isinstance(path, (str, Path)) or not str(path):
        raise ValueError(f"{field} must be the path of a model directory, got {str(path)[:120]!r}")
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{field}: no such directory: {folder} (models are not downloaded)")
    if not (folder / "config.json").is_file():
        raise FormatError(f"{field}: {folder} has no config.json")
    return folder


def open_weights(folder: Path) -> dict[str, core.Tensor]:
    """Every tensor by name. The maps stay open as long as a tensor or a model uses them."""
    single = folder / _SINGLE
    if single.is_file():
        file = core.SafetensorsFile(str(single))
        return {name: _tensor(file, name, _SINGLE) for name in file.names()}
    if (folder / _INDEX).is_file():
        return _open_shards(folder)
    hint = ""
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        hint = "; pickled weights are never loaded, convert them to safetensors"
    raise FormatError(f"{folder}: has neither {_SINGLE} nor {_INDEX}{hint}")


def _tensor(file: core.SafetensorsFile, name: str, where: str) -> core.Tensor:
    tensor = file.find(name)
    if tensor is None:
        raise FormatError(f"{where} has no tensor {name!r}, which the index puts there")
    return tensor


def _open_shards(folder: Path) -> dict[str, core.Tensor]:
    path = folder / _INDEX
    weight_map = read_json(path, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{path}: weight_map must be an object from tensor to file name")
    files: dict[str, core.SafetensorsFile] = {}
    tensors = {}
    for name, shard in weight_map.items():
        if shard not in files if isinstance(shard, str) else True:
            files[shard] = _open_shard(folder, path, name, shard)
            if len(files) > _MAX_SHARDS:
                raise FormatError(f"{path}: weight_map names more than {_MAX_SHARDS} files")
        tensors[name] = _tensor(files[shard], name, shard)
    return tensors


def _open_shard(folder: Path, index: Path, name: str, shard: object) -> core.SafetensorsFile:
    # A plain name only: an index must not reach outside its directory.
    if (
        not isinstance(shard, str)
        or not shard.endswith(".safetensors")
        or shard != Path(shard).name
        or "\\" in shard
        or "\0" in shard
    ):
        raise FormatError(
            f"{index}: weight_map[{name[:80]!r}] must be the plain name of a .safetensors file "
            f"beside the index, got {str(shard)[:120]!r}"
        )
    if not (folder / shard).is_file():
        raise FormatError(f"{index}: weight_map names {shard}, which does not exist")
    return core.SafetensorsFile(str(folder / shard))


def load_model(
    runtime: core.Runtime,
    folder: Path,
    config: core.ModelConfig,
    dtype: str = "auto",
    inflate_to: int | str | None = None,
) -> core.Model:
    """`config` is changed to the number of layers that `inflate_to` parameters take."""
    weights = open_weights(folder)
    if inflate_to is None:
        return core.Model.from_tensors(runtime, config, weights, dtype)
    layers = config.num_hidden_layers
    config.num_hidden_layers = inflated_layers(config, parse_parameters(inflate_to))
    return core.Model.from_tensors(runtime, config, inflated_weights(weights, layers), dtype)
