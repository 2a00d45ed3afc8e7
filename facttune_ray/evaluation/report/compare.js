// The comparison of runs: topics in any order, and a topic's responses side by side.
function start(data, names) {
  const { cards, strings } = data;
  const byTopic = new Map();
  for (const card of cards) {
    byTopic.set(card.topic, [...(byTopic.get(card.topic) || []), card]);
  }
  const sections = [...document.querySelectorAll("section.model")];
  const place = byId("topic");
  const search = byId("search");
  const select = byId("by-model");
  const state = { model: sections[0].dataset.model, topic: "", at: 0 };
  const section = () => sections.find((s) => s.dataset.model === state.model);
  const rows = () => [...section().querySelector("tbody").rows];
  const links = () => rows().filter((r) => !r.hidden).flatMap((r) => [...r.querySelectorAll("a")]);
  const topicOf = (row) => row.cells[0].textContent;
  const first = () => links().map((a) => topicOf(a.closest("tr")))[0] || "";
  const address = (topic, model) =>
    `#topic=${encodeURIComponent(topic)}&model=${encodeURIComponent(model)}`;

  function response(run, r) {
    const head = el("h4", {}, names.runs[run]);
    if (!r) return el("section", {}, head, el("p", { className: "soft" }, "no such response"));
    head.append(el("span", { className: "tally" }, ...counts(r.n)));
    return responseView(head, r, (f) => el("li", { className: kind(f) }, statement(f, strings, {})));
  }

  function views() { // a prompt and the number of a sample, of the topic and model shown
    return (byTopic.get(state.topic) || []).flatMap((card) => {
      const own = card.responses.filter((r) => r.model === state.model);
      const samples = [...new Set(own.map((r) => r.sample))].sort((a, b) => a - b);
      return samples.map((sample) => ({ card, own, sample }));
    });
  }

  function draw() {
    for (const row of document.querySelectorAll("tr[aria-current]")) {
      row.removeAttribute("aria-current");
    }
    const row = rows().find((r) => topicOf(r) === state.topic);
    if (row) row.setAttribute("aria-current", "true");
    const all = views();
    if (!all.length) {
      const why = !state.topic ? "This page has no responses of this model."
        : row ? "Its responses are not on this page." : "This page has no such topic.";
      place.replaceChildren(el("p", { role: "status" }, el("strong", {}, state.topic), ` ${why}`));
      return;
    }
    state.at = Math.min(state.at, all.length - 1);
    const { card, own, sample } = all[state.at];
    const link = el("a", { href: address(state.topic, state.model) }, state.topic);
    const parts = [
      el("h3", { tabindex: "-1" }, link, `, ${names.models[state.model]}`),
      el("p", { className: "soft text" }, card.prompt),
    ];
    if (all.length > 1) {
      const go = (by) => { state.at += by; draw(); };
      parts.push(pager(place, state.at, all.length, "response", go));
    }
    const sides = names.runs.map((_, run) =>
      response(run, own.find((r) => r.run === run && r.sample === sample)));
    place.replaceChildren(...parts, el("div", { className: "side" }, ...sides));
  }

  function show(topic, model) {
    state.topic = topic;
    state.at = 0;
    if (model && Object.hasOwn(names.models, model)) state.model = model;
    select.value = state.model;
    for (const s of sections) s.hidden = s.dataset.model !== state.model;
    draw();
    filter();
  }

  function follow() { // the address of the page
    const wanted = new URLSearchParams(location.hash.slice(1));
    if (!wanted.has("topic")) return false;
    show(wanted.get("topic"), wanted.get("model"));
    byId("responses").scrollIntoView();
    const head = place.querySelector("h3");
    if (head) head.focus({ preventScroll: true });
    return true;
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    const all = rows();
    for (const row of all) {
      const name = topicOf(row).toLowerCase();
      row.hidden = !words.every((word) => name.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    byId("count").textContent = `${shown} of ${all.length} topics`;
  }

  function sortable(table) { // a button in each column's head; "-" stays last
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const by = el("button", { type: "button" }, head.textContent);
      head.replaceChildren(by);
      by.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending" || (column === 0 && !head.ariaSort);
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => {
          const text = row.cells[column].textContent;
          return column === 0 ? text : text === "-" ? NaN : Number(text);
        };
        const order = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (column === 0) return x.localeCompare(y) * (up ? 1 : -1);
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return (x - y) * (up ? 1 : -1);
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
      });
    });
  }

  function move(by) { // to the next topic of the table
    const all = links();
    const at = all.findIndex((a) => topicOf(a.closest("tr")) === state.topic);
    const next = all[Math.min(all.length - 1, Math.max(0, at + by))];
    if (next) location.hash = next.hash;
  }

  document.querySelectorAll("section.model table").forEach(sortable);
  search.form.hidden = byId("keys").hidden = false;
  search.form.addEventListener("submit", (event) => event.preventDefault());
  search.addEventListener("input", filter);
  select.addEventListener("change", () => {
    if (state.topic) location.hash = address(state.topic, select.value);
    else show(first(), select.value);
  });
  addEventListener("hashchange", follow);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === search) {
      search.value = "";
      filter();
      search.blur();
    }
    if (event.target.closest("input, select, textarea")) return;
    const keys = { "/": () => search.focus(), j: () => move(1), k: () => move(-1) };
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });
  if (!follow()) show(first(), "");
  place.setAttribute("aria-busy", "false");
}

unpacked(byId("packed").textContent).then(
  (data) => start(data, JSON.parse(byId("names").textContent)),
  (error) => { byId("topic").textContent = `The responses cannot be read: ${error}`; },
);
