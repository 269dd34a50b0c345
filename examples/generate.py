# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Completions with a draft model: the same tokens as without, in fewer passes of the model.

python examples/generate.py [MODEL_DIR [DRAFT_DIR]]
"""

import sys

import smartspec


def main() -> None:
    target, draft = smartspec.shipped_model("target"), smartspec.shipped_model("draft")
    if len(sys.argv) > 1:
        target, draft = sys.argv[1], (sys.argv[2] if len(sys.argv) > 2 else None)
    llm = smartspec.LLM(target, draft_model=draft)
    prompts = ["import os\nimport ", "def read(self, size=-1):\n    "]
    params = smartspec.SamplingParams(temperature=0.8, top_p=0.95, seed=7, max_tokens=48)
    for output in llm.generate(prompts, params):
        stats = output.speculation
        print("-" * 72)
        print(f"{output.prompt}{output.outputs[0].text}")
        print(
            f"[{stats.num_accepted} of {stats.num_drafted} drafted tokens accepted, "
            f"{stats.acceptance_length:.2f} tokens per pass]"
        )

    print("-" * 72)
    for part in llm.stream("class Stack:\n    def push(", params.clone(stop="\n\n")):
        print(part.outputs[0].text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
