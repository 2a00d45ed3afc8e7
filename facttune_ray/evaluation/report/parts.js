// Parts of the report: texts, facts and traces, unpacked when they are first needed.
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

const arriving = new Map(); // name of a part -> function that takes its text
globalThis.facttune_part = (name, text) => arriving.get(name)?.(text); // each file calls it

function packedText(name) { // of the page, or of the file beside it
  const inside = byId(`part-${name}`);
  if (inside) return Promise.resolve(inside.textContent);
  const file = `${byId("index").dataset.folder}/${name}.js`;
  return new Promise((resolve, reject) => {
    arriving.set(name, resolve);
    const missing = () =>
      reject(new Error(`${file} is not beside this page: copy its folder with the page`));
    const script = el("script", {
      src: file, onerror: missing, onload: () => { script.remove(); missing(); },
    });
    document.head.append(script);
  });
}

const reading = new Map(); // name -> promise of its content
const ready = new Map(); // name -> its content
function part(name) {
  if (!reading.has(name)) {
    const content = packedText(name).then(unpacked);
    content.then((value) => ready.set(name, value), () => reading.delete(name));
    reading.set(name, content);
  }
  return reading.get(name);
}

function forget(name) { // free the memory of a part; the page's own parts are few, and stay
  if (byId(`part-${name}`)) return;
  reading.delete(name);
  ready.delete(name);
}
