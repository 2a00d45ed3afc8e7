"use strict";
// Replace the element #live by a later state of the run. When later figures can be shown, load the
// page again, unless the reader is using it: then a link says so.
(() => {
  const first = document.getElementById("live").dataset;
  const every = 1000 * Number(first.every);
  let inUse = false; // once the reader has opened a response, searched or typed
  document.getElementById("browser")?.addEventListener("pointerdown", () => (inUse = true));
  document.addEventListener("keydown", () => (inUse = true));

  function note(text, link) {
    const line = document.createElement("p");
    line.className = "note";
    line.textContent = text;
    if (link) {
      const anchor = document.createElement("a");
      anchor.href = "";
      anchor.textContent = link;
      line.append(" ", anchor);
    }
    document.getElementById("newer").replaceChildren(line);
  }

  function replace(text) {
    const later = new DOMParser().parseFromString(text, "text/html").getElementById("live");
    const live = document.getElementById("live");
    for (const old of live.querySelectorAll("details[id]")) {
      const part = later.querySelector(`#${old.id}`);
      if (part) part.open = old.open;
    }
    const scrolled = live.querySelector(".wide")?.scrollTop;
    live.replaceChildren(...later.childNodes);
    const wide = live.querySelector(".wide");
    if (wide && scrolled) wide.scrollTop = scrolled;
    return later.dataset.version;
  }

  async function refresh() {
    try {
      const answer = await fetch("live", { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      if (replace(await answer.text()) !== first.version) {
        if (!inUse) return location.reload();
        note("The server has later figures.", "Show them");
      }
    } catch {
      note("The server of this page does not answer: `facttune watch` may have ended.");
    }
    setTimeout(refresh, every);
  }

  // show the table that is being made
  const box = document.querySelector("#live .wide");
  const row = box?.querySelector("progress")?.closest("tr");
  if (row) box.scrollTop = row.offsetTop - box.clientHeight / 2;
  setTimeout(refresh, every);
})();
