"""Articles by title and passages by words, in databases of ours and of FActScore's form."""

from __future__ import annotations

import json
import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from facttune_ray.errors import UserError
from facttune_ray.knowledge import build, store
from facttune_ray.knowledge.articles import Articles, main_search
from facttune_ray.knowledge.passages import SEPARATOR

TEXTS = {
    "Mara Veldt": ["Mara Veldt was born in Lyon.", "She plays the cello in Ostrava."],
    "Jean Daullé": ["Jean Daullé was a French engraver."],
    "John Smith (politician)": ["John Smith was a politician in Leeds."],
    "Ann Lee": ["Ann Lee founded the Shakers."],
    "Ann Lee (singer)": ["Ann Lee sings."],
    "Fernando (footballer)": ["Fernando plays football."],
    "Fernando (painter)": ["Fernando paints."],
    "Solo": ["Solo is an article."],
    "Nano": ["Nano is an editor."],
    "NANO": ["NANO is an agency."],
    "eBay": ["eBay is a shop."],
    "EBAY": ["EBAY is another."],
    "John F. Kennedy": ["Kennedy was a president."],
    "AC/DC %_'\"": ["A band."],
}
REDIRECTS = {
    "JFK": "John F. Kennedy",
    "Jack Kennedy": "JFK",  # a redirect to a redirect
    "Kennedy": "john f. kennedy",
    "Loop A": "Loop B",
    "Loop B": "Loop A",
    "Solo": "Nano",  # an article has this title and wins
    "Mercury": "Nowhere",
    "Band": "Ann Lee",
    "band": "Solo",
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    path = tmp_path_factory.mktemp("ours") / "k.db"
    rows = [{"title": t, "redirect": to} for t, to in REDIRECTS.items()]
    build.write([*rows, *({"title": t, "text": p} for t, p in TEXTS.items())], path)
    return Articles(path)


def factscore_db(path):
    """A database as FActScore's builder writes it: one table, passages between sentence marks."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE documents (title PRIMARY KEY, text);")
        rows = [(t, SEPARATOR.join(f"<s>{p}</s>" for p in parts)) for t, parts in TEXTS.items()]
        database.executemany("INSERT INTO documents VALUES (?,?)", rows)
    database.close()
    return path


@pytest.fixture
def original(tmp_path):
    return Articles(factscore_db(tmp_path / "enwiki #1 100%.db"))


BOTH = [
    ("Mara Veldt", "Mara Veldt", "exact"),
    ("Mara_Veldt", "Mara Veldt", "normalised"),
    ("  Mara   Veldt ", "Mara Veldt", "normalised"),
    ("mara_veldt", "Mara Veldt", "case"),
    ("MARA VELDT", "Mara Veldt", "case"),
    ("nano", "Nano", "case"),  # not "NANO": only the first letter's case may differ
    ("Jean Daulle\u0301", "Jean Daullé", "normalised"),
    ("John Smith", "John Smith (politician)", "disambiguation"),
    ("john_smith", "John Smith (politician)", "disambiguation"),
    ("Solo (artist)", "Solo", "disambiguation"),
    ("John Smith (actor)", None, None),  # another John Smith
    ("Ann Lee (actor)", None, None),  # "Ann Lee" may be the singer
    ("Fernando", None, None),  # two articles with brackets
    ("AC/DC %_'\"", "AC/DC %_'\"", "exact"),
    ("Nobody", None, None),
    ("", None, None),
    (" _ ", None, None),
    ("( )", None, None),
    ("a\0b", None, None),
    ("\ud800", None, None),
    ("Mara\0Veldt", "Mara Veldt", "exact"),
]
OURS = [
    ("jean daulle", "Jean Daullé", "normalised"),
    ("EBay", None, None),  # eBay or EBAY
    ("JFK", "John F. Kennedy", "redirect"),
    ("jfk", "John F. Kennedy", "redirect"),
    ("Jack Kennedy", "John F. Kennedy", "redirect"),
    ("Kennedy", "John F. Kennedy", "redirect"),
    ("Solo", "Solo", "exact"),
    ("Loop A", None, None),
    ("Mercury", None, None),
    ("Band", None, None),  # two redirects, two articles
]


def found(articles, title):
    article = articles.find(title)
    if article is not None:
        assert article.passages == TEXTS[article.title] == articles.passages(title)
    return article and (article.title, article.how)


@pytest.mark.parametrize(("title", "stored", "how"), BOTH + OURS)
def test_an_article_is_found_by_its_title(ours, title, stored, how):
    assert found(ours, title) == (stored and (stored, how))


@pytest.mark.parametrize(("title", "stored", "how"), BOTH)
def test_an_article_is_found_in_a_database_of_factscores_form(original, title, stored, how):
    assert found(original, title) == (stored and (stored, how))


def test_a_database_of_factscores_form_is_neither_scanned_nor_changed(original, tmp_path):
    path = tmp_path / "enwiki #1 100%.db"
    before = path.read_bytes()
    asked = []
    original.database.set_trace_callback(asked.append)
    for title, *_ in BOTH:
        original.find(title)
    original.database.set_trace_callback(None)
    assert len(asked) > 50
    for query in asked:
        (plan,) = original.database.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
        assert plan[3].startswith("SEARCH documents USING "), (query, plan)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_search_ranks_passages_by_their_words(ours):
    (hit,) = ours.search("Who plays the CELLO?", 1)
    assert (hit.title, hit.passage) == ("Mara Veldt", "She plays the cello in Ostrava.")
    assert hit.score > 0
    assert ours.search("Daulle", 1)[0].title == "Jean Daullé"  # without accents
    assert ours.search("daullé engraver", 1)[0].title == "Jean Daullé"
    hits = ours.search("Ann Lee sings", 9)
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert hits[0].title == "Ann Lee (singer)" and len(hits) == 2
    assert ours.search("zebra", 5) == [] and ours.search("cello", 0) == []


HOSTILE = [
    "",
    " ",
    "\0",
    "cello\0lyon",
    "\ud800 cello",
    '"cello',
    'cel"lo" OR',
    "cello AND",
    "NOT cello",
    "NEAR(cello, 2)",
    "title:cello",
    "text : {cello}",
    "cello*",
    "^cello",
    "-cello +lyon",
    "cello's (born); DROP TABLE documents; --",
    "_cello_",
    "हिन्दी ภาษาไทย 한국어 東京 e\u0301 \u0301 ½ ﬁ Ⅷ",
    "\U00031350 cello \U0001f600",
    "word " * 5000,
    "".join(map(chr, range(1, 0x3000))),
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_is_a_query(ours, query):
    hits = ours.search(query, 3)
    words = query.replace("\0", " ").replace("_", " ").replace("\ud800", " ")
    if "cello" in words.replace("'", " ").split():
        assert any("cello" in h.passage for h in hits)


def test_every_word_of_the_index_is_found(tmp_path):
    """A query is split into words like the index, in every script."""
    words = [
        "Ωμέγα",
        "Москва",
        "йод",
        "हिन्दी",
        "ภาษาไทย",
        "한국어",
        "東京",
        "İzmir",
        "Đà",
        "ﬁn",
        "café",
    ]
    build.write(({"title": f"T{i}", "text": w} for i, w in enumerate(words)), tmp_path / "k.db")
    articles = Articles(tmp_path / "k.db")
    for i, word in enumerate(words):
        assert articles.search(word, 1)[0].title == f"T{i}", word
        assert articles.search(word.lower(), 1)[0].title == f"T{i}", word


def test_common_words_are_ignored_when_they_would_take_too_long(tmp_path):
    rows = (
        {"title": f"T{i}", "text": f"Common café {'rare' if i == 7 else i}."} for i in range(2000)
    )
    build.write(rows, tmp_path / "k.db")
    articles = Articles(tmp_path / "k.db")
    assert len(articles.search("common rare", 5)) == 5
    assert [h.title for h in articles.search("common CAFÉ rare", 9, postings=1500)] == ["T7"]
    assert len(articles.search("common rare", 5, postings=2500)) == 5
    assert len(articles.search("common", 5, postings=1500)) == 5  # no rarer word


def test_an_index_beside_a_database_of_factscores_form(original, tmp_path, capsys):
    path = tmp_path / "enwiki #1 100%.db"
    with pytest.raises(UserError, match="no full-text index: make one beside it"):
        original.search("cello", 1)
    before = path.read_bytes()
    assert build.main_index(path) == 0 and "ready" in capsys.readouterr().out
    assert path.read_bytes() == before
    indexed = Articles(path)
    assert indexed.search("cello", 1)[0].passage == "She plays the cello in Ostrava."
    assert found(indexed, "jean daulle") == ("Jean Daullé", "normalised")
    assert found(indexed, "Fernando") is None

    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO documents VALUES ('New', '<s>New one.</s>')")
    database.close()
    changed = Articles(path)
    with pytest.raises(UserError, match="no full-text index that fits it"):
        changed.search("cello", 1)
    assert changed.passages("New") == ["New one."]
    store.add_index(path)
    assert Articles(path).search("new", 1)[0].title == "New"


def test_an_interrupted_index_is_resumed(tmp_path):
    path = factscore_db(tmp_path / "e.db")
    texts = sqlite3.connect(path)
    half = store.Store(tmp_path / "e.db.fts.db", store.fingerprint(texts, path), documents=False)
    texts.close()
    half.index(1, 0, "Mara Veldt", ["a marker"])  # a restart would replace it
    half.commit()
    half.close()
    assert store.add_index(path) == path.with_name("e.db.fts.db")
    articles = Articles(path)
    assert articles.search("marker", 1)[0].title == "Mara Veldt"
    assert articles.search("engraver", 1)[0].title == "Jean Daullé"


def test_a_database_of_ours_needs_no_index_beside_it(ours):
    assert store.add_index(ours.path) == ours.path


def test_many_threads_read_at_the_same_time(ours):
    def work(i):
        title = list(TEXTS)[i % len(TEXTS)]
        return ours.passages(title) == TEXTS[title] and ours.search("cello", 1)[0].title

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(400))) == {"Mara Veldt"}


def test_missing_files_and_files_of_other_forms_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Articles(tmp_path / "gone.db")
    with pytest.raises(UserError, match="does not exist"):
        store.add_index(tmp_path / "gone.db")
    (tmp_path / "x.db").write_text("not a database at all, but long enough to look at")
    with pytest.raises(UserError, match="not a database with documents"):
        Articles(tmp_path / "x.db")
    with pytest.raises(UserError, match="cannot index"):
        store.add_index(tmp_path / "x.db")
    (factscore_db(tmp_path / "e.db"), (tmp_path / "e.db.fts.db").write_text("no database" * 99))
    with pytest.raises(UserError, match="e.db.fts.db: not an index"):
        Articles(tmp_path / "e.db")


def test_rarity_counts_passages_with_a_word(ours):
    # 15 passages: one has "cello", none "zebra"
    assert ours.rarity("cello") == pytest.approx(math.log(16 / 2))
    assert ours.rarity("zebra") == pytest.approx(math.log(16 / 1))


def test_the_search_command_prints_hits(ours, capsys):
    assert main_search(str(ours.path), "cello", 1) == 0
    title, passage = capsys.readouterr().out.splitlines()
    assert title.startswith("Mara Veldt  (") and passage == "    She plays the cello in Ostrava."
    assert main_search(str(ours.path), "zebra", 1) == 0
    assert "no passage" in capsys.readouterr().out
    assert main_search(str(ours.path), "cello", 1, as_json=True) == 0
    (hit,) = json.loads(capsys.readouterr().out)
    assert hit["title"] == "Mara Veldt" and hit["score"] > 0 and "cello" in hit["passage"]
