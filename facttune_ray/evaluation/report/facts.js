// A response with its facts, and the trace of a fact: what its judges read and said.
const MARK = { true: "✓", false: "✗", unknown: "?" };
const SAID = { true: "supported", false: "not supported", unknown: "no verdict" };
const HUMAN = { S: ["✓ human", "good"], NS: ["✗ human", "bad"], IR: ["human: irrelevant", "soft"] };
const STAGES = {
  verdicts: "Verdict", "second opinion": "Second opinion",
  facts: "Split of the sentence into facts", questions: "Question",
  answers: "Sampled answers",
};
const kind = (f) => (f.supported === undefined ? "unknown" : String(f.supported));
const judged = (f) => f.supported !== undefined;
const apart = (f) => judged(f) && f.second !== undefined && f.second !== f.supported;
const humanApart = (f) =>
  judged(f) && (f.human === "S" || f.human === "NS") && (f.human === "S") !== f.supported;

function badge(looks, model) {
  const look = looks[model] || { name: model, mark: "", paint: "inherit" };
  const mark = el("span", { "aria-hidden": "true" }, look.mark);
  mark.style.color = look.paint;
  return [mark, ` ${look.name} `];
}

function counts(n) {
  const out = [];
  for (const [k, tone] of [["true", "good"], ["false", "bad"], ["unknown", "unsure"]]) {
    if (k === "unknown" && !n[k]) continue;
    const said = el("span", { className: "hidden" }, ` ${SAID[k]} `);
    out.push(" ", el("b", { className: tone }, `${n[k]}${MARK[k]}`, said));
  }
  return out;
}

function markedText(r) { // the response, each sentence marked by its worst fact
  const out = el("p", { className: "text" });
  if (!r.text) return el("p", { className: "text soft" }, r.error || "(no text)");
  const spans = new Map();
  for (const f of r.facts) {
    if (f.start === undefined || f.fact === undefined) continue;
    const worst = spans.get(f.start);
    const order = ["false", "unknown", "true"];
    const now = kind(f);
    if (!worst || order.indexOf(now) < order.indexOf(worst.kind)) {
      spans.set(f.start, { start: f.start, end: f.end, kind: now });
    }
  }
  const points = Array.from(r.text); // offsets count characters, as Python does
  let at = 0;
  for (const s of [...spans.values()].sort((a, b) => a.start - b.start)) {
    if (s.start < at) continue;
    out.append(points.slice(at, s.start).join(""));
    out.append(
      el("span", { className: `sentence ${s.kind}` }, points.slice(s.start, s.end).join("")),
    );
    at = s.end;
  }
  out.append(points.slice(at).join(""));
  return out;
}

function reasons(f, strings) { // the list below an opened fact; null: nothing is known
  const text = (number) => (number === undefined ? undefined : strings[number]);
  const why = [];
  const say = (name, value) => value && why.push(el("dt", {}, name), el("dd", {}, value));
  const score = f.score === undefined ? "" : `, score ${f.score.toFixed(2)}`;
  const title = text(f.title);
  say(`Evidence${title ? ` from ${title}` : ""}${score}`, text(f.evidence));
  say(f.supported === undefined || f.error ? "No verdict" : "Because", text(f.reason) || f.error);
  say("Question", text(f.question));
  const sure = f.conf === undefined ? "" : `, largest share ${Math.round(100 * f.conf)}%`;
  say(`Sampled answers${sure}`, f.answers && f.answers.map((a) => a || "(empty)").join(" / "));
  return why.length ? el("dl", { className: "why" }, ...why) : null;
}

function statement(f, strings, looks) { // a fact with its verdict, and what is known of the reasons
  const k = kind(f);
  const line = f.fact === undefined
    ? ["This sentence could not be split into facts."]
    : [
      el("span", { className: "mark", "aria-hidden": "true" }, MARK[k]),
      el("span", { className: "hidden" }, `${SAID[k]}: `),
      f.fact,
    ];
  const chip = (words, tone) => line.push(" ", el("span", { className: `chip ${tone}` }, words));
  if (f.repeated) chip("repeated", "soft");
  if (f.human) {
    const [words, tone] = HUMAN[f.human] || [f.human, "soft"];
    const odd = humanApart(f);
    chip(odd ? `${words}, unlike the estimate` : words, odd ? `${tone} apart` : tone);
  }
  if (apart(f)) {
    chip(`${f.second ? "✓" : "✗"} ${looks[" second"] || "second"}`, f.second ? "good" : "bad");
  }
  const why = reasons(f, strings);
  return why ? el("details", {}, el("summary", {}, ...line), why) : el("div", {}, ...line);
}

// A response with its facts: `items` makes the element of a fact.
function responseView(heading, r, items) {
  const facts = r.facts.filter((f) => f.fact !== undefined || f.error !== undefined);
  const failed = r.n.failed ? `${r.n.failed} of its sentences could not be split into facts.` : "";
  const remark = r.abstained ? "It declines to answer: no facts." : failed;
  return el(
    "section", { tabindex: "-1" }, heading, markedText(r),
    remark && el("p", { className: "soft" }, remark),
    el("ul", { className: "facts" }, ...facts.map(items)),
  );
}

// "‹ response 2 of 5 ›"; `go(by)` draws the list anew inside `place`.
function pager(place, at, of, what, go) {
  const step = (by, words, off) =>
    el("button", {
      type: "button", disabled: off, "aria-label": words,
      onclick: () => {
        go(by);
        const next = place.querySelector(`button[aria-label="${words}"]`);
        (next.disabled ? place.querySelector(".pager button:enabled") : next).focus();
      },
    }, by < 0 ? "‹" : "›");
  return el(
    "p", { className: "pager" }, step(-1, `previous ${what}`, at === 0),
    el("span", { "aria-live": "polite" }, `${what} ${at + 1} of ${of}`),
    step(1, `next ${what}`, at === of - 1),
  );
}

function fact(f, card, data, looks) {
  const tools = el("span", { className: "tools" });
  const address = { topic: card.topic, fact: f.id };
  const shown = statement(f, data.strings, looks);
  const node = el("li", { className: kind(f), tabindex: "-1" }, tools, shown);
  if (f.id === undefined) return node;
  const name = f.fact || "this sentence";
  if (card.traces) {
    const panel = el("div", { className: "trace", hidden: true });
    const button = el("button", {
      type: "button", "aria-expanded": "false", "aria-label": `trace of ${name}`,
      onclick: () => node.trace(panel.hidden),
    }, "trace");
    node.trace = (open) => {
      panel.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
      const link = linkTo(fragment({ ...address, trace: 1 }), `the trace of ${name}`, node);
      if (open && !panel.childElementCount) fillTrace(panel, link, card.traces, f.id);
    };
    tools.append(button);
    node.append(panel);
  }
  tools.append(linkTo(fragment(address), name, node));
  node.fact = f.id;
  return node;
}

async function fillTrace(panel, link, name, id) {
  panel.replaceChildren(el("p", { className: "soft" }, "The trace is being read."));
  try {
    const { lines, steps, facts } = await part(name);
    const text = (numbers) => numbers.map((n) => lines[n]).join("\n");
    const of = Object.hasOwn(facts, id) ? facts[id] : [];
    const none = el("p", { className: "soft" }, "No judge was asked about it.");
    panel.replaceChildren(link, ...(of.length ? of.map((n) => step(steps[n], text)) : [none]));
  } catch (error) {
    panel.replaceChildren(el("p", { className: "bad" }, error.message));
  }
}

function step(s, text) { // one judge of a trace
  const out = [el("h5", {}, `${STAGES[s.stage] || s.stage}: ${s.by}`)];
  const say = (name, ...value) => out.push(el("p", { className: "label" }, name), ...value);
  const words = (value) => el("pre", { className: "words" }, value);
  if (s.messages) {
    const sent = Object.entries(s.params).map(([k, v]) => `${k} ${JSON.stringify(v)}`).join(", ");
    const first = s.messages.slice(0, -1).flatMap(([role, numbers]) =>
      [el("p", { className: "label" }, role), words(text(numbers))]);
    if (first.length) {
      const roles = s.messages.slice(0, -1).map(([role]) => role).join(", ");
      const head = el("summary", { className: "soft" }, `Sent before it: ${roles}`);
      out.push(el("details", {}, head, ...first));
    }
    const [role, numbers] = s.messages.at(-1);
    say(`Sent, ${role}`, words(text(numbers)));
    if (sent) out.push(el("p", { className: "soft" }, `Parameters: ${sent}`));
    if (!s.answers.length) {
      out.push(el("p", { className: "unsure" }, "The ledger holds no answer to this request."));
    }
    s.answers.forEach((a, i) => {
      const again = s.answers.length > 1 ? ` ${i + 1} of ${s.answers.length}` : "";
      if (a.thoughts) say(`Thoughts${again}`, words(a.thoughts));
      say(`Answer${again}`, words(a.text || a.refusal || "(empty)"));
      out.push(el("p", { className: "soft" }, paid(a)));
    });
  }
  if (s.note) out.push(el("p", { className: "unsure" }, s.note));
  if (s.sentence) say("Deciding sentence", words(s.sentence));
  if (s.clause) say("Its clause that is closest to the fact, as it was read", words(s.clause));
  if (s.said) say("What the article says about the fact's relation", words(s.said));
  if (s.parts) {
    const sum = s.parts.reduce((total, [, odds]) => total + odds, 0);
    const row = (name, odds) =>
      el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, signed(odds)));
    say(
      `Score ${s.score.toFixed(3)} = 1 / (1 + exp(−log-odds)), supported from ${s.threshold}`,
      el("table", { className: "odds" }, el("tbody", {},
        ...s.parts.map(([name, odds]) => row(name, odds)), row("log-odds", sum))),
    );
  }
  if (s.passages) {
    say(`Passages that it read, the best first; supported from ${s.threshold}`);
    for (const [title, numbers] of s.passages) say(title, words(text(numbers)));
  }
  return el("section", {}, ...out);
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

function paid(a) { // model, tokens, price and latency of an answer
  const count = (n, what) => `${n.toLocaleString("en")} ${what} tokens`;
  const out = [a.model, count(a.prompt_tokens, "prompt"), count(a.completion_tokens, "completion")];
  out.push(`$${a.cost_usd.toLocaleString("en", { maximumSignificantDigits: 2 })}`);
  out.push(a.latency_s === undefined ? "latency not measured" : `${a.latency_s.toFixed(3)} s`);
  if (a.attempts > 1) out.push(`${a.attempts} attempts`);
  if (a.probability !== undefined) out.push(`P(True) ${a.probability.toFixed(3)}`);
  if (a.finish) out.push(`finish: ${a.finish}`);
  return out.join(", ");
}

function response(r, card, data, looks) {
  const heading = el("h4", {}, ...badge(looks, r.model),
    el("span", { className: "tally" }, ...counts(r.n)));
  const name = `the response of ${(looks[r.model] || { name: r.model }).name}`;
  const node = responseView(heading, r, (f) => fact(f, card, data, looks));
  node.response = r.id;
  if (r.id) node.prepend(linkTo(fragment({ topic: card.topic, response: r.id }), name, node));
  return node;
}
