"""A template and worked questions from a file: the config holds the file's text."""

import pytest

from facttune_ray import config
from facttune_ray.config.contenders import contenders
from facttune_ray.errors import UserError


def test_the_text_of_a_file_takes_the_place_of_its_name(tmp_path):
    template, examples = tmp_path / "template.txt", tmp_path / "examples.txt"
    template.write_text("Italy\nRome.\n\n{topic}\n")
    examples.write_text("Question: Who?\nAnswer: Ada\n")
    words = [f"prompts.template={template}", f"answers.examples={examples}"]
    cfg = config.load([], ["data.source=topics", *words])
    assert cfg.prompts.template == "Italy\nRome.\n\n{topic}"
    assert cfg.answers.examples == "Question: Who?\nAnswer: Ada\n"
    again = config.load([], [f"contenders.own={{prompts: {{template: {template}}}}}", *words[1:],
                             "data.source=topics"])  # fmt: skip
    (contender,) = contenders(again)
    assert contender.cfg.prompts.template == cfg.prompts.template
    assert contender.cfg.answers.examples == cfg.answers.examples


@pytest.mark.parametrize(
    ("override", "content", "says"),
    [
        (
            "answers.examples=bios",
            None,
            "no such file: check answers.examples: give a file, or one of none, ",
        ),
        (
            "prompts.template=Who is it?",
            None,
            "no such file: check prompts.template: give a file, or a text",
        ),
        ("prompts.template=FILE", b"Who is it?", "prompts.template: it needs {topic}"),
        ("answers.examples=FILE", b" \n", "the file is empty"),
        ("answers.examples=FILE", b"Qu\xff", "not UTF-8"),
        ("answers.examples=FOLDER", None, "no such file: check answers.examples"),
        ('responses.stop=[""]', None, "responses.stop: an empty text"),
    ],
)
def test_a_bad_text_is_one_line(tmp_path, override, content, says):
    if content is not None:
        (tmp_path / "f.txt").write_bytes(content)
    words = override.replace("FILE", str(tmp_path / "f.txt")).replace("FOLDER", str(tmp_path))
    with pytest.raises(UserError) as e:
        config.load([], [words])
    assert says in str(e.value) and "\n" not in str(e.value)
