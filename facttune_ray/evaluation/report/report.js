// The report's browser of responses: pages, filters, search.
const PAGE = 20;
const HUMAN = { S: ["✓ human", "good"], NS: ["✗ human", "bad"], IR: ["human: irrelevant", "soft"] };

function start(data, looks) {
  const { cards, strings } = data;
  const state = { query: "", verdict: "all", model: "", split: "", group: "", sort: "none", page: 0 };
  const models = [...new Set(cards.flatMap((c) => c.responses.map((r) => r.model)))];
  cards.forEach((card, i) => {
    card.number = i;
    card.samples = [...new Set(card.responses.map((r) => r.sample))].sort((a, b) => a - b);
    for (const r of card.responses) r.n = tally(r);
  });
  const text = (number) => (number === undefined ? undefined : strings[number]);

  function words(card) { // the text that a search looks through
    if (card.words === undefined) {
      const parts = [card.topic, card.prompt];
      for (const r of card.responses) {
        parts.push(r.text || "");
        for (const f of r.facts) parts.push(f.fact || "");
      }
      card.words = parts.join("\n").toLowerCase();
    }
    return card.words;
  }

  const judged = (f) => f.supported !== undefined;
  const apart = (f) => judged(f) && f.second !== undefined && f.second !== f.supported;
  const human = (f) =>
    judged(f) && (f.human === "S" || f.human === "NS") && (f.human === "S") !== f.supported;
  const HAS = {
    all: () => true,
    wrong: (r) => r.n.false > 0,
    right: (r) => r.n.true > 0 && r.n.false === 0,
    unknown: (r) => r.n.unknown > 0,
    second: (r) => r.facts.some(apart),
    human: (r) => r.facts.some(human),
    repeated: (r) => r.facts.some((f) => f.repeated),
    none: (r) => r.n.true + r.n.false + r.n.unknown === 0,
    failed: (r) => r.error !== undefined || r.n.failed > 0,
  };
  const rate = (card, wanted) => { // share of wrong facts of the models that `wanted` accepts
    let right = 0, wrong = 0;
    for (const r of card.responses) {
      if (!wanted(r.model)) continue;
      right += r.n.true;
      wrong += r.n.false;
    }
    return right + wrong ? wrong / (right + wrong) : NaN;
  };
  const change = (card) => rate(card, (m) => m !== "base") - rate(card, (m) => m === "base");
  const last = (value) => (Number.isNaN(value) ? Infinity : value);
  const SORT = {
    none: (c) => c.number,
    wrong: (c) => -c.responses.reduce((sum, r) => sum + r.n.false, 0),
    rate: (c) => last(-rate(c, () => true)),
    better: (c) => last(change(c)),
    worse: (c) => last(-change(c)),
  };

  function filtered() {
    const query = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = cards.filter((card) => {
      if (state.split && card.split !== state.split) return false;
      if (state.group && card.group !== state.group) return false;
      const responses = card.responses.filter((r) => !state.model || r.model === state.model);
      if (!responses.some(HAS[state.verdict])) return false;
      return query.every((word) => words(card).includes(word));
    });
    if (state.sort === "topic") return kept.sort((a, b) => a.topic.localeCompare(b.topic));
    const key = SORT[state.sort];
    return kept.sort((a, b) => key(a) - key(b) || a.number - b.number);
  }

  function badge(model) {
    const look = looks[model] || { name: model, mark: "", paint: "inherit" };
    const mark = el("span", { "aria-hidden": "true" }, look.mark);
    mark.style.color = look.paint;
    return [mark, ` ${look.name} `];
  }

  function summed(responses) {
    const n = { true: 0, false: 0, unknown: 0 };
    for (const r of responses) for (const k of Object.keys(n)) n[k] += r.n[k];
    return n;
  }

  function fact(f) {
    const k = kind(f);
    const line = [
      el("span", { className: "mark", "aria-hidden": "true" }, MARK[k]),
      el("span", { className: "hidden" }, `${SAID[k]}: `),
      f.fact,
    ];
    const chip = (words, tone) => line.push(" ", el("span", { className: `chip ${tone}` }, words));
    if (f.repeated) chip("repeated", "soft");
    if (f.human) {
      const [words, tone] = HUMAN[f.human] || [f.human, "soft"];
      chip(human(f) ? `${words}, unlike the estimate` : words, human(f) ? `${tone} apart` : tone);
    }
    if (apart(f)) {
      chip(`${f.second ? "✓" : "✗"} ${looks[" second"] || "second"}`, f.second ? "good" : "bad");
    }
    const why = [];
    const say = (name, value) => value && why.push(el("dt", {}, name), el("dd", {}, value));
    const score = f.score === undefined ? "" : `, score ${f.score.toFixed(2)}`;
    const title = text(f.title);
    say(`Evidence${title ? ` from ${title}` : ""}${score}`, text(f.evidence));
    say(f.supported === null || f.error ? "No verdict" : "Because", text(f.reason) || f.error);
    say("Question", text(f.question));
    const sure = f.conf === undefined ? "" : `, largest share ${Math.round(100 * f.conf)}%`;
    say(`Sampled answers${sure}`, f.answers && f.answers.map((a) => a || "(empty)").join(" / "));
    if (!why.length) return el("li", { className: k }, ...line);
    const inside = el("dl", { className: "why" }, ...why);
    return el("li", { className: k }, el("details", {}, el("summary", {}, ...line), inside));
  }

  function response(r) {
    const head = el("h4", {}, ...badge(r.model), el("span", { className: "tally" }, ...counts(r.n)));
    const facts = r.facts.filter((f) => f.fact !== undefined);
    const failed = r.n.failed ? `${r.n.failed} of its sentences could not be split into facts.` : "";
    const remark = r.abstained ? "It declines to answer: no facts." : failed;
    return el(
      "section", {}, head, markedText(r),
      remark && el("p", { className: "soft" }, remark),
      el("ul", { className: "facts" }, ...facts.map(fact)),
    );
  }

  function body(card) {
    const inside = el("div");
    let at = 0;
    const draw = () => {
      const sample = card.samples[at];
      const shown = models
        .map((m) => card.responses.find((r) => r.model === m && r.sample === sample))
        .filter((r) => r && (!state.model || r.model === state.model));
      const parts = [el("p", { className: "soft text" }, card.prompt)];
      if (card.samples.length > 1) {
        const step = (by, words, off) =>
          el("button", {
            type: "button", disabled: off, "aria-label": words,
            onclick: () => {
              at += by;
              draw();
              const next = inside.querySelector(`button[aria-label="${words}"]`);
              (next.disabled ? inside.querySelector("button:enabled") : next).focus();
            },
          }, by < 0 ? "‹" : "›");
        parts.push(el(
          "p", { className: "pager" },
          step(-1, "previous sample", at === 0),
          el("span", { "aria-live": "polite" }, `sample ${at + 1} of ${card.samples.length}`),
          step(1, "next sample", at === card.samples.length - 1),
        ));
      }
      parts.push(el("div", { className: "side" }, ...shown.map(response)));
      inside.replaceChildren(...parts);
    };
    draw();
    return inside;
  }

  function topic(card, open) {
    const tallies = models
      .map((m) => [m, card.responses.filter((r) => r.model === m)])
      .filter(([, some]) => some.length)
      .map(([m, some]) => el("span", { className: "tally" }, ...badge(m), ...counts(summed(some))));
    const head = el("summary", {}, el("strong", {}, card.topic), ...tallies);
    const node = el("details", { className: "box topic" }, head);
    const fill = () => node.childElementCount === 1 && node.append(body(card));
    node.addEventListener("toggle", () => node.open && fill());
    if (open) {
      fill();
      node.open = true;
    }
    return node;
  }

  const list = byId("cards");
  function draw() {
    const kept = filtered();
    const pages = Math.max(1, Math.ceil(kept.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const from = state.page * PAGE;
    const shown = kept.slice(from, from + PAGE);
    list.replaceChildren(...shown.map((card, i) => topic(card, i === 0)));
    const responses = kept.reduce((sum, c) => sum + c.responses.length, 0);
    byId("count").textContent = kept.length
      ? `${from + 1} to ${from + shown.length} of ${kept.length.toLocaleString("en")} prompts, ` +
        `${responses.toLocaleString("en")} responses`
      : "nothing matches these filters";
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page === pages - 1;
  }

  function turn(by) {
    state.page = Math.max(0, state.page + by);
    draw();
    byId("browser").scrollIntoView();
    const first = list.querySelector("summary");
    if (first) first.focus();
  }
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));

  for (const key of ["verdict", "model", "split", "group", "sort"]) {
    const select = byId(`by-${key}`);
    if (!select) continue;
    select.addEventListener("change", () => {
      state[key] = select.value;
      state.page = 0;
      draw();
    });
  }
  byId("search").form.addEventListener("submit", (event) => event.preventDefault());
  const search = byId("search");
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.query = search.value;
      state.page = 0;
      draw();
    }, 120);
  });

  function move(by) { // to the next prompt of the page
    const all = [...list.querySelectorAll(".topic > summary")];
    const at = all.indexOf(document.activeElement);
    const next = all[Math.min(all.length - 1, Math.max(0, at + by))];
    if (next) {
      next.focus();
      next.scrollIntoView({ block: "nearest" });
    }
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && event.target === search) {
      search.value = "";
      search.dispatchEvent(new Event("input"));
      search.blur();
    }
    if (typing) return;
    const keys = {
      "/": () => search.focus(), j: () => move(1), k: () => move(-1),
      n: () => turn(1), p: () => turn(-1),
    };
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  draw();
  list.setAttribute("aria-busy", "false");
}

const packed = byId("packed");
if (packed) {
  const looks = JSON.parse(byId("looks").textContent);
  unpacked(packed.textContent).then(
    (data) => start(data, looks),
    (error) => { byId("count").textContent = `The responses cannot be read: ${error}`; },
  );
}
