"""The simulated provider and the network before it.

    provider = Provider(world, scenario, history)
    transport = provider.transport(process, timeout_s=10.0)
    reply = await transport("POST", "/chat/completions", body, headers)

The server decides about a request when it arrives: by the kind that the row's message names, by the
limit, and by chance. An answer is billed when it is ready, whether or not the client still waits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from simulation.history import Attempt, History
from simulation.scenario import Scenario
from simulation.world import Process, World

Answer = tuple[int, dict[str, str], bytes]  # status, headers, content
Transport = Callable[[str, str, dict | None, dict], Awaitable[Answer]]


class Unanswered(Exception):
    """No reply: "refused" (no server listens there), "reset" or "timeout"."""


class Provider:
    def __init__(self, world: World, scenario: Scenario, history: History) -> None:
        self.world, self.scenario, self.history = world, scenario, history
        self.dice = world.dice("provider")
        self.net = world.dice("network")
        self.busy = 0  # requests that are being answered
        self._let: list[tuple[float, int]] = []  # (when, tokens) of admitted requests
        self._level: float | None = None  # of a token bucket
        self._level_s = 0.0
        self._seen: dict[int, list[str]] = {}  # row -> names of its requests, in order
        self._kept: dict[str, tuple[Answer, bool]] = {}  # name -> answer, if it replays answers
        self._last_429_s = -math.inf

    # -- network ---------------------------------------------------------------------------------

    def transport(self, process: Process, timeout_s: float) -> Transport:
        async def send(method: str, path: str, body: dict | None, headers: dict) -> Answer:
            assert body is not None
            text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
            row, kind = re.match(r"row (\d+) (\S+)", text).groups()
            made = Attempt(
                name=headers.get("Idempotency-Key", ""),
                row=int(row),
                kind=kind,
                process=process.name,
                departed_s=self.world.now,
                choices=body.get("n", 1),
            )
            self.history.attempts.append(made)
            self.world.note(process.name, f"sends {made.name[:8]} row {row} {kind}")
            answered = process.create_future()
            timer = process.call_later(timeout_s, self._expire, made, answered)
            self._depart(made, path, body, process, answered)
            try:
                return await answered
            finally:
                timer.cancel()
                if made.ended_s is None:
                    made.ended_s = self.world.now
                    made.failed = made.failed or ("" if answered.done() else "cancelled")

        return send

    def _expire(self, made: Attempt, answered: Any) -> None:
        if not answered.done():
            made.failed = "timeout"
            answered.set_exception(Unanswered("timeout"))

    def _depart(self, made: Attempt, path: str, body: dict, process: Process, out: Any) -> None:
        s, now = self.scenario, self.world.now
        trip_s = self._trip_s()
        if any(begin <= now < end for begin, end in s.down):
            self.world.later(trip_s, self._fail, made, process, out, "refused")
            return
        faulty = now < s.faults_end_s
        if faulty and self.net.random() < s.lost_requests:
            if self.net.random() < 0.5:
                self.world.later(trip_s, self._fail, made, process, out, "reset")
            return
        self.world.later(trip_s, self._arrive, made, path, body, process, out)
        if faulty and self.net.random() < s.duplicates:  # a proxy that repeats
            self.world.later(2 * trip_s + 0.01, self._arrive_again, made, path, body)

    def _trip_s(self) -> float:
        return self.scenario.net_s * self.net.uniform(0.5, 1.5)

    def _fail(self, made: Attempt, process: Process, out: Any, how: str) -> None:
        def tell() -> None:
            if not out.done():
                made.failed = how
                out.set_exception(Unanswered(how))

        process.call_soon(tell)

    def _arrive_again(self, made: Attempt, path: str, body: dict) -> None:
        """A duplicate, which the server treats as another request with the same name."""
        if not self.scenario.replays:
            twin = Attempt(**made.__dict__ | {"status": None, "billed": False, "failed": "twin"})
            twin.ended_s = twin.departed_s
            self.history.attempts.append(twin)
            self._arrive(twin, path, body, None, None)

    # -- server ----------------------------------------------------------------------------------

    def _arrive(
        self, made: Attempt, path: str, body: dict, process: Process | None, out: Any
    ) -> None:
        made.arrived_s = self.world.now
        names = self._seen.setdefault(made.row, [])
        if made.name not in names:
            names.append(made.name)
        answer, after_s = self._decide(made, path, body, names.index(made.name))
        self.busy += 1
        self.world.later(after_s, self._finish, made, answer, process, out)

    def _finish(self, made: Attempt, answer: Answer, process: Process | None, out: Any) -> None:
        self.busy -= 1
        made.finished_s = self.world.now
        if made.told:  # the reply is an answer
            made.billed = True
        self.world.note("server", f"{answer[0]} {made.name[:8]} row {made.row} {made.told}")
        if process is None:
            return
        faulty = self.world.now < self.scenario.faults_end_s
        if faulty and self.net.random() < self.scenario.lost_answers:
            if self.net.random() < 0.5:
                self.world.later(self._trip_s(), self._fail, made, process, out, "reset")
            return
        self.world.later(self._trip_s(), self._deliver, made, answer, process, out)

    def _deliver(self, made: Attempt, answer: Answer, process: Process, out: Any) -> None:
        def tell() -> None:
            if not out.done():
                made.ended_s = self.world.now
                out.set_result(answer)

        process.call_soon(tell)

    def _decide(self, made: Attempt, path: str, body: dict, sample: int) -> tuple[Answer, float]:
        s, now, dice = self.scenario, self.world.now, self.dice
        quick_s = 0.002
        if s.replays and made.name in self._kept:
            made.status = 200
            answer, made.garbled = self._kept[made.name]
            return answer, quick_s
        texts = [body["prompt"]] if "prompt" in body else [m["content"] for m in body["messages"]]
        prompt = int(sum(map(len, texts)) * dice.uniform(0.2, 0.3))
        each = [5 + dice.randint(0, s.answer_tokens) for _ in range(made.choices)]
        if made.kind == "huge":  # always larger than the limit
            made.status = 429
            said = "request of 31538 tokens, the limit a minute is 30000"
            return self._error(429, said, type="tokens", code="rate_limit_exceeded"), quick_s
        if not self._lets(prompt + sum(each)):
            made.status = 429
            headers = self._limit_headers()
            if s.retry_after and self.scenario.retry_after_s is not None:
                headers["retry-after"] = str(self.scenario.retry_after_s)
            if now - self._last_429_s > 1.0:
                self.history.troubles.append((now, "429"))
            self._last_429_s = now
            return self._error(429, "slow down", headers=headers), quick_s
        if now < s.faults_end_s:
            chance = dice.random()
            if chance < s.errors_5xx:
                made.status = dice.choice([500, 502, 503, 504, 408, 409])
                headers = {"retry-after": "1"} if dice.random() < 0.3 else {}
                return self._error(made.status, "overloaded", headers=headers), quick_s
            if chance < s.errors_5xx + s.odd_429:
                made.status = 429
                headers = {"retry-after": "0.5"} if dice.random() < 0.5 else {}
                self.history.troubles.append((now, "429"))
                return self._error(429, "please wait", headers=headers), quick_s
            if chance < s.errors_5xx + s.odd_429 + s.errors_in_200:
                made.status = 503
                content = {"id": "x", "error": {"message": "upstream is overloaded", "code": 503}}
                return (200, {}, json.dumps(content).encode()), quick_s
        made.status = 200
        answer = self._answer(made, path, body, sample, prompt, each)
        latency_s = s.latency_s * math.exp(dice.gauss(0.0, s.latency_spread))
        if now < s.faults_end_s and dice.random() < s.hangs:
            latency_s += 2 * s.timeout_s
        if made.told and s.replays:
            self._kept[made.name] = answer, made.garbled
        return answer, latency_s if made.status == 200 else quick_s

    def _error(
        self, status: int, message: str, headers: Mapping[str, str] = {}, **more: Any
    ) -> Answer:
        content = {"error": {"message": message} | more}
        return status, dict(headers), json.dumps(content).encode()

    def _answer(
        self, made: Attempt, path: str, body: dict, sample: int, prompt: int, each: list[int]
    ) -> Answer:
        """The answer to this kind of row, or its refusal."""
        kind, tokens = made.kind, sum(each)
        text, finish = f"answer {made.row}", "stop"
        message: dict[str, Any] = {"role": "assistant", "content": text}
        usage: dict[str, Any] | None = {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
        }
        made.told = "usage"
        if kind == "thoughts_cut":
            message |= {"content": None, "reasoning_content": "let me see"}
            finish = "length"
        elif kind == "empty_cut":
            message["content"], finish = "", "length"
        elif kind == "hidden":
            usage["completion_tokens"] = max(1, tokens // 5)
        elif kind == "total_only":
            usage, made.told = {"total_tokens": prompt + tokens}, "total"
        elif kind == "no_usage":
            usage, made.told = None, "none"
        elif kind == "parts":
            message["content"] = [{"type": "text", "text": text}]
        elif kind == "thinking_part":
            thoughts = {"type": "thinking", "thinking": "maybe not"}
            message["content"] = [thoughts, {"type": "text", "text": text}]
        elif kind == "filtered":
            message, finish = {"role": "assistant"}, "content_filter"
        elif kind == "filtered_half":
            message["content"], finish = "answer cut by a", "content_filter"
        elif kind == "nonsense" and sample < 1:
            message["content"] = "who knows"
        elif kind == "always_nonsense":
            message["content"] = "who knows"
        elif kind == "too_long":
            made.status, made.told = 400, ""
            said = {"object": "error", "message": "prompt of 10127 tokens, the model takes 8192"}
            said |= {"type": "BadRequestError", "param": None, "code": 400}
            return 400, {}, json.dumps(said).encode()
        elif kind == "too_long_b":
            made.status, made.told = 400, ""
            return self._error(400, "request exceeds the context size", code=400)
        elif kind == "moderated":
            made.status, made.told = 403, ""
            return self._error(403, "input was flagged by moderation", code="flagged")
        elif kind == "bad_setting":
            made.status, made.told = 400, ""
            more = {"param": "max_tokens", "code": "unsupported_parameter"}
            return self._error(400, "unsupported parameter max_tokens", **more)
        elif kind == "no_credit":
            made.status, made.told = 402, ""
            content = {"error": {"message": "credit is used up", "code": 402}}
            return 200, {}, json.dumps(content).encode()
        made.prompt_tokens, made.completion_tokens = prompt, tokens
        made.usd = self.scenario.usd(prompt, tokens)
        choices = []
        for index in range(made.choices):
            choice: dict[str, Any] = {"index": index, "finish_reason": finish}
            if path.endswith("/completions") and "prompt" in body:
                choice["text"] = text
            else:
                choice["message"] = message
            choices.append(choice)
        content = {"id": "x", "model": "simulated", "choices": choices, "usage": usage}
        if self.world.now < self.scenario.faults_end_s:
            chance = self.dice.random()
            if chance < self.scenario.garbled:
                made.garbled = True
                return 200, {}, json.dumps(content).encode()[: self.dice.randint(0, 40)]
        return 200, self._limit_headers(), json.dumps(content).encode()

    # -- limit -----------------------------------------------------------------------------------

    def _lets(self, tokens: int) -> bool:
        rpm, tpm = self.scenario.limits_at(self.world.now)
        if not self.scenario.enforced or (rpm is None and tpm is None):
            return True
        now = self.world.now
        self._let = [(at, n) for at, n in self._let if at > now - 60.0]
        used = self._let
        if self.scenario.window == "fixed":
            used = [(at, n) for at, n in used if at // 60.0 == now // 60.0]
        if self.scenario.window == "bucket" and rpm is not None:
            most = max(1.0, rpm * self.scenario.bucket_s / 60.0)
            level = most if self._level is None else self._level
            level = min(most, level + (now - self._level_s) * rpm / 60.0)
            self._level_s, self._level = now, level
            if level < 1.0:
                return False
            self._level -= 1.0
        elif rpm is not None and len(used) >= rpm:
            return False
        if tpm is not None and sum(n for _, n in used) + tokens > tpm:
            return False
        self._let.append((now, tokens))
        return True

    def _limit_headers(self) -> dict[str, str]:
        s = self.scenario
        if not s.tells_limits:
            return {}
        now = self.world.now
        rpm, tpm = s.limits_at(now)
        used = [(at, n) for at, n in self._let if at > now - 60.0]
        reset_s = max(0.0, used[0][0] + 60.0 - now) if used else 0.0
        out = {}
        if rpm is not None:
            out["x-ratelimit-limit-requests"] = f"{rpm:g}"
            out["x-ratelimit-remaining-requests"] = f"{max(0, rpm - len(used)):g}"
            out["x-ratelimit-reset-requests"] = f"{reset_s:.2f}s"
        if tpm is not None:
            left = max(0.0, tpm - sum(n for _, n in used))
            out["x-ratelimit-limit-tokens"] = f"{tpm:g}"
            out["x-ratelimit-remaining-tokens"] = f"{left:g}"
            out["x-ratelimit-reset-tokens"] = f"{reset_s:.2f}s"
        return out
