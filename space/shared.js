// What answer and batch share. gradio gives `element` (this component), `props` (its values) and `watch`.
// All is drawn inside a shadow root, so that neither gradio's styles nor its re-rendering reach in, and everything from the
// server or the visitor enters as text, never as markup.

const root = element.querySelector(".lesion-host").attachShadow({ mode: "open" });
root.append(el("style", {}, props.style), el("div", { id: "content" }));
const content = root.getElementById("content");

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function failure(sentence) {
  return el("div", { class: "card alert", role: "alert" }, el("h2", {}, "This could not be read"), el("p", {}, sentence));
}

// As in answers.py: a rounded probability never claims certainty.
function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  if (value > 99.9 && value < 100) return "> 99.9 %";
  return `${value.toFixed(value === 0 || value === 100 || (value >= 10 && value <= 99) ? 0 : 1)} %`;
}

// As in answers.py: a probability is never 0 or 1, but may be rounded to it.
function probabilityPercent(probability) {
  return percent(Math.min(Math.max(probability, 1e-6), 1 - 1e-6));
}

function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = el("a", { href: address, download: name });
  root.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
