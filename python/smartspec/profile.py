# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""What a model's passes cost on this machine: measured once, kept as JSON, found again by key.

A profile belongs to a CPU, its kernels, a number of threads and a model's shape; with any other it
would mislead, so the cache looks for exactly these. Starting without one is fine as well: costs are
corrected from the first step on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import smartspec_core as core
from smartspec_core import FormatError

from .files import read_json

FORMAT = "smartspec-profile"
VERSION = 1

_MAX_BYTES = 1 << 20
_MAX_KNOTS = 4096
_LISTS = {"tokens": int, "seconds": float, "tiers": int}
_NUMBERS = {
    "per_sequence": float, "per_logit": float, "per_kv_token": float, "per_attention_pair": float,
    "num_experts": int, "experts_per_token": int, "per_expert": float,
}  # fmt: skip
_CONFIG_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window",
    "max_window_layers", "attention_bias", "attention_output_bias", "mlp_bias", "qk_norm",
    "tie_word_embeddings",
)  # fmt: skip


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return (found[1] if found else platform.processor() or platform.machine()).strip()


@dataclass(frozen=True)
class ProfileKey:
    """What a profile is valid for."""

    cpu: str
    kernels: str
    threads: int
    model: str  # fingerprint of shape and dtype

    @classmethod
    def of(cls, model: core.Model) -> ProfileKey:
        shape = {name: getattr(model.config, name) for name in _CONFIG_FIELDS}
        text = json.dumps([shape, model.dtype, model.num_parameters], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
        return cls(cpu_name(), model.isa_name, model.num_threads, fingerprint)

    @property
    def file_name(self) -> str:
        text = json.dumps([VERSION, self.cpu, self.kernels, self.threads, self.model])
        return hashlib.sha256(text.encode()).hexdigest()[:32] + ".json"


@dataclass(frozen=True)
class ModelProfile:
    """`median_error`, `p95_error`: of loads that were left out of a fit to the others."""

    key: ProfileKey
    coefficients: core.CostCoefficients
    num_samples: int = 0
    median_error: float = 0.0
    p95_error: float = 0.0
    created: str = ""


@dataclass(frozen=True)
class CachedCosts:
    target: core.CostCoefficients
    draft: core.CostCoefficients | None = None


def measure(
    model: core.Model,
    seconds: float = 8.0,
    progress: Callable[[float], None] | None = None,
    **options: int,
) -> list[core.CostSample]:
    """core.profile_model() with the seconds checked. `options`: its own."""
    if not 0 < seconds <= 86400:
        raise ValueError(f"seconds must be in (0, 86400], got {seconds}")
    return core.profile_model(model, seconds=seconds, progress=progress, **options)


def errors_of(
    coefficients: core.CostCoefficients, samples: Sequence[core.CostSample]
) -> list[float]:
    """|predicted - measured| / measured of each sample."""
    cost = core.CostModel(coefficients)
    return [abs(cost.predict(sample.load) / sample.seconds - 1) for sample in samples]


def held_out_errors(samples: Sequence[core.CostSample], folds: int = 5) -> list[float]:
    """Errors of each sample under a fit to the other folds'."""
    if len(samples) < 2 * folds:
        return errors_of(core.fit_cost(list(samples)), samples)
    errors = [0.0] * len(samples)
    for fold in range(folds):
        rest = [sample for i, sample in enumerate(samples) if i % folds != fold]
        errors[fold::folds] = errors_of(core.fit_cost(rest), samples[fold::folds])
    return errors


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def profile_of(model: core.Model, samples: Sequence[core.CostSample]) -> ModelProfile:
    errors = held_out_errors(samples)
    return ModelProfile(
        ProfileKey.of(model),
        core.fit_cost(list(samples)),
        len(samples),
        quantile(errors, 0.5),
        quantile(errors, 0.95),
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def cache_directory() -> Path:
    """${XDG_CACHE_HOME}/smartspec/profiles; ~/.cache where it is unset."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The specification has relative paths ignored.
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "smartspec" / "profiles"


def save(path: str | Path, profiles: Sequence[ModelProfile]) -> Path:
    """Writes the file whole or not at all; makes its directory."""
    path = Path(path)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "profiles": [_to_json(profile) for profile in profiles],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def load(path: str | Path) -> list[ModelProfile]:
    """FormatError names the file and what is wrong with it."""
    path = Path(path)
    record = read_json(path, _MAX_BYTES)
    if record.get("format") != FORMAT:
        raise FormatError(f"{path}: not a profile: format must be {FORMAT!r}")
    if record.get("version") != VERSION:
        got = str(record.get("version"))[:40]
        raise FormatError(f"{path}: version must be {VERSION}, got {got}; profile again")
    entries = record.get("profiles")
    if not isinstance(entries, list) or not 1 <= len(entries) <= 64:
        raise FormatError(f"{path}: profiles must be a list of 1 to 64 objects")
    try:
        return [_from_json(entry, f"profiles[{i}]") for i, entry in enumerate(entries)]
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None


def save_cached(profile: ModelProfile) -> Path:
    return save(cache_directory() / profile.key.file_name, [profile])


def load_cached(target: core.Model, draft: core.Model | None = None) -> CachedCosts | None:
    """What `smartspec profile` left for these models on this machine; None without it. A file that
    is damaged, foreign or of another version is ignored with a warning."""
    costs = _cached(target)
    if costs is None:
        return None
    return CachedCosts(costs, _cached(draft) if draft is not None else None)


def _cached(model: core.Model) -> core.CostCoefficients | None:
    key = ProfileKey.of(model)
    path = cache_directory() / key.file_name
    try:
        if not path.exists():
            return None
        profiles = load(path)
        if [profile.key for profile in profiles] != [key]:
            raise FormatError(f"{path}: belongs to another machine or model")
    except (FormatError, OSError) as error:
        warnings.warn(f"profile ignored: {error}", stacklevel=4)
        return None
    return profiles[0].coefficients


def _to_json(profile: ModelProfile) -> dict[str, Any]:
    key = profile.key
    numbers = {name: getattr(profile.coefficients, name) for name in (*_LISTS, *_NUMBERS)}
    return {
        "cpu": key.cpu,
        "kernels": key.kernels,
        "threads": key.threads,
        "model": key.model,
        "created": profile.created,
        "num_samples": profile.num_samples,
        "median_error": profile.median_error,
        "p95_error": profile.p95_error,
        "coefficients": numbers,
    }


def _from_json(entry: object, where: str) -> ModelProfile:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object, got {type(entry).__name__}")
    key = ProfileKey(
        _text(entry, "cpu", where),
        _text(entry, "kernels", where),
        _number(entry, "threads", where, int),
        _text(entry, "model", where),
    )
    return ModelProfile(
        key,
        _coefficients(entry.get("coefficients"), where + ".coefficients"),
        _number(entry, "num_samples", where, int),
        _number(entry, "median_error", where, float),
        _number(entry, "p95_error", where, float),
        _text(entry, "created", where),
    )


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"{where}.{name} must be a text of at most 200 characters")
    return value


def _number(entry: Mapping[str, Any], name: str, where: str, kind: type) -> Any:
    return _checked(entry.get(name), f"{where}.{name}", kind)


def _checked(value: Any, where: str, kind: type) -> Any:
    allowed = (int,) if kind is int else (int, float)
    fits = isinstance(value, allowed) and not isinstance(value, bool) and abs(value) < 2**31
    if not fits or not math.isfinite(value):
        name = "an integer" if kind is int else "a number"
        raise ValueError(f"{where} must be {name} within 32 bits, got {str(value)[:40]!r}")
    return kind(value)


def _coefficients(entry: object, where: str) -> core.CostCoefficients:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be an object")
    result = core.CostCoefficients()
    for name, kind in _LISTS.items():
        values = entry.get(name)
        if not isinstance(values, list) or len(values) > _MAX_KNOTS:
            raise ValueError(f"{where}.{name} must be a list of at most {_MAX_KNOTS} numbers")
        checked = [_checked(v, f"{where}.{name}[{i}]", kind) for i, v in enumerate(values)]
        setattr(result, name, checked)
    for name, kind in _NUMBERS.items():
        setattr(result, name, _number(entry, name, where, kind))
    try:
        result.validate()
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None
    return result
