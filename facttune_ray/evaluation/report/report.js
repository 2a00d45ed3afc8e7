// The report's browser of responses: pages, filters, search, and the targets of addresses.
const PAGE = 20;
const SECOND = 1, HUMAN_APART = 2, REPEATED = 4, FAILED = 8; // marks of a response in the index
const HAS = new Map(Object.entries({
  all: () => true,
  wrong: (r) => r.n.false > 0,
  right: (r) => r.n.true > 0 && r.n.false === 0,
  unknown: (r) => r.n.unknown > 0,
  second: (r) => r.marks & SECOND,
  human: (r) => r.marks & HUMAN_APART,
  repeated: (r) => r.marks & REPEATED,
  none: (r) => r.n.true + r.n.false + r.n.unknown === 0,
  failed: (r) => r.marks & FAILED || r.n.failed > 0,
}));

function cardsOf(index) {
  const first = new Map(); // part -> its first card
  return index.cards.map(([topic, split, group, at, responses], number) => {
    if (!first.has(at)) first.set(at, number);
    const [name, traces] = index.parts[at];
    const read = responses.map(([model, sample, id, yes, no, unknown, failed, marks]) =>
      ({ model, sample, id, marks, n: { true: yes, false: no, unknown, failed } }));
    const samples = [...new Set(read.map((r) => r.sample))].sort((a, b) => a - b);
    const place = number - first.get(at); // in its part
    return { number, topic, split, group, name, traces, place, samples, responses: read };
  });
}

function full(card) { // {prompt, responses, strings} with texts; null before its part is read
  const content = ready.get(card.name);
  if (!content) return null;
  const { prompt, responses } = content.cards[card.place];
  responses.forEach((r, i) => { r.n = card.responses[i].n; });
  return { prompt, responses, strings: content.strings };
}

function start(index, looks) {
  const cards = cardsOf(index);
  const NONE = { q: "", verdict: "all", model: "", split: "", group: "", sort: "none", page: 1 };
  let state = { ...NONE };
  const models = [...new Set(cards.flatMap((c) => c.responses.map((r) => r.model)))];

  const isModel = (model) => !state.model || model === state.model;
  const chosen = (card) => card.responses.filter((r) => isModel(r.model));
  const badness = (r) => r.n.false - r.n.true / 1e6; // wrong facts; among equals, few right ones
  const worst = (card) => chosen(card).reduce((a, b) => (badness(b) > badness(a) ? b : a));
  const rate = (card, of) => { // share of wrong facts of the models that `of` accepts
    let right = 0, wrong = 0;
    for (const r of card.responses) {
      if (!of(r.model)) continue;
      right += r.n.true;
      wrong += r.n.false;
    }
    return right + wrong ? wrong / (right + wrong) : NaN;
  };
  const change = (card) => rate(card, (m) => m !== "base") - rate(card, (m) => m === "base");
  const last = (value) => (Number.isNaN(value) ? Infinity : value);
  const SORT = new Map(Object.entries({
    none: (c) => c.number,
    topic: (c) => c.number,
    response: (c) => -badness(worst(c)),
    wrong: (c) => -chosen(c).reduce((sum, r) => sum + r.n.false, 0),
    rate: (c) => last(-rate(c, isModel)),
    better: (c) => last(change(c)),
    worse: (c) => last(-change(c)),
  }));

  function words(card) { // the text that a search looks through; topics alone before it is read
    if (card.words === undefined) {
      const data = full(card);
      if (!data) return card.topic.toLowerCase();
      const parts = [card.topic, data.prompt];
      for (const r of data.responses) {
        parts.push(r.text || "");
        for (const f of r.facts) parts.push(f.fact || "");
      }
      card.words = parts.join("\n").toLowerCase();
    }
    return card.words;
  }

  const list = byId("cards"), count = byId("count");
  const ofPart = new Map(); // name of a part -> its cards
  for (const card of cards) ofPart.set(card.name, [...(ofPart.get(card.name) || []), card]);

  let unreadable = ""; // why the last visit could not read a part
  async function visit(names, doing, look) { // read parts one by one, until `look` finds something
    unreadable = "";
    for (const [i, name] of names.entries()) {
      const kept = ready.has(name);
      if (!kept) {
        count.textContent = `${doing}: part ${i + 1} of ${names.length}`;
        await part(name).catch((error) => { unreadable ||= error.message; });
      }
      const found = ready.has(name) ? look(ofPart.get(name)) : null;
      if (found) return found;
      if (!kept) forget(name);
    }
    return null;
  }

  function filtered() {
    const query = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const has = HAS.get(state.verdict);
    const kept = cards.filter((card) => {
      if (state.split && card.split !== state.split) return false;
      if (state.group && card.group !== state.group) return false;
      if (!chosen(card).some(has)) return false;
      return query.every((word) => words(card).includes(word));
    });
    if (state.sort === "topic") return kept.sort((a, b) => a.topic.localeCompare(b.topic));
    const key = SORT.get(state.sort);
    return kept.sort((a, b) => key(a) - key(b) || a.number - b.number);
  }

  function summed(responses) {
    const n = { true: 0, false: 0, unknown: 0 };
    for (const r of responses) for (const k of Object.keys(n)) n[k] += r.n[k];
    return n;
  }

  function body(card, node, sample) {
    const data = full(card);
    const inside = el("div");
    const first = state.sort === "response" ? worst(card).sample : card.samples[0];
    let at = Math.max(0, card.samples.indexOf(sample ?? first));
    const draw = () => {
      const shown = models
        .map((m) => data.responses.find((r) => r.model === m && r.sample === card.samples[at]))
        .filter((r) => r && isModel(r.model));
      const link = linkTo(fragment({ topic: card.topic }), card.topic, node);
      const parts = [el("p", { className: "soft text prompt" }, link, data.prompt)];
      if (card.samples.length > 1) {
        const go = (by) => { at += by; draw(); };
        parts.push(pager(inside, at, card.samples.length, "sample", go));
      }
      const sides = shown.map((r) => response(r, card, data, looks));
      parts.push(el("div", { className: "side" }, ...sides));
      inside.replaceChildren(...parts);
    };
    draw();
    return inside;
  }

  function topic(card) {
    const tallies = models
      .map((m) => [m, card.responses.filter((r) => r.model === m)])
      .filter(([, some]) => some.length)
      .map(([m, some]) =>
        el("span", { className: "tally" }, ...badge(looks, m), ...counts(summed(some))));
    const head = el("summary", {}, el("strong", {}, card.topic), ...tallies);
    const node = el("details", { className: "box topic" }, head);
    node.card = card;
    node.fill = (sample) => { // returns when the responses are there
      const show = (child) => node.replaceChildren(head, child);
      if (sample === undefined && node.childElementCount > 1) return undefined;
      if (ready.has(card.name)) return show(body(card, node, sample));
      show(el("p", { className: "soft" }, "The responses are being read."));
      return part(card.name).then(
        () => show(body(card, node, sample)),
        (error) => { show(el("p", { className: "bad" }, error.message)); },
      );
    };
    node.addEventListener("toggle", () => node.open && node.fill());
    return node;
  }

  let draws = 0; // a later call of draw ends an earlier one
  async function draw(target, typing = false) {
    const turn = ++draws;
    const busy = (yes) => list.setAttribute("aria-busy", String(yes));
    busy(true);
    for (const key of FILTERS) { // the controls show the state
      const control = byId(key === "q" ? "search" : `by-${key}`);
      if (control && !typing) control.value = state[key];
    }
    if (state.q) {
      const unread = new Set(cards.filter((c) => c.words === undefined).map((c) => c.name));
      await visit([...unread], "searching", (some) => {
        some.forEach(words);
        return turn !== draws;
      });
      if (turn !== draws) return;
      if (unreadable) missing(`The search is incomplete: ${unreadable}.`);
    }
    let kept = filtered();
    if (target && !shows(kept, target)) { // filters hide it
      state = { ...NONE, sort: state.sort };
      return draw(target);
    }
    if (target) state.page = Math.floor(kept.indexOf(target.card) / PAGE) + 1;
    const pages = Math.max(1, Math.ceil(kept.length / PAGE));
    state.page = Math.min(state.page, pages);
    const from = (state.page - 1) * PAGE;
    const shown = kept.slice(from, from + PAGE);
    const nodes = shown.map(topic);
    list.replaceChildren(...nodes);
    const responses = kept.reduce((sum, c) => sum + c.responses.length, 0);
    count.textContent = kept.length
      ? `${from + 1} to ${from + shown.length} of ${kept.length.toLocaleString("en")} prompts, ` +
        `${responses.toLocaleString("en")} responses`
      : "nothing matches these filters";
    byId("previous").disabled = state.page === 1;
    byId("next").disabled = state.page === pages;
    byId("filter-link").replaceChildren(linkTo(fragment(changed()), "this list", null));
    const open = target ? nodes[shown.indexOf(target.card)] : nodes[0];
    if (open) {
      const filled = open.fill(target?.response?.sample);
      open.open = true;
      if (filled) await filled;
      if (turn !== draws) return;
      if (target) show(open, target);
    }
    busy(false);
  }

  const changed = () => // the fields that differ from an untouched page
    Object.fromEntries(FILTERS.filter((k) => state[k] !== NONE[k]).map((k) => [k, state[k]]));

  function shows(kept, { card, response }) {
    return kept.includes(card) && (!response || !state.model || response.model === state.model);
  }

  function show(node, target) { // scroll to the target of the address and highlight it
    const all = [...node.querySelectorAll("section, li")];
    const wanted = target.fact !== undefined
      ? all.find((n) => n.fact === target.fact)
      : target.response ? all.find((n) => n.response === target.response.id) : node;
    if (!wanted) return;
    if (target.trace && wanted.trace) wanted.trace(true);
    else if (wanted.fact && wanted.querySelector("details")) wanted.querySelector("details").open = true;
    reveal(wanted);
    (wanted === node ? node.querySelector("summary") : wanted).focus({ preventScroll: true });
  }

  async function found({ topic: name, response: id, fact }) { // the target, or null
    const named = name ? cards.filter((c) => c.topic === name) : cards;
    if (fact === undefined) {
      const card = id === undefined
        ? named[0] : cards.find((c) => c.responses.some((r) => r.id === id));
      return card ? { card, response: card.responses.find((r) => r.id === id) } : null;
    }
    const order = new Set([...(name ? named : []), ...cards].map((c) => c.name));
    return visit([...order], "looking for the fact", (some) => {
      for (const card of some) {
        const at = full(card).responses.findIndex((r) => r.facts.some((f) => f.id === fact));
        if (at >= 0) return { card, response: card.responses[at], fact };
      }
      return null;
    });
  }

  function known(field, value) { // whether a filter has this value
    if (field === "verdict" || field === "sort") {
      return [...byId(`by-${field}`).options].some((option) => option.value === value);
    }
    if (field === "page") return /^[1-9]\d{0,6}$/.test(value);
    if (field === "model") return models.includes(value);
    return field === "q" || cards.some((c) => c[field] === value);
  }

  async function open() { // show what the address names
    const named = location.hash.slice(1);
    missing("");
    if (!named.includes("=")) {
      if (named) anchor(named);
      return named && list.childElementCount ? undefined : (state = { ...NONE }, draw());
    }
    const wanted = Object.fromEntries(new URLSearchParams(named));
    const lines = [];
    state = { ...NONE };
    for (const [field, value] of Object.entries(wanted)) {
      if (TARGETS.includes(field) || field === "trace") continue;
      if (!FILTERS.includes(field)) lines.push(`nothing that is called "${field}"`);
      else if (!known(field, value)) lines.push(`no ${field} "${value}"`);
      else state[field] = field === "page" ? Number(value) : value;
    }
    const field = TARGETS.findLast((key) => Object.hasOwn(wanted, key));
    let target = null;
    if (field) {
      const address = location.hash;
      target = await found(wanted);
      if (address !== location.hash) return undefined;
      if (target) target.trace = Object.hasOwn(wanted, "trace");
      else {
        const why = field === "fact" && unreadable ? ` that can be read: ${unreadable}` : "";
        lines.push(`no ${field} "${wanted[field]}"${why}`);
      }
    }
    mark(null);
    await draw(target);
    if (lines.length) missing(`This page has ${lines.join(" and ")}.`);
    else if (!target) byId("browser").scrollIntoView();
    return undefined;
  }

  function go(fields, typing = false) { // to another state of the filters
    const replace = typing && state.q !== ""; // a search is one step back
    state = { ...state, page: 1, ...fields };
    missing("");
    mark(null);
    history[replace ? "replaceState" : "pushState"](null, "", fragment(changed()));
    return draw(null, typing);
  }

  async function turn(by) {
    await go({ page: Math.max(1, state.page + by) });
    byId("browser").scrollIntoView();
    const first = list.querySelector("summary");
    if (first) first.focus();
  }
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));

  for (const key of ["verdict", "model", "split", "group", "sort"]) {
    const select = byId(`by-${key}`);
    if (select) select.addEventListener("change", () => go({ [key]: select.value }));
  }
  const search = byId("search");
  search.form.addEventListener("submit", (event) => event.preventDefault());
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => go({ q: search.value }, true), 120);
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
      n: () => byId("next").disabled || turn(1), p: () => byId("previous").disabled || turn(-1),
    };
    if (Object.hasOwn(keys, event.key)) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  addEventListener("hashchange", open);
  return open();
}

const packedIndex = byId("index");
if (packedIndex) {
  const looks = JSON.parse(byId("looks").textContent);
  unpacked(packedIndex.textContent).then((index) => start(index, looks)).catch(
    (error) => { byId("count").textContent = `The responses cannot be read: ${error}`; },
  );
} else {
  const open = () => {
    missing("");
    anchor(location.hash.slice(1));
  };
  addEventListener("hashchange", open);
  open();
}
