from datetime import datetime

import pytest

from moesaic.errors import DataError, RequestError
from moesaic.tokenizer.chat import choose_template, render_chat

MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Naïve?\n"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why"},
]

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
WITH_TOKENS = """{{ bos_token }}{% for message in messages %}
  {% if message.role == 'system' %}{% continue %}{% endif %}
  {% if loop.index > 3 %}{% break %}{% endif %}
{{ message.role }}: {{ message.content }}{{ eos_token }}
{% endfor %}"""
WITH_TOOLS = """{% if tools %}{{ tools | tojson(indent=2) }}{% else %}no tools{% endif %}
{{ messages[0] | tojson }}{% set box = namespace(count=0) %}
{% for message in messages %}{% set box.count = box.count + 1 %}{% endfor %}{{ box.count }}
{%- if enable_thinking is defined and not enable_thinking %} <think></think>{% endif %}"""
WITH_DATE = "Today: {{ strftime_now('%Y-%m') }}\n{{ messages[1].content.split('?')[0] }}{{ pad_token }}"
WITH_GENERATION = """{% for message in messages %}
{% if message.role == 'assistant' %}
{% generation %}
{{ message.content }}
{% endgeneration %}
{% else %}
{{ message.content }}
{% endif %}
{% endfor %}"""
TOOLS = [{"type": "function", "function": {"name": "find", "description": "größe < 3"}}]


@pytest.mark.parametrize("template", [CHATML, WITH_TOKENS, WITH_TOOLS, WITH_DATE, WITH_GENERATION])
@pytest.mark.parametrize("variables", [{}, {"tools": TOOLS, "enable_thinking": False}])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_renders_as_transformers_does_when_the_template_is(
    template: str, variables: dict, add_generation_prompt: bool, sentencepiece_like, tmp_path
) -> None:
    from transformers import AutoTokenizer

    sentencepiece_like.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=add_generation_prompt, **variables
    )
    ours = type(sentencepiece_like).load(tmp_path)
    assert ours.apply_chat_template(MESSAGES, add_generation_prompt, **variables) == expected


def test_chat_gives_the_date_when_a_template_asks_for_it() -> None:
    assert render_chat("{{ strftime_now('%Y') }}", [], False, {}) in {str(datetime.now().year)}


def test_chat_raises_when_the_template_refuses_the_messages() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RequestError, match="does not take these messages: roles must alternate"):
        render_chat(template, MESSAGES, True, {})


@pytest.mark.parametrize("template", ["{{ messages[0].role.nothing.at_all }}", "{{ messages[0].content + 1 }}"])
def test_chat_raises_when_the_template_fails_on_the_messages(template: str) -> None:
    with pytest.raises(RequestError, match="the chat template does not take these messages"):
        render_chat(template, MESSAGES, True, {})


@pytest.mark.parametrize(
    "template", ["{{ messages.append(1) }}", "{{ messages.__class__.__mro__[1].__subclasses__() }}"]
)
def test_chat_raises_when_the_template_leaves_its_sandbox(template: str) -> None:
    with pytest.raises(RequestError, match=r"unsafe|not safely callable"):
        render_chat(template, list(MESSAGES), True, {})


def test_chat_raises_when_the_template_is_no_jinja() -> None:
    with pytest.raises(DataError, match="chat template cannot be read: line 2") as caught:
        render_chat("\n{% if %}", MESSAGES, True, {})
    assert "chat_template.jinja" in caught.value.hint


def test_template_is_the_default_one_when_several_are_named() -> None:
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    assert choose_template(named) == "b"
    assert choose_template(named[:1]) is None
    assert choose_template("c") == "c"
    assert choose_template(None) is None
