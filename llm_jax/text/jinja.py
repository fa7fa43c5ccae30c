"""Jinja, the language of published chat templates, with the conventions that `transformers` gave it.

A template is a stranger's program: it runs in a sandbox that reads and changes nothing outside it.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.filters import do_title, make_attrgetter
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_jax.core.errors import InputError
from llm_jax.text.traced import TEMPLATE, Traced, joined, to_json

DATE = datetime.date(2024, 7, 26)  # what Llama's templates write where nobody knows the date


def write(
    source: str, messages: Sequence[Mapping[str, Any]], reply: bool, tokens: Mapping[str, Traced],
    tools: Sequence[Any] = (), today: datetime.date = DATE,
) -> Traced:  # fmt: skip
    """The conversation as the template writes it, and where each character of it comes from.

    Args:
      messages: their texts are Traced, so that contents are told apart from what the template writes.
      reply: whether to end with what begins the assistant's turn.
      tokens: what `bos_token`, `eos_token` and the like read.
      tools: descriptions of what the assistant may call.
      today: the date that `strftime_now` writes.

    Raises:
      InputError: the template is no Jinja, refuses the conversation, or has no place for the tools.
    """
    template = _compiled(source)
    if tools and "tools" not in source:
        raise InputError("the chat template has no place for descriptions of tools")
    described = list(tools) or None
    try:
        return Traced.of(template.render(
            messages=messages, add_generation_prompt=reply, tools=described, documents=None,
            strftime_now=today.strftime, **tokens,
        ))  # fmt: skip
    except Exception as error:  # what a stranger's program raises has no narrower type
        reason = " ".join(str(error).split()).replace(f"{Traced.__module__}.{Traced.__name__}", "str")
        raise InputError(f"the chat template cannot write this conversation: {reason}") from None


def reasoning_fields(source: str) -> list[str]:
    """The fields of a message in which the template looks for reasoning."""
    names = ("reasoning_content", "thinking", "reasoning")
    return [name for name in names if re.search(rf"""\.{name}\b|(['"]){name}\1""", source)]


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says; we know it otherwise."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Code(CodeGenerator):
    """The program of a template, with texts of its own that are known to be the template's."""

    environment: _Environment

    def _literal(self, text: str) -> str:
        self.environment.literals[text] = Traced(text, TEMPLATE)
        return f"environment.literals[{text!r}]"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        value = node.as_const(frame.eval_ctx)
        self.write(self._literal(value)) if isinstance(value, str) else super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Frame) -> None:
        self.write(self._literal(node.data))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("concat(map(str, (")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write(")))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._literal("".join(map(str, group)))


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    concat = staticmethod(joined)

    def __init__(self):
        # not optimized: lists of texts would be folded into constants, whose texts are no longer known
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self.literals: dict[str, Traced] = {}
        self.filters |= dict(tojson=_to_json, join=_join, safe=str, title=_title)
        self.globals["raise_exception"] = _raise_exception


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    try:
        return _Environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"line {error.lineno} of the chat template is no Jinja: {error.message}") from None


def _to_json(
    value: Any, indent: int | None = None, separators: Any = None, sort_keys: bool = False, **_: Any
) -> Traced:  # fmt: skip
    return to_json(value, indent, separators, sort_keys)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Any, d: str = "", attribute: str | int | None = None) -> Traced:
    """Jinja's own, by a separator that is the template's where there is none."""
    each = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return (Traced.of(d) if d else Traced("", TEMPLATE)).join(map(str, each))


def _title(text: str) -> Traced:
    return Traced.of(str(text)).recased(do_title(text))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


# ------------------------------------------------------------------------------------------------- published templates

# https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
# with Hermes's tools: https://github.com/NousResearch/Hermes-Function-Calling
CHATML = """\
{% if tools %}
{{ '<|im_start|>system\\n<tools>' }}
{%- for tool in tools %}
{{- '\\n' + (tool | tojson) }}
{%- endfor %}
{{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{%- for call in message['tool_calls'] or [] %}
{{- '\\n' if message['content'] or not loop.first else '' }}
{{- '<tool_call>\\n{"name": "' + call['function']['name'] + '", "arguments": ' }}
{{- call['function']['arguments'] | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# https://github.com/meta-llama/llama-models/blob/main/models/llama3/prompt_format.md
LLAMA3 = """\
{{ bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# https://github.com/tatsu-lab/stanford_alpaca/blob/main/train.py
ALPACA = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- '### Response:' + message['content'] + eos_token }}
{%- elif message['role'] == 'user' %}
{%- if loop.first %}
{{- 'Below is an instruction that describes a task' }}
{{- ', paired with an input that provides further context' if message['input'] else '' }}
{{- '. Write a response that appropriately completes the request.\\n\\n' }}
{%- endif %}
{{- '### Instruction:\\n' + (message['instruction'] if message['input'] else message['content']) + '\\n\\n' }}
{{- '### Input:\\n' + message['input'] + '\\n\\n' if message['input'] else '' }}
{%- elif loop.first and message['role'] == 'system' %}
{{- message['content'] + '\\n\\n' }}
{%- else %}
{{- raise_exception('a message has the role ' + message['role'] + ', which Alpaca lacks') }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Response:' }}
{%- endif %}
"""
