"use strict";
// What the report and the comparison share. Texts become text nodes, not markup.
const MARK = { true: "✓", false: "✗", unknown: "?" };
const SAID = { true: "supported", false: "not supported", unknown: "no verdict" };
const byId = (id) => document.getElementById(id);

function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key === "className" ? "class" : key, value === true ? "" : value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined && c !== ""));
  return node;
}

const theme = byId("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const kind = (f) => (f.supported === undefined ? "unknown" : String(f.supported));

function tally(response) {
  const n = { true: 0, false: 0, unknown: 0, failed: 0 };
  for (const f of response.facts) {
    if (f.fact === undefined) n.failed += 1;
    else if (!f.repeated) n[kind(f)] += 1;
  }
  return n;
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
