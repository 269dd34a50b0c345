# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""SmartSpec: speculative decoding for LLM serving that never changes an output.

import smartspec

llm = smartspec.LLM("path/to/hf-model-dir", draft_model="path/to/draft")
outputs = llm.generate(["def main("], smartspec.SamplingParams(temperature=0.0, max_tokens=64))
print(outputs[0].outputs[0].text, outputs[0].speculation.acceptance_length)
"""

from smartspec_core import DeviceError, Error, FormatError, Proposer, TokenTree, __version__

from .llm import LLM
from .outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput, SpeculationStats
from .sampling_params import SamplingParams
from .shipped import shipped_model
from .speculation import RequestSpeculation, Speculation

__all__ = [
    "LLM",
    "CompletionOutput",
    "DeviceError",
    "Error",
    "FormatError",
    "Logprob",
    "Proposer",
    "RequestMetrics",
    "RequestOutput",
    "RequestSpeculation",
    "SamplingParams",
    "Speculation",
    "SpeculationStats",
    "TokenTree",
    "__version__",
    "shipped_model",
]
