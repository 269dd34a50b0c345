# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
from typing import Any

import smartspec_core as core

from ..config import load_config, load_generation_config
from ..loader import load_model, model_directory
from .common import HelpFormatter, model_path

_EXAMPLES = """\
examples:
  smartspec info
  smartspec info --model target
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="say what was built and what a model needs",
        description="Prints the version, the kernels chosen for this CPU, threads, and, with "
        "--model, the model's shape, parameters and KV-cache bytes per token.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "--model", type=model_path, default=None, metavar="DIR", help="a model directory"
    )
    return parser


def _line(name: str, value: object) -> None:
    print(f"{name + ':':<26}{value}")


def _model(runtime: core.Runtime, path: str) -> None:
    folder = model_directory("--model", path)
    config = load_config(folder)
    model = load_model(runtime, folder, config)
    config = model.config  # head_dim filled in
    eos = load_generation_config(folder, config.vocab_size).eos_token_ids
    _line("model", folder)
    _line("dtype", model.dtype)
    _line("parameters", f"{model.num_parameters:,}")
    _line("layers", config.num_hidden_layers)
    _line("hidden / intermediate", f"{config.hidden_size} / {config.intermediate_size}")
    heads = f"{config.num_attention_heads} / {config.num_key_value_heads} x {config.head_dim}"
    _line("heads / KV heads", heads)
    _line("vocabulary", config.vocab_size)
    _line("longest context", config.max_position_embeddings)
    _line("sliding window", config.sliding_window or "none")
    _line("rope", f"theta {config.rope_theta:g}, scaling {config.rope_scaling.type.name}")
    _line("end-of-text ids", ", ".join(map(str, eos)) or "none")
    _line("KV bytes per token", model.bytes_per_kv_token())


def _cuda() -> None:
    build = core.cuda.build_info()
    if build["has_cuda"]:
        libraries = ", cuBLASLt" if build["has_cublaslt"] else ""
        _line("built for CUDA", f"{build['toolkit']}, {build['architectures']}{libraries}")
    usable = core.cuda.is_usable()
    _line("CUDA", "available" if usable else f"not available: {core.cuda.unusable_reason()}")


def run(options: argparse.Namespace) -> int:
    runtime = core.make_runtime()
    _line("smartspec", core.__version__)
    _line("CPU kernels", runtime.isa_name)
    _line("threads", runtime.num_threads)
    _cuda()
    if options.model:
        _model(runtime, options.model)
    return 0
