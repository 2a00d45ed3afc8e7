"""Detect responses that decline to answer. An abstained response has no facts (FActScore).

    detect = detector("generic")
    detect("I'm sorry, but I cannot find any information about her.")   ->  True
    detect("Mara Veldt was born in Ostrava.")                           ->  False

    detector("mypackage.mine:declined")    your own function of the response's text

A text without a letter or digit is always an abstention. `facts.abstention=llm` asks the LLM
instead: prompts/abstention.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from facttune_ray.errors import RowError, UserError, did_you_mean

Detector = Callable[[str], bool]

_SUBJECT = re.compile(
    r"(?:(?:well|hmm+|oh|hello|hi|unfortunately|regrettably|sadly|honestly|to be honest|"
    r"currently|at (?:this|the) (?:time|moment)|as of (?:now|my [^,.]{1,40})|"
    r"as an? (?:[\w-]+ )?(?:ai|llm|language model|assistant)\b[^,.]{0,40}|"
    r"based on (?:the|my)[^,.]{1,60})[,.!]? (?:but )?){0,3}",
    re.I,
)
_THING = (
    r"(?:informations?|info|records?|details|data|(?:search )?results?|knowledge|biograph(?:y|ies)|"
    r"sources|individual|person|figure|one|match(?:es)?)\b"
)
_REFUSAL = re.compile(
    r"(?:"
    r"(?:i'?m|i am|we are|we're)(?: very| truly| really| so)? (?:sorry|afraid|unable|not able|"
    r"unaware|unsure|not sure|not certain|not aware|not familiar|unfamiliar)\b|"
    r"(?:my |our )?(?:sincere )?apologies\b|i(?: must| do)? apologi[sz]e|sorry\b[,.! ]|"
    r"(?:i|we) (?:really |simply |currently |also |still )?(?:do not|don't|cannot|can't|can not|"
    r"could not|couldn't|was unable|was not able|wasn't able|were unable|did not|didn't|"
    r"am unable|have no\b|have not been able|haven't|must decline|lack)\b|"
    r"(?:there (?:is|are|was|were)(?: currently)? (?:no|not (?:any|enough|much)|insufficient)|"
    r"there(?:'s| isn't| aren't| does not| doesn't| do not)(?: seem| appear)?|no)\b"
    rf"(?: [\w'-]+){{0,5}}? {_THING}.{{0,60}}"
    r"\b(?:available|found|known|about|on|exists?|for|named|called|matching|with)\b|"
    r"(?:it is|it's) (?:not (?:clear|possible)|unclear who|impossible (?:for me )?to)|"
    r"(?:could|can|would|will) you (?:please |kindly )?(?:provide|clarify|give|specify|share|tell)|"
    r"please (?:provide|clarify|specify|give|share)|not enough (?:information|context)|"
    r"insufficient (?:information|data|context)|(?:n/?a|unknown|none|no answer)[.! ]*$"
    r")",
    re.I,
)


def empty(text: str) -> bool:
    """Whether a response has no letter and no digit."""
    return not re.search(r"\w", text)


def abstained(text: str) -> bool:
    """Whether a response is empty or opens with a refusal.

    A later refusal does not count: a biography that ends on "I'm sorry, I know no more" has facts.
    """
    opening = " ".join(text[:1000].replace("\u2019", "'").split()).lstrip("\"'*-#>_ \u201c")
    if empty(text):
        return True
    start = _SUBJECT.match(opening)
    return bool(_REFUSAL.match(opening, start.end() if start else 0))


DETECTORS: dict[str, Detector] = {"none": empty, "generic": abstained}


def detector(name: str) -> Detector:
    """The detector of `facts.abstention`: one of DETECTORS, or "package.module:function".

    Raise UserError for an unknown name. A user's function takes the response's text and returns
    a bool; another result raises RowError, and the function's own errors are passed on.
    """
    if name in DETECTORS:
        return DETECTORS[name]
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise UserError(
            f'facts.abstention: "{name}" is no detector.{did_you_mean(name, [*DETECTORS, "llm"])}'
            " Name your own function as package.module:function."
        )
    try:
        function = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError, TypeError) as e:
        raise UserError(
            f'facts.abstention: "{name}" cannot be imported: {" ".join(str(e).split())}. Is its '
            "package installed, or its folder in PYTHONPATH?"
        ) from None
    if not callable(function):
        raise UserError(
            f'facts.abstention: "{name}" is a {type(function).__name__}, no function: name a '
            "function that takes the response's text and returns True or False."
        )
    return _checked(name, function)


def _checked(name: str, function: Callable[[str], object]) -> Detector:
    def detect(text: str) -> bool:
        result = True if empty(text) else function(text)
        if not isinstance(result, bool):
            raise RowError(f"{name} returned {result!r:.80}: expected True or False")
        return result

    return detect
