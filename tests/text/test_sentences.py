import json
import random
import time

import pytest

from facttune_ray.sources import world
from facttune_ray.text.sentences import Sentence, carry, sentences, split, word_count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n \n", []),
        ("...", []),
        ("\U0001f389 !", []),
        ("No full stop", ["No full stop"]),
        ("J. R. Smith was born in 1950. He acts.", ["J. R. Smith was born in 1950.", "He acts."]),
        (
            "He met Dr. Hale of Corp. Inc. in St. Paul. It rained.",
            ["He met Dr. Hale of Corp. Inc. in St. Paul.", "It rained."],
        ),
        (
            "He lived in Washington D.C. He died there.",
            ["He lived in Washington D.C.", "He died there."],
        ),
        (
            "He left at 6 a.m. on Jan. 5. It cost $3.50. He said no. No. 5 won.",
            ["He left at 6 a.m. on Jan. 5.", "It cost $3.50.", "He said no.", "No. 5 won."],
        ),
        ('He wrote "Who? Me!" in 1990. It sold.', ['He wrote "Who? Me!" in 1990.', "It sold."]),
        ('She wrote "Home." He wrote more.', ['She wrote "Home."', "He wrote more."]),
        ("She wrote “Home.” He wrote more.", ["She wrote “Home.”", "He wrote more."]),
        ("He is 6'7\" tall. He plays.", ["He is 6'7\" tall.", "He plays."]),
        ('The 12" disc is his. "Home" sold.', ['The 12" disc is his.', '"Home" sold.']),
        (
            "She (b. 1950. In Lyon) left. He [sic. Not] stayed.",
            ["She (b. 1950. In Lyon) left.", "He [sic. Not] stayed."],
        ),
        (  # a bracket and a quotation that are never closed
            'He (or "she. A" left. Then he came. What now.',
            ['He (or "she. A" left.', "Then he came.", "What now."],
        ),
        ("- one thing\n2. Another thing\n", ["one thing", "Another thing"]),
        (
            "> 1) Top\n  - Under it\n    + [x] Deep down\n\ta. Last one\n(iv) Really last",
            ["Top", "Under it", "Deep down", "Last one", "Really last"],
        ),
        ("A title\nShe left! Nobody knows.", ["A title", "She left!", "Nobody knows."]),
        (
            "## Early life ##\nShe left.\n**Career**\n\n__Later life:__\nEarly life:\nShe came.",
            ["Early life", "She left.", "Career", "Later life:", "Early life:", "She came."],
        ),
        ("**Mara** acts. **She sings.** He left.", ["**Mara** acts.", "She sings.", "He left."]),
        # single words and lower-case starts join the sentence before
        ("She left! Why? Nobody knows.", ["She left! Why?", "Nobody knows."]),
        ("Wow! She left it. OK.", ["Wow! She left it. OK."]),
        ("Sales rose. eBay fell. He left.", ["Sales rose. eBay fell.", "He left."]),
        ("Wow! Yes! She left it.", ["Wow! Yes! She left it."]),
        ("Wait... what? She left… She came.", ["Wait... what?", "She left…", "She came."]),
        # lines wrapped at a column
        ("She was born in\nLyon and\nlived there.", ["She was born in Lyon and lived there."]),
        ("She was\r\nborn. He left.", ["She was born.", "He left."]),
        ("Line one\r\nLine two\u2028Line three\x85", ["Line one", "Line two", "Line three"]),
        (
            "See https://a.b/c.html?x=1. Mail a.b@c.org. Thanks a lot!",
            ["See https://a.b/c.html?x=1.", "Mail a.b@c.org.", "Thanks a lot!"],
        ),
        ("She left.[1] He stayed.[2][3] It did.", ["She left.[1]", "He stayed.[2][3]", "It did."]),
        (
            "Do this: 1. Wash it. 2. Dry it. Be happy.",
            ["Do this: 1. Wash it.", "Dry it.", "Be happy."],
        ),
        (
            "Run it:\n```python\nx = 1. Y\nprint(x)\n```\nIt prints. All good.",
            ["Run it:", "x = 1. Y print(x)", "It prints.", "All good."],
        ),
        ("```\nMara was born. She left it.\n```", ["Mara was born.", "She left it."]),
        ("~~~sh\nls. A", ["ls. A"]),  # never closed
        (
            "| Name | Born |\n|---|:-:|\n| M. V. Smith. A | 1950 |\nAll done.",
            ["Name | Born", "M. V. Smith. A | 1950", "All done."],
        ),
        ("他生于1950年。他是演员！", ["他生于1950年。", "他是演员！"]),
        ("“我来了。你呢？”他说。「好。」", ["“我来了。你呢？”", "他说。", "「好。」"]),
        ("彼は俳優です。東京に住む？はい", ["彼は俳優です。", "東京に住む？", "はい"]),
        ("वह लेखक हैं। वह यहाँ रहते हैं॥", ["वह लेखक हैं।", "वह यहाँ रहते हैं॥"]),
        ("هل ولدت هنا؟ نعم ولدت هنا.", ["هل ولدت هنا؟", "نعم ولدت هنا."]),
        ("وہ یہاں ہے۔ وہ وہاں ہے۔", ["وہ یہاں ہے۔", "وہ وہاں ہے۔"]),
        ("היא כאן. הוא שם.", ["היא כאן.", "הוא שם."]),
        ("เขาเกิดที่นี่ เขาเป็นนักแสดง", ["เขาเกิดที่นี่ เขาเป็นนักแสดง"]),
        ("¿Quién es ella? ¡Es Mara!", ["¿Quién es ella?", "¡Es Mara!"]),
        ("« Je viens. Vous ? » dit-elle. Il part.", ["« Je viens. Vous ? » dit-elle.", "Il part."]),
        (
            "Sie sagt: „Ich komme. Du auch.“ Er wurde am 3. Mai geboren.",
            ["Sie sagt: „Ich komme. Du auch.“", "Er wurde am 3. Mai geboren."],
        ),
        ("А. С. Пушкин писал. Он умер.", ["А. С. Пушкин писал.", "Он умер."]),
        ("She won \U0001f3c6! He\x00 lost \ud800.", ["She won \U0001f3c6!", "He\x00 lost \ud800."]),
    ],
)
def test_a_text_is_split_into_sentences(text, expected):
    assert sentences(text) == expected


def test_spans_contain_the_sentences():
    text = "# Early life\r\n- She was  born in\nLyon. He left.\n"
    assert split(text) == [
        Sentence("Early life", 2, 12),
        Sentence("She was born in Lyon.", 16, 38),
        Sentence("He left.", 39, 47),
    ]
    assert text[16:38] == "She was  born in\nLyon."


def test_sentences_lose_no_word():
    text = 'A. B. C. "D. (E. f) g.h. I." No. 5, etc. and so on... Oh'
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def checked(text: str) -> list[Sentence]:
    """Sentences, after a check that spans are ordered, disjoint and hold the sentences' words."""
    for parts in (split(text), carry(split(text), 3)):
        at = 0
        for s in parts:
            assert at <= s.start < s.end <= len(text), (text, s)
            assert s.text and s.text == " ".join(s.text.split())
            span = iter(text[s.start : s.end])
            assert all(c in span for c in s.text.replace(" ", ""))  # in the same order
            at = s.end
    return split(text)


PIECES = [
    *" \n\t.!?\"'()[]|*_#`~>-:,0123456789aAbB",
    *("```", "~~~\n", "```py\n", "\r\n", "\u2028", "\x00", "\x85", "\x1c", "\ud800", "\udfff"),
    *("。", "！", "؟", "।", "“", "”", "„", "«", "»", "「", "」", "中", "ก", "א", "\u200f"),
    *("He ", "1. ", "- ", "Mr. ", " the ", "J. R. ", "e.g. ", "a.b@c.de ", "http://a.b/?c "),
    *("**Life**\n", "\U0001f600"),
]


def test_any_text_gives_ordered_spans_inside_it():
    draw = random.Random(7)
    for _ in range(4000):
        checked("".join(draw.choice(PIECES) for _ in range(draw.randrange(60))))
    for _ in range(300):
        checked("".join(chr(draw.randrange(0x110000)) for _ in range(draw.randrange(200))))


@pytest.mark.parametrize(
    "unit",
    [*"., \na(\"|#`-“中。\u2028\ud800", "a. ", "A. ", "A! ", "1. ", ".\"'", "()", "- ", "```a`",
     "a\n", "| a |\n", "He is \"a. B\" ok. ", "“”", "[1]", "(A. ", "*", "No. 5 ", "Mara sang. "],
)  # fmt: skip
def test_a_long_text_takes_little_time(unit):
    text = (unit * 100_000)[:100_000]
    start = time.process_time()
    checked_spans = carry(split(text))
    assert time.process_time() - start < 0.5
    assert all(a.end <= b.start for a, b in zip(checked_spans, checked_spans[1:], strict=False))


def test_short_sentences_are_joined():
    parts = split("She acts. He was born in Lyon in the year 1950. They met. It rained.")
    assert carry(parts, 0) == parts
    assert [(s.text, s.start, s.end) for s in carry(parts, 3)] == [
        ("She acts. He was born in Lyon in the year 1950.", 0, 47),
        ("They met. It rained.", 48, 68),
    ]
    # the short last sentence joins the sentence before it
    assert [s.text for s in carry(parts, 4)] == [
        "She acts. He was born in Lyon in the year 1950. They met. It rained."
    ]
    assert [s.text for s in carry(parts[:1], 11)] == ["She acts."]
    assert carry([], 11) == []


def test_words_are_counted_with_and_without_spaces():
    assert word_count("She acts  well.") == 3
    assert word_count("他是演员") == 2
    assert word_count("") == 0


def test_every_sentence_of_the_quickstart_world():
    """Plain biographies are split at their full stops."""
    small_world = world.make(seed=3, people=20, train=10, val=5, test=5)
    for person in small_world.people:
        stated = [world.statement(person.name, a, v) for a, v in person.facts.items()]
        assert sentences(" ".join(stated)) == stated


def test_agreement_with_the_labelled_sentences(labelled_data):
    """Sentences end where the sentences of the labelled files end, counted in letters."""
    for file, least in (("ChatGPT.jsonl", 0.995), ("InstructGPT.jsonl", 0.998)):
        with open(labelled_data / file, encoding="utf-8") as lines:
            rows = [r for r in map(json.loads, lines) if r["annotations"]]
        same = either = 0
        for row in rows:
            theirs = ends(part["text"] for part in row["annotations"])
            ours = ends(sentences(row["output"]))
            same += 2 * len(ours & theirs)
            either += len(ours) + len(theirs)
        assert same >= least * either


def ends(texts) -> set[int]:
    letters, at = set(), 0
    for text in texts:
        at += len("".join(text.split()))
        letters.add(at)
    return letters
