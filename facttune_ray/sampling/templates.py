"""Chat templates: the text of a prompt up to where its answer begins.

    prompt_text(tokenizer, [Turn("user", "Who?")], Template({"enable_thinking": False}))
    ->  "<|im_start|>user\\nWho?<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n"

A template may put something before an answer, such as an empty block of thoughts or the name of a
channel. This belongs to the prompt, in training and in sampling: the model then writes the answer
itself. A template that asks for today's date gets the date of the config, so that a prompt is the
same on every day.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from facttune_ray.config.model import ModelConfig
from facttune_ray.errors import UserError, one_line

ANSWER = "It is 7319."  # stands for an answer, to find out where a template puts answers
DATE = ModelConfig.template_date
# Parts of a date that a template may ask for
DIRECTIVES = (
    "%-d %-m %d %m %b %B %Y %y %A %a %e %j %-H %-I %-M %H %I %M %S %p %F %D %x %T %X %c %Z %%"
)


class Turn(NamedTuple):
    """A chat message."""

    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class Template:
    """How the tokenizer's chat template is used, if it has one."""

    args: Mapping[str, Any] = field(default_factory=dict)  # values that the template reads
    date: str = DATE  # YYYY-MM-DD: what the template takes for today


Chat = Literal["auto", "never"] | Template  # "auto": Template()


def of(cfg: ModelConfig) -> Chat:
    return "never" if cfg.chat == "never" else Template(cfg.template_args, cfg.template_date)


def recipe(cfg: ModelConfig) -> dict[str, Any]:
    """The settings that change prompts."""
    out: dict[str, Any] = {"model.chat": cfg.chat}
    if cfg.template_args:
        out["model.template_args"] = dict(cfg.template_args)
    if cfg.template_date != DATE:
        out["model.template_date"] = cfg.template_date
    return out


def uses_chat(tokenizer: Any, chat: Chat) -> bool:
    """Whether prompts go through the tokenizer's chat template. UserError for template_args
    without a template."""
    has_one = getattr(tokenizer, "chat_template", None) is not None
    if isinstance(chat, Template) and chat.args and not has_one:
        raise UserError("model.template_args: the model has no chat template: leave them out")
    return chat != "never" and has_one


def prompt_text(tokenizer: Any, turns: Sequence[Turn], chat: Chat) -> str:
    """The conversation up to where the text of its answer begins.

    This is the template's beginning of an answer (`add_generation_prompt`), with what the template
    puts between it and the text of an answer. A beginning that goes on where answers of the
    template do not, such as with an open block of thoughts, ends where the answers begin.
    """
    opened = render(tokenizer, turns, chat, add_generation_prompt=True)
    answered = render(tokenizer, [*turns, Turn("assistant", ANSWER)], chat)
    before, found, _ = answered.rpartition(ANSWER)
    if not found:
        return opened
    if before.startswith(opened):
        # A space before an answer belongs to the answer's first token.
        return opened + before[len(opened) :].rstrip(" ")
    opens_more = opened.startswith(before) and opened[len(before) :].strip()
    return before if opens_more else opened


def text_behind_answer(tokenizer: Any, chat: Chat) -> str:
    """What the template puts behind an answer; "" if it leaves the answer out."""
    turns = [Turn("user", "Who?"), Turn("assistant", ANSWER)]
    _, found, behind = render(tokenizer, turns, chat).rpartition(ANSWER)
    return behind if found else ""


def render(
    tokenizer: Any, turns: Sequence[Turn], chat: Chat, add_generation_prompt: bool = False
) -> str:
    """The text of a conversation. UserError when the template refuses it, or does not read one of
    the arguments."""
    from jinja2 import TemplateError

    settings = chat if isinstance(chat, Template) else Template()
    try:
        template = tokenizer.get_chat_template()
        for name in settings.args:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise UserError(
                    f"model.template_args.{name}: the model's chat template does not read it: "
                    f"correct the name, or remove it"
                )
        if "strftime_now" in template:
            template = _at(settings.date) + template
        return tokenizer.apply_chat_template(
            [turn._asdict() for turn in turns],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **settings.args,
        )
    except (TemplateError, TypeError, ValueError) as e:
        roles = ", ".join(turn.role for turn in turns)
        raise UserError(
            f"the model's chat template refuses a conversation of {roles}: {one_line(e)[:200]}: "
            f"set model.template_args or model.chat=never"
        ) from None


def plain_text(turns: Sequence[Turn]) -> str:
    """A conversation for a model without a chat template, which continues text."""
    if [turn.role for turn in turns] == ["user"]:
        return turns[0].content + "\n"
    names = {"user": "Human: ", "assistant": "Assistant: "}
    texts = [names.get(turn.role, "") + turn.content for turn in turns]
    return "\n\n".join([*texts, "Assistant:\n"])


@functools.cache
def _at(date: str) -> str:
    """The beginning of a template in which `strftime_now` is about `date`: a macro of this name
    comes before the function that transformers gives to a template."""
    day = datetime.datetime.fromisoformat(date)
    parts = "".join(f".replace({d!r}, {day.strftime(d)!r})" for d in DIRECTIVES.split())
    return f"{{% macro strftime_now(format) %}}{{{{ format{parts} }}}}{{% endmacro +%}}"
