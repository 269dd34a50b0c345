# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
"""Chat templates come from strangers."""

from __future__ import annotations

import json

import pytest
import smartspec
from smartspec import FormatError, SamplingParams
from smartspec.chat import ChatTemplate

HELLO = [{"role": "user", "content": "Hello <b>"}]
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""


def test_renders_a_conversation():
    template = ChatTemplate(CHATML)
    (text,) = template.render([HELLO])
    assert text == "<|im_start|>user\nHello <b><|im_end|>\n<|im_start|>assistant\n"
    two = template.render([HELLO, [*HELLO, {"role": "assistant", "content": "é"}]], False)
    assert two[1].endswith("assistant\né<|im_end|>\n")


def test_what_templates_use():
    source = (
        "{{ bos_token }}{% generation %}{% for m in messages %}{% if loop.first %}{% continue %}"
        "{% endif %}{{ m.content | trim | tojson }}{% endfor %}{% endgeneration %}"
        "{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}"
        "{{ tools | tojson(indent=1) }}{{ strftime_now('%Y') | length }}"
    )
    template = ChatTemplate(source, {"bos_token": "<s>"})
    text = template.render([[*HELLO, {"role": "a", "content": " <&é> "}]], tools=[1])[0]
    assert text == '<s>"<&é>"2[\n 1\n]4'


def test_template_may_refuse():
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        template.render([HELLO])


ATTACKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__['sys'].modules }}",
    "{{ self.__init__.__globals__ }}{{ self.__init__.__globals__.os.system('x') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ namespace.__init__.__globals__['__builtins__'].open('/etc/passwd').read() }}",
    "{{ ''|attr('__class__')|attr('__mro__')|attr('__getitem__')(1) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception).boom() }}",
    "{{ messages.append({}) }}",
    "{{ (1).__add__.__self__.__class__.mro() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
]


@pytest.mark.parametrize("source", ATTACKS)
def test_sandbox(source):
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate(source).render([HELLO])


BOMBS = [
    "{% set r = range(90000) %}" + "{% for a in r %}" * 6 + "{% endfor %}" * 6,
    "{{ 'x' * 10**11 }}",
    "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}{{ ns.x | length }}",
    "{% for i in range(90000) %}{{ 'y' * 1000 }}{% endfor %}",
    "{{ '%999999999999d' % 1 }}",
]


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_limits(source, monkeypatch):
    monkeypatch.setattr("smartspec.chat.MAX_SECONDS", 3.0)
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate(source).render([HELLO])


def test_memory_is_limited():
    with pytest.raises(ValueError, match="1024 MiB allowed"):
        ChatTemplate("{{ ('x' * 1500000000) | length }}").render([HELLO])


@pytest.mark.parametrize(
    "messages",
    ["text", [], ["text"], [{}], [{"role": 3}], None, [{"role": "u", "content": {1, 2}}], 5],
)
def test_bad_messages(messages):
    with pytest.raises((ValueError, TypeError), match="messages"):
        ChatTemplate(CHATML).render([messages])


def test_bad_templates(tmp_path):
    with pytest.raises(ValueError, match="chat template"):
        ChatTemplate("{% if %}").render([HELLO])
    with pytest.raises(FormatError, match="longer"):
        ChatTemplate("x" * (1 << 21))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises(FormatError, match="chat_template"):
        ChatTemplate.from_directory(tmp_path)


def test_where_templates_are_found(tmp_path):
    assert ChatTemplate.from_directory(tmp_path) is None
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "chat_template": [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ bos_token }}{{ eos_token }}"},
        ],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_directory(tmp_path).render([HELLO]) == ["<s></s>"]
    (tmp_path / "chat_template.jinja").write_text("file")
    assert ChatTemplate.from_directory(tmp_path).render([HELLO]) == ["file"]


def test_llm_chat(llm):
    params = SamplingParams(temperature=0.0, max_tokens=6)
    template = "# {{ messages[0].content }}\n\n"  # Jinja drops the last newline
    (chatted,) = llm.chat(HELLO, params, use_tqdm=False, chat_template=template)
    (plain,) = llm.generate("# Hello <b>\n", params, use_tqdm=False)
    assert chatted.prompt == "# Hello <b>\n"
    assert chatted.outputs[0].token_ids == plain.outputs[0].token_ids
    both = llm.chat([HELLO, HELLO], params, use_tqdm=False, chat_template=template)
    assert len(both) == 2
    with pytest.raises(ValueError, match="no chat template"):
        llm.chat(HELLO, params)
    assert smartspec.LLM.chat.__doc__
