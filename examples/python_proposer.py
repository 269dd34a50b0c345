# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""The step loop, and a proposer written in Python.

The proposer remembers every pair of tokens it has seen and drafts what followed last time. Nothing
it returns can change the output; it only decides how many passes the model needs.

    python examples/python_proposer.py
"""

import smartspec
import smartspec_core as core


class Bigrams(smartspec.Proposer):
    def __init__(self) -> None:
        super().__init__()
        self.follower: dict[tuple[int, int], int] = {}
        self.seen: dict[int, int] = {}  # request: tokens learnt so far

    def propose(self, requests: list[core.ProposeRequest]) -> list[list[int]]:
        return [self._draft(request) for request in requests]

    def _draft(self, request: core.ProposeRequest) -> list[int]:
        tokens = request.tokens.tolist()  # prompt and verified output
        for i in range(max(2, self.seen.get(request.id, 0)), len(tokens)):
            self.follower[tokens[i - 2], tokens[i - 1]] = tokens[i]
        self.seen[request.id] = len(tokens)
        draft = tokens[-2:]
        while len(draft) - 2 < request.max_depth and tuple(draft[-2:]) in self.follower:
            draft.append(self.follower[draft[-2], draft[-1]])
        return draft[2:]

    def finish(self, request_id: int) -> None:
        self.seen.pop(request_id, None)


def main() -> None:
    llm = smartspec.LLM(
        smartspec.shipped_model("target"),
        speculation=smartspec.Speculation(Bigrams(), max_tokens=6),
    )
    engine, tokenizer = llm.engine, llm.get_tokenizer()
    params = core.SamplingParams()
    params.temperature = 0.0
    params.max_tokens = 64

    outputs: dict[int, list[int]] = {}
    for text in ("import os\nimport sys\n", "    def __init__(self, name):\n"):
        outputs[engine.add_request(tokenizer.encode(text), params)] = []
    while engine.has_unfinished():
        for event in engine.step():
            outputs[event.id] += event.new_token_ids
            if event.finish_reason:
                stats = event.stats
                print(
                    f"request {event.id}: {event.finish_reason}, {stats.num_steps} passes, "
                    f"{stats.num_accepted} of {stats.num_drafted} drafted tokens accepted"
                )
    for request, tokens in outputs.items():
        print(f"\n--- request {request}\n{tokenizer.decode(tokens)}")


if __name__ == "__main__":
    main()
