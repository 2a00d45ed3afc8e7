"""The api engine over HTTP: the real client, its ledger and the annotator server."""

from __future__ import annotations

import asyncio
import json
import urllib.request

import pytest
from aiohttp import web

from facttune_ray.config import LLMConfig
from facttune_ray.errors import BudgetReached, EndpointError, UserError
from facttune_ray.llm.client import Client
from facttune_ray.llm.cost import Allowance, Meter
from facttune_ray.llm.endpoint import Endpoint
from facttune_ray.llm.ledger import Ledger
from facttune_ray.llm.limiter import Limits
from facttune_ray.llm.permits import Gate, local_renew
from facttune_ray.llm.segments import read_segment
from facttune_ray.quickstart.annotator import AnnotatorOptions, running
from facttune_ray.sampling.api import ApiSampler
from facttune_ray.sampling.protocol import SampleRequest, failure, texts
from facttune_ray.storage.schema import seed_from
from facttune_ray.storage.tables import Folder

SETTINGS = {"max_tokens": 15, "temperature": 1.0, "top_p": 0.9}
QUESTION = "Question: Where was Mara Veldt born?\nAnswer:"
PRICE = {"usd_per_million_input": 10.0, "usd_per_million_output": 30.0}


class Scripted:
    """A server that keeps its requests as {"path", "key", **body} and answers by a function of a
    request. It runs in the event loop of the sampler."""

    def __init__(self, answer) -> None:
        self.answer, self.asked = answer, []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        one = {"path": request.path, "key": request.headers["Idempotency-Key"], **body}
        self.asked.append(one)
        reply = self.answer(one)
        return reply if isinstance(reply, web.Response) else web.json_response(reply)

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/{path:.*}", self.handle)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"

    async def __aexit__(self, *_) -> None:
        await self.runner.cleanup()


def text_reply(asked, texts=None, tokens=None, **more):
    """A reply in OpenAI's form with the requested number of choices."""
    texts = texts or [f" t{i}" for i in range(asked.get("n", 1))]
    chat = "messages" in asked
    choices = [
        {"index": i, "finish_reason": "stop"}
        | ({"message": {"content": t}} if chat else {"text": t})
        for i, t in enumerate(texts)
    ]
    usage = {"prompt_tokens": 11, "completion_tokens": tokens or 2 * len(texts)}
    return {"model": "served", "choices": choices, "usage": usage} | more


def client_of(tmp_path, url, meter=None, **settings) -> Client:
    cfg = LLMConfig(
        **{"model": "m", "temperature": None, "max_tokens": None, "max_wait_s": 0.05} | settings
    )

    async def report(ask) -> Allowance:
        return meter.report(ask)

    endpoint = Endpoint(url, "NO_KEY", 10.0, Gate(local_renew(Limits()), 64, "w"))
    ledger = Ledger(Folder.of(str(tmp_path / "ledger")), flush_s=0.005, run="r", stage="answers")
    return Client(cfg, ledger, [endpoint], report if meter else None)


def draw(tmp_path, where, prompts, *, form="completions", choices=1, client=None, **settings):
    """(samples, client) of one `sample` call to a URL or a scripted server."""

    async def work(url):
        one = client_of(tmp_path, url, **(client or {}))
        try:
            sampler = ApiSampler(one, form=form, choices=choices)
            settings.setdefault("seeds", [100 + i for i in range(len(prompts))])
            return await sampler.sample(SampleRequest(prompts, **SETTINGS | settings)), one
        finally:
            await one.close()

    async def beside():
        async with where as url:
            return await work(url)

    return asyncio.run(work(where) if isinstance(where, str) else beside())


def rows(tmp_path) -> list[dict]:
    folder = Folder.of(str(tmp_path / "ledger"))
    return [r for n in folder.names() for r in read_segment(folder / n).to_pylist()]


@pytest.fixture(scope="module")
def url():
    with running(AnnotatorOptions()) as url:
        yield url


# -- what is sent --------------------------------------------------------------------------------


def test_each_sample_is_one_request_with_its_own_seed(tmp_path):
    script = Scripted(text_reply)
    found, _ = draw(
        tmp_path,
        script,
        ["one", "two"],
        n=3,
        max_tokens=[4, 9],
        stop=("\n",),
        raw=True,
        prefix="P ",
    )
    assert len(script.asked) == 6 and [len(f) for f in found] == [3, 3]
    wanted = {"model", "prompt", "temperature", "top_p", "max_tokens", "stop", "seed"}
    assert all(set(a) - {"path", "key"} == wanted for a in script.asked)
    assert {a["path"] for a in script.asked} == {"/v1/completions"}
    assert {(a["prompt"], a["max_tokens"]) for a in script.asked} == {("P one", 4), ("P two", 9)}
    assert all((a["temperature"], a["top_p"], a["stop"]) == (1.0, 0.9, "\n") for a in script.asked)
    seeds = {a["seed"] for a in script.asked}
    assert len(seeds) == 6 and all(0 <= s < 2**31 for s in seeds)
    several = Scripted(text_reply)
    draw(tmp_path / "c", several, ["one"], n=1, max_tokens=4, stop=("\n", "|"), raw=True)
    assert several.asked[0]["stop"] == ["\n", "|"]
    again = Scripted(text_reply)
    draw(tmp_path / "b", again, ["one"], n=1, max_tokens=4, stop=("\n",), raw=True, prefix="P ")
    assert again.asked[0] in script.asked  # same key, seed and body in another process or order


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, "Who?\n"),
        ({"raw": True}, "Who?"),
        ({"prefix": "A\n"}, "A\nWho?"),
        ({"beginnings": ["She was "]}, "Who?\nShe was"),
        ({"beginnings": ["She"], "raw": True}, "Who?She"),
    ],
)
def test_completions_send_the_text_of_a_plain_model(tmp_path, settings, sent):
    script = Scripted(text_reply)
    draw(tmp_path, script, ["Who?"], n=1, **settings)
    assert script.asked[0]["prompt"] == sent and "stop" not in script.asked[0]


def test_chat_sends_one_message_and_cannot_continue_a_response(tmp_path):
    script = Scripted(text_reply)
    draw(tmp_path, script, [QUESTION], form="chat", n=1, prefix="Worked.\n")
    assert script.asked[0]["path"] == "/v1/chat/completions"
    assert script.asked[0]["messages"] == [{"role": "user", "content": "Worked.\n" + QUESTION}]
    with pytest.raises(UserError, match="sampling.form=completions is needed for entities"):
        draw(tmp_path, script, ["Who?"], form="chat", n=1, beginnings=["She"])


def test_settings_of_the_request_override_the_clients(tmp_path):
    script = Scripted(text_reply)
    llm = {"temperature": 0.0, "max_tokens": 512, "params": {"seed": 1, "user": "u", "top_p": 0.1}}
    draw(tmp_path, script, ["Who?"], n=1, client=llm)
    (asked,) = script.asked
    assert (asked["temperature"], asked["max_tokens"], asked["top_p"]) == (1.0, 15, 0.9)
    assert asked["user"] == "u" and asked["seed"] != 1


# -- several choices a request -------------------------------------------------------------------


def test_choices_share_requests_and_the_ledger_finds_them_for_every_count(tmp_path):
    script = Scripted(lambda a: text_reply(a, [f" {a['seed']}-{i}" for i in range(a["n"])]))
    found, client = draw(tmp_path, script, ["Who?"], n=6, choices=4, client=PRICE)
    assert sorted(a["n"] for a in script.asked if "n" in a) == [2, 4]
    first, second = (next(a for a in script.asked if a["n"] == n) for n in (4, 2))
    texts = [f" {first['seed']}-{i}" for i in range(4)] + [f" {second['seed']}-{i}" for i in (0, 1)]
    assert [s.text for s in found[0]] == texts
    assert (client.usage.calls, client.usage.prompt_tokens) == (2, 22)
    assert client.usage.completion_tokens == 12
    usd = (22 * 10 + 12 * 30) / 1e6
    assert client.usage.cost_usd == pytest.approx(usd)
    kept = rows(tmp_path)
    assert len(kept) == 6 and sum(r["cost_usd"] for r in kept) == pytest.approx(usd)
    assert sorted(r["prompt_tokens"] for r in kept) == [0, 0, 0, 0, 11, 11]
    assert sorted(r["attempts"] for r in kept) == [0, 0, 0, 0, 1, 1]
    for choices in (1, 3, 4, 20):
        again, client = draw(tmp_path, script, ["Who?"], n=6, choices=choices)
        assert again == found and (client.usage.calls, client.usage.cached) == (0, 6)
    assert len(script.asked) == 2


def test_only_samples_missing_in_the_ledger_are_requested(tmp_path):
    script = Scripted(text_reply)
    few, _ = draw(tmp_path, script, ["Who?"], n=3, choices=8)
    more, client = draw(tmp_path, script, ["Who?"], n=8, choices=8)
    assert [a["n"] for a in script.asked] == [3, 5] and more[0][:3] == few[0]
    assert script.asked[0]["key"] != script.asked[1]["key"]
    lost = Scripted(text_reply)  # what a killed run had in flight has the same key and body again
    draw(tmp_path / "lost", lost, ["Who?"], n=3, choices=8)
    assert lost.asked == script.asked[:1]
    assert (client.usage.calls, client.usage.cached) == (1, 3)


def test_missing_choices_are_requested_again(tmp_path):
    script = Scripted(lambda a: text_reply(a, [f" {a['seed']}"]))  # takes no notice of n
    found, client = draw(tmp_path, script, ["Who?"], n=3, choices=3)
    assert [a.get("n") for a in script.asked] == [3, 2, None]
    assert [s.text for s in found[0]] == [f" {a['seed']}" for a in script.asked]
    assert client.usage.calls == 3 and len(rows(tmp_path)) == 3


def test_tokens_of_several_choices_are_shared_by_length(tmp_path):
    def answer(asked):  # by 4 characters more than each has: 8, 8, 24 of 40
        return text_reply(asked, ["abcd", "efgh", "x" * 20], tokens=20)

    found, _ = draw(tmp_path, Scripted(answer), ["Who?"], n=3, choices=3)
    assert [s.tokens for s in found[0]] == [4, 4, 12]


def test_choices_are_taken_by_their_index(tmp_path):
    def answer(asked):
        reply = text_reply(asked, [" a", " b"])
        return reply | {"choices": reply["choices"][::-1]}

    found, _ = draw(tmp_path, Scripted(answer), ["Who?"], n=2, choices=2)
    assert [s.text for s in found[0]] == [" a", " b"]


# -- what comes back -----------------------------------------------------------------------------


def test_texts_are_cut_before_stop(tmp_path):
    def answer(asked):
        if asked["prompt"] == "cut":
            return text_reply(asked, [" Brno\nmore"])
        reply = text_reply(asked, [" long and"], tokens=15)
        reply["choices"][0]["finish_reason"] = "length"
        return reply

    found, _ = draw(tmp_path, Scripted(answer), ["cut", "long"], n=1, stop=("\n",), raw=True)
    assert [tuple(f[0][:3]) for f in found] == [(" Brno", 2, True), (" long and", 15, False)]


def test_without_usage_tokens_are_estimated(tmp_path):
    found, _ = draw(
        tmp_path, Scripted(lambda a: text_reply(a, ["a b c"], usage=None)), ["Who?"], n=1
    )
    assert found[0][0].tokens == 3  # four characters a token, and the end mark


def test_a_refusal_is_the_text_of_the_sample(tmp_path):
    def answer(asked):
        message = {"content": None, "refusal": "I cannot."}
        return {"choices": [{"message": message, "finish_reason": "stop"}], "model": "m"}

    found, _ = draw(tmp_path, Scripted(answer), ["Who?"], form="chat", n=1)
    assert found[0][0].text == "I cannot."


def test_temperature_0_sends_one_request(tmp_path):
    script = Scripted(text_reply)  # a server may refuse n > 1 at temperature 0
    found, _ = draw(tmp_path, script, ["Who?"], n=4, choices=4, temperature=0.0)
    assert len(script.asked) == 1 and "n" not in script.asked[0]
    assert [s.text for s in found[0]] == [" t0"] * 4


def test_token_counts_are_estimates():
    sampler = ApiSampler(None)  # type: ignore[arg-type]
    assert sampler.count_tokens(["", "Ostrava", "in the south", "a b c d"]) == [1, 2, 4, 6]


# -- failures ------------------------------------------------------------------------------------


def refuse(status, code=None, message="no"):
    return web.Response(
        status=status,
        text=json.dumps({"error": {"message": message, "code": code, "type": "x", "param": None}}),
        content_type="application/json",
    )


def test_a_failed_prompt_has_an_error_and_others_continue(tmp_path):
    def answer(asked):
        if asked["prompt"].startswith("too long"):
            return refuse(400, "context_length_exceeded", "This is too long.")
        return text_reply(asked)

    found, _ = draw(tmp_path, Scripted(answer), ["too long", "Who?"], n=2)
    assert texts(found[0]) is None and "too long" in (failure(found[0]) or "")
    assert len(found[1]) == 2 and failure(found[1]) is None


def test_one_sample_fails_alone_and_the_others_are_not_paid_again(tmp_path):
    third = seed_from(100, 2) >> 32
    script = Scripted(lambda a: refuse(500) if a["seed"] == third else text_reply(a))
    found, first = draw(tmp_path, script, ["Who?"], n=4, client={"max_attempts": 2})
    assert [s.error for s in found[0]] == [None, None, "HTTP 500: no, 2 attempts", None]
    assert texts(found[0]) == [" t0"] * 3 and failure(found[0]) is None
    found, second = draw(tmp_path, Scripted(text_reply), ["Who?"], n=4)
    assert len(found[0]) == 4
    assert (first.usage.calls, second.usage.cached, second.usage.calls) == (3, 3, 1)


def test_a_rejected_key_stops_the_run(tmp_path):
    with pytest.raises(EndpointError, match="set NO_KEY"):
        draw(tmp_path, Scripted(lambda a: refuse(401)), ["Who?"], n=2)


def test_completions_in_batch_mode_are_refused(tmp_path):
    with pytest.raises(UserError, match="batch takes chat alone"):
        draw(tmp_path, Scripted(text_reply), ["Who?"], n=1, client={"mode": "batch"})


# -- end to end, at the annotator ----------------------------------------------------------------


@pytest.mark.parametrize("form", ["chat", "completions"])
@pytest.mark.parametrize("choices", [1, 5])
def test_the_annotator_gives_the_same_samples_again(tmp_path, url, form, choices):
    prompts = [QUESTION.replace("Mara Veldt", name) for name in ("Ada", "Bo", "Cy")]
    settings = {"n": 10, "stop": ("\n",), "raw": True, "form": form, "choices": choices}
    found, first = draw(tmp_path, url, prompts, **settings)
    assert [len(f) for f in found] == [10, 10, 10] and first.usage.calls == 30 / choices
    assert all(s.finished and s.tokens == 2 and "\n" not in s.text for f in found for s in f)
    assert any(len({s.text for s in f}) > 1 for f in found)
    again, second = draw(tmp_path, url, prompts, **settings)
    assert again == found and (second.usage.calls, second.usage.cached) == (0, 30)
    fresh, _ = draw(tmp_path / "elsewhere", url, prompts, **settings)
    assert fresh == found
    other = "chat" if form == "completions" else "completions"
    _, third = draw(tmp_path, url, prompts, **settings | {"form": other})
    assert third.usage.cached == 0


def test_faults_lose_no_sample_and_nothing_is_answered_twice(tmp_path):
    faults = AnnotatorOptions(
        error_share=0.1, reset_share=0.15, malformed_share=0.1, journal=str(tmp_path / "j.jsonl")
    )
    with running(faults) as url:
        prompts = [f"Question: Where was P{i} born?\nAnswer:" for i in range(20)]
        found, client = draw(tmp_path, url, prompts, n=8, choices=4, stop=("\n",), raw=True)
        assert all(len(f) == 8 for f in found) and client.usage.retries > 0
        with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as reply:
            counted = json.load(reply)
    assert (counted["journal"], counted["repeated"]) == (40, 0)
    assert client.usage.calls == 40


def test_equal_samples_in_flight_are_sent_once(tmp_path):
    script = Scripted(text_reply)
    found, client = draw(tmp_path, script, ["Who?"] * 3, n=4, choices=4, seeds=[5, 5, 5])
    assert len(script.asked) == 1 and found[0] == found[1] == found[2]


def test_the_budget_stops_sampling(tmp_path, url):
    with pytest.raises(BudgetReached):
        draw(
            tmp_path,
            url,
            [QUESTION],
            n=400,
            choices=2,
            client=PRICE | {"budget_usd": 0.01, "meter": Meter(budget_usd=0.01)},
        )
    paid_by_writer = Ledger(Folder.of(str(tmp_path / "ledger"))).paid_usd("r")
    assert 0.005 < sum(paid_by_writer.values()) <= 0.0105
