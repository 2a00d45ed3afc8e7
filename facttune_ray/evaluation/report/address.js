// Addresses: report.html#topic=Mara+Veldt&fact=c07e, #response=9a01, #verdict=wrong&model=base,
// and #result or #chart-results-1 for sections and charts. Any of the fields may be alone.
const TARGETS = ["topic", "response", "fact"];
const FILTERS = ["q", "verdict", "model", "split", "group", "sort", "page"];

function fragment(fields) { // "#topic=Mara+Veldt"; "#" without fields
  const kept = Object.entries(fields).filter(([, value]) => value !== "" && value !== undefined);
  return `#${new URLSearchParams(kept)}`;
}

function missing(line) { // the line that says what the address names and the page does not have; "" hides the line
  const said = byId("missing");
  said.textContent = line;
  said.hidden = !line;
  if (line) said.scrollIntoView({ block: "center" });
}

let marked = null;
function mark(node) { // highlight the target of the address
  if (marked) marked.classList.remove("target");
  marked = node;
  if (node) node.classList.add("target");
}

function reveal(node) { // highlight it and scroll to it
  mark(node);
  node.scrollIntoView({ block: node.offsetHeight > innerHeight / 2 ? "start" : "center" });
}

let told = 0;
function tell(line) { // for two seconds
  const said = byId("copied");
  said.textContent = line;
  said.hidden = false;
  clearTimeout(told);
  told = setTimeout(() => { said.hidden = true; }, 2000);
}

// A control that puts an address into the address bar and the clipboard. `target`: what the
// address names, null for a list.
function linkTo(address, what, target) {
  const link = el("a", { className: "link", href: address, "aria-label": `link to ${what}` }, "link");
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // another tab or window
    event.preventDefault();
    history.pushState(null, "", address);
    mark(target);
    const barOnly = () => tell("The address bar shows the address.");
    if (!navigator.clipboard) return barOnly();
    return navigator.clipboard.writeText(location.href)
      .then(() => tell("The address is copied."), barOnly);
  });
  return link;
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
  if (node) reveal(node);
  return undefined;
}

for (const node of document.querySelectorAll("main h2[id], main h3[id], figure[id]")) {
  const name = node.tagName === "FIGURE" ? "this chart" : node.textContent.trim();
  const link = linkTo(`#${node.id}`, name, node);
  link.classList.add(`at-${node.tagName.toLowerCase()}`);
  if (node.tagName === "FIGURE") node.prepend(link);
  else node.before(link);
}
