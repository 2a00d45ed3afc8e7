"""Both reference builders do the same work: their tokenizers cut the same passages."""

import pyarrow.parquet as pq
from bench import knowledge

from facttune_ray.knowledge.articles import Articles


def test_articles_are_the_same_for_the_same_seed():
    one, two = (list(knowledge.article_rows(3)) for _ in range(2))
    assert one == two and one != list(knowledge.article_rows(3, seed=1))
    assert all(200 <= len(r["text"].split()) <= 400 for r in one)


def test_the_generated_wikipedia_has_its_shape_and_builds(tmp_path):
    knowledge.write_wikipedia(tmp_path / "wikipedia", 40)
    files = sorted((tmp_path / "wikipedia").iterdir())
    assert [pq.read_schema(f).names for f in files] == [["id", "url", "title", "text"]] * 2
    assert knowledge.build([tmp_path / "wikipedia"], tmp_path / "k.db") == 40


def test_both_references_build_the_same_and_lose_no_text(tmp_path):
    rows = list(knowledge.article_rows(20))
    model = knowledge.train((r["text"] for r in rows), tmp_path)
    found = []
    for name, tokenizer in knowledge.TOKENIZERS.items():
        knowledge.reference_build(rows, tmp_path / f"{name}.db", *tokenizer(*model))
        articles = Articles(tmp_path / f"{name}.db")
        found.append([articles.passages(r["title"]) for r in rows])
    assert found[0] == found[1]
    texts = ["".join(parts).replace(" ", "") for parts in found[0]]
    assert texts == [r["text"].replace(" ", "") for r in rows]
