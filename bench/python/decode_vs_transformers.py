# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""One-token decode of a random 300 M parameter Llama in bf16: SmartSpec against transformers.

Both load the same weights, decode greedily after the same prompt, and are timed in turn in one
run; medians. Run on a quiet machine: python bench/python/decode_vs_transformers.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import smartspec
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def random_llama(directory: str) -> LlamaForCausalLM:
    """Saves a random model to `directory` in bf16 and returns it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    model.save_pretrained(directory)
    return model


class TransformersDecoder:
    """Greedy decoding with transformers' dynamic KV cache, one token a call."""

    def __init__(self, model: LlamaForCausalLM, prompt: list[int]) -> None:
        self.model = model
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([prompt]), use_cache=True)
        self.cache = out.past_key_values
        self.token = out.logits[:, -1:].argmax(-1)

    def step(self) -> None:
        with torch.inference_mode():
            out = self.model(input_ids=self.token, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        self.token = out.logits[:, -1:].argmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--context", type=int, default=256, help="prompt tokens")
    parser.add_argument("--rounds", type=int, default=25, help="timed tokens of each")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prompt = [(17 * i) % 32000 for i in range(args.context)]

    with tempfile.TemporaryDirectory() as directory:
        reference = random_llama(directory)
        llm = smartspec.LLM(
            directory,
            speculation="off",
            num_threads=args.threads,
            max_num_seqs=1,
            max_model_len=args.context + args.rounds + 64,
        )
        params = smartspec.SamplingParams(
            temperature=0.0, max_tokens=args.rounds + 32, ignore_eos=True, detokenize=False
        )
        llm.start(llm.prepare(prompt, params))
        llm.step()
        theirs = TransformersDecoder(reference, prompt)
        ours_s: list[float] = []
        theirs_s: list[float] = []
        for _ in range(args.rounds + 3):
            start = time.perf_counter()
            llm.step()
            middle = time.perf_counter()
            theirs.step()
            ours_s.append(middle - start)
            theirs_s.append(time.perf_counter() - middle)
    ours = statistics.median(ours_s[3:]) * 1e3
    other = statistics.median(theirs_s[3:]) * 1e3
    print(f"threads {args.threads}, context {args.context}, medians of {args.rounds} tokens")
    print(f"smartspec     {ours:7.2f} ms/token")
    print(f"transformers  {other:7.2f} ms/token (bf16, {other / ours:.2f}x)")


if __name__ == "__main__":
    main()
