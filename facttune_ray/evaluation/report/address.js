// Addresses: report.html#topic=Mara+Veldt&fact=c07e, #response=9a01, #verdict=wrong&model=base,
// and #result or #chart-results-1 for sections and charts. Any of the fields may be alone.
const TARGETS = ["topic", "response", "fact"];
const FILTERS = ["q", "verdict", "model", "split", "group", "sort", "page"];

function fragment(fields) { // "#topic=Mara+Veldt"; "#" without fields
  const kept = Object.entries(fields).filter(([, value]) => value !== "" && value !== undefined);
  return `#${new URLSearchParams(kept)}`;
}

function missing(line) { // the line that says what the address names in vain; "": nothing
  const said = byId("missing");
  said.textContent = line;
  said.hidden = !line;
  if (line) said.scrollIntoView({ block: "center" });
}

function linkTo(address, what) { // a control that opens and copies the address of `what`
  const link = el("a", { className: "link", href: address, "aria-label": `link to ${what}` }, "link");
  link.addEventListener("click", () => {
    const href = link.href;
    if (!navigator.clipboard) return; // the address bar has it
    navigator.clipboard.writeText(href).then(() => {
      link.textContent = "copied";
      setTimeout(() => { link.textContent = "link"; }, 1500);
    }, () => {});
  });
  return link;
}

let marked = null;
function mark(node) { // highlight the target of the address
  if (marked) marked.classList.remove("target");
  marked = node;
  if (!node) return;
  node.classList.add("target");
  node.scrollIntoView({ block: node.offsetHeight > innerHeight / 2 ? "start" : "center" });
}

function anchor(text) { // a section or a chart
  let name = text;
  try {
    name = decodeURIComponent(text);
  } catch {
    // a percent sign that encodes nothing
  }
  const node = name ? byId(name) : null;
  if (name && !node) return missing(`This page has no part "${name}".`);
  const box = node && node.closest("details");
  if (box) box.open = true;
  mark(null);
  if (node) {
    node.classList.add("target");
    marked = node;
    node.scrollIntoView();
  }
  return undefined;
}

for (const node of document.querySelectorAll("main h2[id], main h3[id], figure[id]")) {
  const name = node.tagName === "FIGURE" ? "this chart" : node.textContent.trim();
  const link = linkTo(`#${node.id}`, name);
  link.classList.add(`at-${node.tagName.toLowerCase()}`);
  if (node.tagName === "FIGURE") node.prepend(link);
  else node.before(link);
}
