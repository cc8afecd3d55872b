"""Chat templates: from a list of messages to the text of a prompt.

A template is a Jinja program that comes with a checkpoint, so it runs in a sandbox that can change nothing.
The names and settings that templates count on are those of Hugging Face's tokenizers.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from moesaic.errors import DataError, RequestError

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]


def choose_template(value: Any) -> str | None:
    """Return the template out of a `chat_template` setting: a text, or a list of named ones."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {entry["name"]: entry["template"] for entry in value}
        return named.get("default")
    return None


def render_chat(
    template: str, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]
) -> str:
    """Return the prompt of a conversation.

    Args:
        template: the Jinja source.
        messages: each with at least `role` and `content`.
        add_generation_prompt: end with the words that open the assistant's turn.
        variables: further names the template may use, such as `eos_token` and `tools`.

    Raises:
        DataError: the template is no valid Jinja.
        RequestError: the template refuses the messages, or fails on them.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    known = {"tools": None, "documents": None, **variables}
    try:
        compiled = _compile(template)
    except TemplateSyntaxError as failure:
        raise DataError(
            f"the tokenizer's chat template cannot be read: line {failure.lineno}: {failure.message}",
            "mend chat_template.jinja, or chat_template in tokenizer_config.json",
        ) from None
    try:
        return compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **known)
    except (TemplateError, TypeError, ValueError) as failure:
        raise RequestError(
            f"the chat template does not take these messages: {failure}",
            "give a list of objects with 'role' and 'content', in the order that the model knows",
        ) from None


@lru_cache(maxsize=16)
def _compile(template: str) -> "Template":
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_block()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _generation_block() -> type:
    """Return an extension for `{% generation %}`, which marks the assistant's words for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class GenerationBlock(Extension):
        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationBlock


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a model never saw.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(text: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(text)
