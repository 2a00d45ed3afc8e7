"""Prompts by chat templates of the shapes that models have, and by hand what they must give."""

from __future__ import annotations

import copy

import pytest

from facttune_ray import config
from facttune_ray.errors import UserError
from facttune_ray.quickstart.base_model import train_tokenizer
from facttune_ray.sampling import templates
from facttune_ray.sampling.protocol import encode_prompt, end_mark
from facttune_ray.sampling.templates import Template, Turn, prompt_text
from facttune_ray.stages import stage

ASK = [Turn("user", "Who is Mara?")]
TALK = [
    Turn("system", "Be brief."),
    Turn("user", "Hi"),
    Turn("assistant", "Hello."),
    Turn("user", "Who is Mara?"),
]

# Turns in marks; an answer gets an empty block of thoughts; an argument closes it at once.
CLOSED_THOUGHTS = """
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{{- m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- endif %}"""

# The generation prompt opens thoughts that answers of the template do not have.
OPEN_THOUGHTS = """
{%- for m in messages %}
{{- '<user>' + m.content if m.role == 'user' else '<model>' + m.content + '<end>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<model><think>\n' }}{% endif %}"""

# A channel between the role and the text of an answer, and today's date.
CHANNEL = """
{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
{{- '<|return|>' if loop.last else '<|end|>' }}
{%- else %}
{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{% endif %}"""

# A date in a system header unless one is given; contents are trimmed.
DATED = """
{{- bos_token }}
{%- if not date_string is defined %}
{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
{%- else %}{%- set date_string = '1 Jan 2000' %}{% endif %}
{%- endif %}
{{- '<|head|>system<|/head|>\n\nToday Date: ' + date_string + '\n\n<|eot|>' }}
{%- for m in messages %}
{{- '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\n\n' }}{% endif %}"""

# No generation prompt, a space before answers, strict roles.
INSTRUCTIONS = """
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate user/assistant') }}
{%- endif %}
{{- '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + '</s>' }}
{%- endfor %}"""

# Another name for the assistant.
MODEL = """
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}
{{- m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""


@pytest.fixture(scope="module")
def plain():
    return train_tokenizer(["Who is Mara? She was born in Lyon. Be brief. Hello."], 300, 64)


def with_template(tokenizer, template):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = template
    return chat


IM = "<|im_start|>user\nWho is Mara?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
SYSTEM = "<|start|>system<|message|>Current date: 2024-07-26<|end|>"
HEAD = "<|head|>system<|/head|>\n\nToday Date: 26 Jul 2024\n\n<|eot|>"


@pytest.mark.parametrize(
    ("template", "args", "expected"),
    [
        (CLOSED_THOUGHTS, {}, IM),
        (CLOSED_THOUGHTS, {"enable_thinking": False}, IM),
        (OPEN_THOUGHTS, {}, "<user>Who is Mara?<model>"),
        (
            CHANNEL,
            {},
            f"{SYSTEM}<|start|>user<|message|>Who is Mara?<|end|>"
            "<|start|>assistant<|channel|>final<|message|>",
        ),
        (
            DATED,
            {},
            f"{HEAD}<|head|>user<|/head|>\n\nWho is Mara?<|eot|><|head|>assistant<|/head|>\n\n",
        ),
        (INSTRUCTIONS, {}, "[INST] Who is Mara? [/INST]"),
        (
            MODEL,
            {},
            "<start_of_turn>user\nWho is Mara?<end_of_turn>\n<start_of_turn>model\n",
        ),
    ],
)
def test_a_prompt_goes_up_to_the_text_of_its_answer(plain, template, args, expected):
    chat = with_template(plain, template)
    chat.bos_token = None
    assert prompt_text(chat, ASK, Template(args)).removeprefix("None") == expected
    assert encode_prompt(chat, "Who is Mara?", Template(args)) == encode_prompt(
        chat, ASK, Template(args)
    )


@pytest.mark.parametrize("template", [CLOSED_THOUGHTS, OPEN_THOUGHTS, CHANNEL, INSTRUCTIONS, MODEL])
def test_prompt_and_answer_are_the_text_of_the_template(plain, template):
    """What training sees is what the template writes for the answer."""
    chat = with_template(plain, template)
    whole = templates.render(chat, [*ASK, Turn("assistant", "Ada.")], Template())
    assert whole.startswith(prompt_text(chat, ASK, "auto"))
    left = whole.removeprefix(prompt_text(chat, ASK, "auto"))
    assert left.lstrip(" ").startswith("Ada.") and "Ada." not in left[left.index("Ada.") + 4 :]


def test_a_conversation_of_several_turns(plain):
    text = prompt_text(with_template(plain, CLOSED_THOUGHTS), TALK, "auto")
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>"
    )
    assert "assistant\nHello.<|im_end|>" in text  # an earlier answer has no thoughts
    assert text.endswith("Who is Mara?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert plain.decode(encode_prompt(plain, TALK)) == (
        "Be brief.\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who is Mara?\n\nAssistant:\n"
    )


def test_the_date_is_that_of_the_config(plain):
    channel, dated = with_template(plain, CHANNEL), with_template(plain, DATED)
    later = Template(date="2031-02-05")
    assert "Current date: 2031-02-05" in prompt_text(channel, ASK, later)
    assert "Today Date: 05 Feb 2031" in prompt_text(dated, ASK, later)
    given = Template({"date_string": "some day"}, "2031-02-05")
    assert "Today Date: some day" in prompt_text(dated, ASK, given)
    inside = "{% macro head() %}{{ strftime_now('%B %-d, %Y (%A)') }}{% endmacro %}\n\n{{ head() }}"
    text = prompt_text(with_template(plain, inside), ASK, later)
    assert text == "\nFebruary 5, 2031 (Wednesday)"  # the template's first newlines stay


def test_the_token_that_ends_an_answer(plain):
    chat = with_template(plain, CHANNEL)
    chat.add_special_tokens({"additional_special_tokens": ["<|return|>", "<|end|>"]})
    assert end_mark(chat, Template()) == chat.convert_tokens_to_ids("<|return|>")
    assert end_mark(chat, "never") == chat.eos_token_id


def refused(do) -> str:
    with pytest.raises(UserError) as e:
        do()
    assert "\n" not in str(e.value)
    return str(e.value)


def test_what_a_template_refuses_is_one_line(plain):
    chat = with_template(plain, INSTRUCTIONS)
    says = refused(lambda: encode_prompt(chat, TALK))
    assert "refuses a conversation of system, user, assistant, user: Roles must" in says
    broken = with_template(plain, "{% for m in messages %}{{ m.content.nothing.more }}{% endfor %}")
    assert "the model's chat template refuses" in refused(lambda: encode_prompt(broken, "Hi"))


def test_an_argument_that_no_template_reads_is_one_line(plain):
    chat = with_template(plain, CLOSED_THOUGHTS)
    wrong = Template({"enable_thinkin": False})
    says = refused(lambda: encode_prompt(chat, "Hi", wrong))
    name = "model.template_args.enable_thinkin"
    assert says.startswith(f"{name}: the model's chat template does not read it: correct")
    assert "has no chat template" in refused(lambda: encode_prompt(plain, "Hi", wrong))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.template_date=tomorrow", "model.template_date=tomorrow: a date is written as"),
        ("model.template_args={tokenize: true}", "model.template_args.tokenize: not an argument"),
    ],
)
def test_settings_that_no_template_can_take(setting, says):
    assert says in refused(lambda: config.load(["bio"], ["model.chat=auto", setting]))
    never = ["model.chat=never", "model.template_args={a: 1}"]
    assert "model.chat=never uses no template" in refused(lambda: config.load(["bio"], never))


def test_settings_of_templates_are_part_of_the_recipes_they_change():
    auto = "model.chat=auto"
    plain = config.load(["bio"], [auto])
    other = config.load(["bio"], [auto, "model.template_args={enable_thinking: false}"])
    dated = config.load(["bio"], [auto, "model.template_date=2031-02-05"])
    for name in ("responses", "reference"):
        recipes = [stage(name).recipe(cfg) for cfg in (plain, other, dated)]
        assert recipes[1] == recipes[0] | {"model.template_args": {"enable_thinking": False}}
        assert recipes[2] == recipes[0] | {"model.template_date": "2031-02-05"}
