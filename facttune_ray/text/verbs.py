"""English verb forms by rule, for the rule-based stages, which have no parser.

    base("married") == "marry"    past("write") == "wrote"    is_finite("plays") == True

Regular forms are derived, irregular forms are listed. There is no dictionary of all verbs, so some
results are guesses: `is_finite` says whether a word has the form of a finite verb; the caller
checks its neighbours.
"""

from __future__ import annotations

import re

BE = {"is", "was", "are", "were"}
MODALS = set("will would can could may might must should shall".split())
AUXILIARIES = BE | MODALS | set("has have had does did do".split())

# infinitive, past, participle if it differs from the past
_IRREGULAR = """
arise arose arisen|be was been|bear bore born|beat beat beaten|become became become
begin began begun|bend bent|bind bound|bite bit bitten|bleed bled|blow blew blown
break broke broken|breed bred|bring brought|build built|buy bought|catch caught|choose chose chosen
come came come|cost cost|creep crept|cut cut|deal dealt|dig dug|do did done|draw drew drawn
drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feed fed|feel felt|fight fought
find found|flee fled|fly flew flown|forbid forbade forbidden|forget forgot forgotten
freeze froze frozen|get got|give gave given|go went gone|grow grew grown|hang hung|have had
hear heard|hide hid hidden|hit hit|hold held|hurt hurt|keep kept|know knew known|lay laid|lead led
leave left|lend lent|let let|lie lay lain|lose lost|make made|mean meant|meet met
oversee oversaw overseen|overcome overcame overcome|overthrow overthrew overthrown|pay paid|put put
quit quit|read read|ride rode ridden|ring rang rung|rise rose risen|run ran run|say said
see saw seen|seek sought|sell sold|send sent|set set|shake shook shaken|shine shone|shoot shot
show showed shown|shut shut|sing sang sung|sink sank sunk|sit sat|sleep slept|speak spoke spoken
spend spent|split split|spread spread|stand stood|steal stole stolen|stick stuck|strike struck
strive strove striven|swear swore sworn|sweep swept|swim swam swum|swing swung|take took taken
teach taught|tear tore torn|tell told|think thought|throw threw thrown|undergo underwent undergone
understand understood|undertake undertook undertaken|wake woke woken|wear wore worn
weave wove woven|win won|withdraw withdrew withdrawn|write wrote written|outsell outsold
rebuild rebuilt|retake retook retaken|rewrite rewrote rewritten|upset upset
"""
_ROWS = [row.split() for row in re.split(r"[|\n]", _IRREGULAR.strip())]
PASTS = {row[0]: row[1] for row in _ROWS}
PARTICIPLES = {row[-1] for row in _ROWS}
_BASES = {form: row[0] for row in _ROWS for form in row[1:]} | {
    "is": "be", "are": "be", "were": "be", "has": "have", "does": "do", "goes": "go",
    "dying": "die", "lying": "lie", "tying": "tie", "tied": "tie", "premiered": "premiere",
}  # fmt: skip

# Regular verbs of biographies and encyclopedias. They are listed because a present tense ("works",
# "plays") can also be a noun.
_REGULAR = """
abandon abuse accept acclaim adjoin accompany accomplish accuse achieve acquire acquit act adapt
add address admire adopt advance advise advocate affect agree aim allow alter amass analyze
animate annex announce answer appeal appear apply appoint appreciate approach approve argue arm
arrange arrest arrive ascend ask assassinate assert assist associate assume attack attain attempt
attend attract attribute audition author avoid award back base bat battle believe belong bill
blend border borrow bowl box breach bully bury call campaign cancel capture care carry cause cease
celebrate cement certify challenge champion change charge chronicle circulate cite claim climb
coach collaborate collect combine command comment commentate commission commit compare compete
compile complain complete compose concede conceive concern conclude condemn conduct confer confess
confirm connect conquer consider consist construct contact contain contest continue contribute
control convert convey convict convince cook cover create credit criticize culminate cultivate
cycle dance date debut decide declare decline dedicate deem defeat defend define delay deliver
demand demonstrate deny depart depict deploy depose derive describe deserve design destroy detail
determine develop devote die direct disagree discover discuss display dissolve divide divorce
document dominate donate draft dress drop dub earn edit educate elect elevate eliminate embark
emerge emigrate emphasize employ encourage end endorse engage engineer enjoy enlist enrol enroll
ensure enter entitle erect escape establish estimate evolve examine excite execute exhibit exile
exist expand expel experience explain explore expose express extend face fail fascinate father
feature feud fill film finish fire flourish focus follow force form foster found fulfill gain
garner gather generate graduate grant guest guide hail happen head headline help highlight hire
honor honour hop hope host house hunt identify illustrate immigrate impact implement import
impress imprison improve include increase induct influence inherit initiate insist inspire
instruct integrate intend interview introduce invent invest investigate invite involve issue join
judge jump kick kill knock lack land last launch lean learn lecture liberate like limit link list
listen live locate love maintain major manage manufacture map mark marry master match mention
mentor merge migrate miss mix model moderate modernize mourn move murder name narrate need
negotiate neighbor neighbour nickname nominate note notice observe obtain occupy occur offer
officiate open operate oppose order organize originate oust outline own paint participate partner
pass pen perform photograph pioneer pitch place plan play plead please popularize portray pose
possess post postpone practice practise praise preach precede prefer prepare present preserve
preside press prevent proceed proclaim produce profess progress promote prompt propel propose
protect prove provide publish pull punch purchase pursue push qualify race raise rank rate reach
realize recall receive recite recognize recommend record recruit reduce refer referee reflect
reform refuse reign reject rejoin relate release relegate relieve relocate rely remain remarry
remember remove render renew repeat repel replace report represent reprise request require rescue
research reside resign resolve respect respond restore result resume retain retire retreat return
reveal revive revoke revolutionize reward root rule rush sail sanction save schedule score screen
sculpt search season secure seem select separate serve settle sever shape share shift showcase
sign skate skip solve span spark specialize sponsor sport spot stage star start state stay
stereotype stop straddle strengthen stretch stroll struggle study style submit substitute succeed
sue suffer suggest suit summon supervise support surpass surrender surround survive suspect
suspend sustain switch tackle talk target team tend terminate test testify threaten torture tour
trace trade train transfer transform transition translate travel treat trigger try turn tutor
uncover unite update urge use value venture vie view visit voice volunteer vote wait walk want
warn watch weigh welcome widow wish witness work worship wound wrestle yield
"""
KNOWN = set(_REGULAR.split()) | set(PASTS)

# After these endings the stem of an unknown verb in "-ed" or "-ing" gets its "e" back.
_E_BACK = re.compile(
    r"(?:[cuvz]|[^aeious]s|[aeiou]s|[^aeiou]l|[dr]g|[aeiou]g|[^aeo]at|[^aeiou][uo]t|[^aeiou]id|"
    r"[^aeiou][aiu]r|[^aeiou]in|[^aeiou]ib|[^aeiou][aio]k|[^aeiou]ap|[^aeiou]am)$"
)


def base(word: str) -> str:
    """The infinitive of a verb form; an unknown form is returned unchanged."""
    word = word.lower()
    if word in _BASES:
        return _BASES[word]
    if word in KNOWN:
        return word
    if word.endswith(("ied", "ies")) and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("ed") and len(word) > 3:
        return stem(word[:-2])
    if word.endswith("ing") and len(word) > 4:
        return stem(word[:-3])
    if re.search(r"(?:ch|sh|ss|x|zz|o)es$", word):
        return word[:-2]
    if re.search(r"[^s]s$", word) and len(word) > 3:
        return word[:-1]
    return word


def stem(cut: str) -> str:
    """The infinitive, given a form without its "-ed" or "-ing": "serv" -> "serve"."""
    single = cut[:-1] if cut[-1:] == cut[-2:-1] else cut
    for candidate in (cut + "e", cut, single):
        if candidate in KNOWN:
            return candidate
    if single != cut and cut[-1] in "bdgmnprt":
        return single
    return cut + "e" if _E_BACK.search(cut) else cut


def past(infinitive: str) -> str:
    """The simple past: "win" -> "won", "stop" -> "stopped", "carry" -> "carried"."""
    if infinitive in PASTS:
        return PASTS[infinitive]
    if infinitive.endswith("e"):
        return infinitive + "d"
    if re.search(r"[^aeiou]y$", infinitive):
        return infinitive[:-1] + "ied"
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprt]", infinitive) or infinitive in {
        "transfer", "refer", "prefer", "admit", "commit", "control", "enrol", "repel", "occur",
    }:  # fmt: skip
        return infinitive + infinitive[-1] + "ed"
    return infinitive + "ed"


def third(verb: str) -> str:
    """The third person singular: "write" -> "writes", "carry" -> "carries"."""
    if re.search(r"[^aeiou]y$", verb):
        return verb[:-1] + "ies"
    return verb + ("es" if re.search(r"(?:s|x|z|ch|sh|o)$", verb) else "s")


def is_past(word: str) -> bool:
    """Whether the word can be a simple past or a participle."""
    if word in PAST_FORMS or word in NOT_VERBS:
        return word in PAST_FORMS
    return word.endswith("ed") and (len(word) > 4 or base(word) in KNOWN)


def is_present(word: str) -> bool:
    """Whether the word is a known verb in the third person: "plays", "studies"."""
    return word.endswith("s") and base(word) in KNOWN


def is_finite(word: str) -> bool:
    """Whether the word alone can be a finite verb."""
    return word in AUXILIARIES or is_past(word) or is_present(word)


PAST_FORMS = set(PASTS.values()) | PARTICIPLES
NOT_VERBS = set("hundred sacred united indeed speed breed need feed seed kindred infrared".split())
