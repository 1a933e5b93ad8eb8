// What lesion and batch share. gradio gives `element` (this component), `props` (its values), `watch`, `trigger` and `upload`.
// All is drawn inside a shadow root, so that neither gradio's styles nor its re-rendering reach in, and everything from the
// server or the visitor enters as text, never as markup.

const RESEND_AFTER_MS = 240000; // the server deletes uploads after five minutes
const UNSENT = "A file did not reach the server. It may be larger than 100 MB, or the connection may be down: try again.";
const root = element.querySelector(".lesion-host").attachShadow({ mode: "open" });
root.append(el("style", {}, props.style), el("div", { id: "content" }));
const content = root.getElementById("content");

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function failure(sentence) {
  return el("div", { class: "card alert", role: "alert", id: "failure", tabindex: -1 }, el("h2", {}, "No answer"), el("p", {}, sentence));
}

// As in modeling/prediction.py: a rounded fraction never claims certainty, and a probability is never 0 or 1.
function percent(fraction) {
  const value = 100 * fraction;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  return `${value.toFixed(value === 0 || value === 100 || (value >= 10 && value <= 99) ? 0 : 1)} %`;
}

function save(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: name });
  root.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

function saveText(name, type, text) {
  save(name, new Blob([text], { type: `${type};charset=utf-8` }));
}

// Ways to add photos: choose, camera, clipboard, drop. `take` gets a list of File.
function photoField({ id, title, help, accept, take }) {
  const input = (attributes) => el("input", { type: "file", multiple: "", hidden: "", accept, ...attributes,
    onchange: (event) => { take([...event.target.files]); event.target.value = ""; } });
  const choose = input({}), camera = input({ capture: "environment", accept: "image/*" });
  const button = (text, attributes) => el("button", { type: "button", ...attributes }, text);
  const field = el("section", { class: "drop", id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title), choose, camera,
    el("div", { class: "buttons" },
      button("Choose files", { class: "choose", onclick: () => choose.click() }),
      button("Take a photo", { class: "second camera", onclick: () => camera.click() }),
      button("Paste", { class: "second", onclick: () => pasted().then(take, () => say("Copy a picture first, and let this page read the clipboard.")) })),
    el("p", { class: "small" }, help), el("p", { class: "small", role: "status", id: `${id}-note` }));
  const say = (text) => { field.querySelector("[role=status]").textContent = text; };
  for (const kind of ["dragover", "dragleave", "drop"]) {
    field.addEventListener(kind, (event) => {
      event.preventDefault();
      field.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) take([...event.dataTransfer.files]);
    });
  }
  window.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length && element.offsetParent) take(files);
  });
  return field;
}

async function pasted() {
  const files = [];
  for (const item of await navigator.clipboard.read()) {
    const type = item.types.find((one) => one.startsWith("image/"));
    if (type) files.push(new File([await item.getType(type)], `pasted.${type.slice(6)}`, { type }));
  }
  if (!files.length) throw new Error("no picture");
  return files;
}

// Send what has not been sent, or may have been deleted meanwhile; return how the server knows the files.
async function sent(items) {
  for (const item of items) {
    if (item.path && Date.now() - item.at < RESEND_AFTER_MS) continue;
    item.path = (await upload(item.file)).path;
    item.at = Date.now();
  }
  return items.map((item) => ({ path: item.path, name: item.file.name }));
}

// Ask about one lesion. Answers to earlier questions, which may come later, are not shown.
function question(event, data) {
  window.lesionAsked = Math.random();
  trigger(event, { ...data, asked: window.lesionAsked });
}

function working(text) {
  return el("div", { class: "card", id: "working", role: "status" }, el("p", {}, text), el("progress", { "aria-label": text }));
}

// Bring the beginning of an answer into view, and the keyboard and the screen reader to it.
function goTo(node) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  node.focus({ preventScroll: true });
  const top = node.getBoundingClientRect().top;
  if (top < 0 || top > 0.5 * window.innerHeight) node.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
}
