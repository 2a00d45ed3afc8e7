import pytest

from facttune_ray.errors import UserError
from facttune_ray.interop import factscore

LINE = (
    '{"topic": "A", "input": "Tell me.", "output": "A is old.", "annotations": [{"text": '
    '"A is old.", "human-atomic-facts": [{"text": "A is old.", "label": "S"}]}]}\n'
)


def test_reads_one_real_form(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(LINE + '{"topic": "B", "input": "x", "output": "sorry", "annotations": null}\n')
    first, second = factscore.read(path)
    assert first.sentences[0].human_facts == (("A is old.", "S"),)
    assert (first.abstained, second.abstained, second.sentences) == (False, True, ())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("3", "expected an object"),
        ('{"topic": "A", "input": "x", "annotations": null}', '"output" is missing'),
        ('{"topic": 1, "input": "x", "output": "y"}', '"topic" must be a string'),
        (LINE.replace('"S"', '"Q"').strip(), 'label "Q" is none of S, NS, IR'),
        ('{"topic": "A", "input": "x", "output": "y", "annotations": 3}', "a list or null"),
    ],
)
def test_malformed_line_names_file_and_line(tmp_path, line, says):
    path = tmp_path / "m.jsonl"
    path.write_text(LINE + line + "\n")
    with pytest.raises(UserError) as caught:
        list(factscore.read(path))
    assert f"{path}:2: " in str(caught.value) and says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(UserError, match="check data.folder"):
        list(factscore.read(tmp_path / "gone.jsonl"))
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        list(factscore.read(tmp_path / "e.jsonl"))


def test_counts_of_the_real_files(labelled_data):
    for file, abstained, facts in (("ChatGPT", 26, 5426), ("InstructGPT", 1, 4726)):
        records = list(factscore.read(labelled_data / f"{file}.jsonl"))
        assert len(records) == 183
        assert sum(r.abstained for r in records) == abstained
        assert sum(len(s.human_facts) for r in records for s in r.sentences) == facts
