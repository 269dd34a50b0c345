# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

from ..llm import LLM
from ..outputs import RequestOutput
from ..sampling_params import SamplingParams
from ..speculation import RequestSpeculation
from .common import HelpFormatter, add_engine_options, make_llm, save_suffix_index

_EXAMPLES = """\
examples:
  smartspec generate --model target --prompt 'def main(' --max-tokens 64 --temperature 0
  smartspec generate --model DIR --draft-model DRAFT_DIR --prompt 'Once upon' --stream
  smartspec generate --model DIR --speculation lookup --chat --prompt 'Hello!' --json
  smartspec generate --model DIR --proposer suffix --suffix-index past.idx --prompt 'Hello!'
  smartspec generate --model DIR --policy auto --tpot-target-ms 20 --prompt 'Hello!'
  smartspec generate --model DIR < prompt.txt
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "generate",
        help="complete prompts with a model",
        description="Completes one or several prompts; without --prompt reads one from stdin. "
        "Speculation changes the speed, never the text.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    add_engine_options(parser)
    group = parser.add_argument_group("prompt and sampling")
    group.add_argument("--prompt", action="append", default=None, help="may be given repeatedly")
    group.add_argument("--chat", action="store_true", help="put the prompt into the chat template")
    group.add_argument(
        "--prediction", default=None, help="text the outputs may resemble; suffix proposers draft "
        "from it",
    )  # fmt: skip
    group.add_argument("--max-tokens", type=int, default=128, help="per completion")
    group.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--top-k", type=int, default=0, help="0: no limit")
    group.add_argument("--min-p", type=float, default=0.0)
    group.add_argument("--seed", type=int, default=None, help="unset: the engine's own")
    group.add_argument("--stop", action="append", default=None, help="may be given repeatedly")
    group.add_argument("-n", type=int, default=1, help="completions per prompt")
    group.add_argument("--ignore-eos", action="store_true", help="go on after end of text")
    _add_wishes(parser.add_argument_group("speculation of these requests"))
    output = parser.add_argument_group("output")
    output.add_argument("--stream", action="store_true", help="print as it comes; one prompt")
    output.add_argument("--json", action="store_true", help="one JSON object per prompt")
    return parser


def _add_wishes(group: Any) -> None:
    group.add_argument("--no-speculation", action="store_true", help="never draft")
    group.add_argument("--min-draft-tokens", type=int, default=0, metavar="N", help="verify that "
        "many at every step, where that many are drafted")  # fmt: skip
    group.add_argument("--max-draft-tokens", type=int, default=None, metavar="N", help="at most; "
        "unset: as the policy decides")  # fmt: skip
    group.add_argument("--tpot-target-ms", type=float, default=None, metavar="X", help="per output "
        "token; the policy auto gives what is needed for that first")  # fmt: skip


_OPTION_OF = {
    "min_tokens": "--min-draft-tokens", "max_tokens": "--max-draft-tokens",
    "tpot_target_ms": "--tpot-target-ms",
}  # fmt: skip


def _wishes(options: argparse.Namespace) -> RequestSpeculation:
    try:
        return RequestSpeculation(
            enabled=not options.no_speculation,
            min_tokens=options.min_draft_tokens,
            max_tokens=options.max_draft_tokens,
            tpot_target_ms=options.tpot_target_ms,
        )
    except ValueError as error:  # begins with the field
        field, _, rest = str(error).partition(" ")
        raise ValueError(f"{_OPTION_OF.get(field, field)} {rest}") from None


def _params(options: argparse.Namespace) -> SamplingParams:
    return SamplingParams(
        n=options.n,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        seed=options.seed,
        stop=options.stop,
        max_tokens=options.max_tokens,
        ignore_eos=options.ignore_eos,
    )


def _as_json(output: RequestOutput) -> str:
    stats = output.speculation
    return json.dumps(
        {
            "prompt": output.prompt,
            "num_prompt_tokens": len(output.prompt_token_ids),
            "outputs": [
                {
                    "index": each.index,
                    "text": each.text,
                    "token_ids": each.token_ids,
                    "finish_reason": each.finish_reason,
                    "stop_reason": each.stop_reason,
                }
                for each in output.outputs
            ],
            "speculation": {
                "num_drafted": stats.num_drafted,
                "num_accepted": stats.num_accepted,
                "num_steps": stats.num_steps,
                "acceptance_length": round(stats.acceptance_length, 4),
                "reason": stats.reason,
                "proposer": stats.proposer,
            },
        },
        ensure_ascii=False,
    )


def _stream(parts: Iterable[RequestOutput], as_json: bool) -> None:
    for part in parts:
        if as_json:
            print(_as_json(part), flush=True)
        else:
            print(part.outputs[0].text, end="", flush=True)
    if not as_json:
        print()


def _chat_prompt(llm: LLM, text: str) -> dict[str, Any]:
    if llm.chat_template is None:
        raise ValueError("--chat: the model has no chat template")
    rendered = llm.chat_template.render([[{"role": "user", "content": text}]])[0]
    ids = llm.get_tokenizer().encode(rendered, add_special_tokens=False)
    return {"prompt": rendered, "prompt_token_ids": ids}


def run(options: argparse.Namespace) -> int:
    params = _params(options)
    wishes = _wishes(options)
    texts = options.prompt or [sys.stdin.read()]
    if options.stream and (len(texts) != 1 or options.n != 1):
        raise ValueError("--stream takes one prompt and one completion")
    llm = make_llm(options)
    prompts = [_chat_prompt(llm, text) if options.chat else text for text in texts]
    if options.stream:
        parts = llm.stream(prompts[0], params, prediction=options.prediction, speculation=wishes)
        _stream(parts, options.json)
        save_suffix_index(options, llm)
        return 0
    predictions = [options.prediction] * len(prompts)
    outputs = llm.generate(prompts, params, prediction=predictions, speculation=wishes)
    save_suffix_index(options, llm)
    for output in outputs:
        if options.json:
            print(_as_json(output))
            continue
        for each in output.outputs:
            print(f"{output.prompt}{each.text}" if len(texts) == 1 else each.text)
    return 1 if any(each.error for output in outputs for each in output.outputs) else 0
