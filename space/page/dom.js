// Small helpers of the page. Text from a server, a model or a visitor enters as text, never as markup.

/** Make an element. `on…` attributes are listeners; false and null attributes and children are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style")
      node.style.cssText = value; // an attribute would be refused by the page's own policy
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function button(text, onclick, attributes = {}) {
  return el("button", { type: "button", onclick, ...attributes }, text);
}

/** Write a fraction as modeling/formatting.py does: 95 %, 4.2 %, 99.6 %, and never as certain when it is not. */
export function percent(fraction) {
  const value = 100 * fraction;
  if (value > 0 && value < 0.1) return "<\u00a00.1\u00a0%";
  if (value > 99.9 && value < 100) return ">\u00a099.9\u00a0%";
  const digits = value === 0 || value === 100 || (value >= 10 && value <= 99) ? 0 : 1;
  return `${value.toFixed(digits)}\u00a0%`;
}

/** Write two fractions with as many digits as it takes to see which one is larger. */
export function percentPair(value, cutoff) {
  for (let digits = 0; digits < 5; digits++) {
    const texts = [value, cutoff].map((fraction) => (100 * fraction).toFixed(digits));
    if (texts[0] !== texts[1] && !texts.some((text) => Number(text) === 0 || Number(text) === 100)) {
      return texts.map((text) => `${text}\u00a0%`);
    }
  }
  return [percent(value), percent(cutoff)];
}

/** Keep numbers and their percent sign on one line. */
export function unbroken(text) {
  return text.replaceAll(" %", "\u00a0%");
}

export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

export function listed(words, last) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;
}

export function alertBox(title, sentence) {
  return el(
    "section",
    { class: "card alert", role: "alert", id: "failure", tabindex: -1 },
    el("h2", {}, title),
    el("p", {}, sentence),
  );
}

export function working(text) {
  return el(
    "div",
    { class: "card", id: "working", role: "status" },
    el("p", {}, text),
    el("progress", { "aria-label": text }),
  );
}

export function picker(id, label, options, value, onchange) {
  const select = el(
    "select",
    { id, onchange: (event) => onchange(event.target.value) },
    options.map(([key, text]) => el("option", { value: key, selected: String(key) === String(value) }, text)),
  );
  return el("label", { class: "pick", for: id }, el("span", {}, label), select);
}

/** Show code with a button that copies it. */
export function codeBlock(text) {
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Select the text to copy it";
    }
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  copy.classList.add("second", "copy");
  return el("div", { class: "code" }, el("pre", { tabindex: 0 }, text), copy);
}

export function save(root, name, blob) {
  const address = URL.createObjectURL(blob);
  const link = el("a", { href: address, download: name });
  root.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

export function textBlob(type, text) {
  return new Blob([text], { type: `${type};charset=utf-8` });
}

/** Bring the beginning of something into view, with the keyboard and the screen reader. */
export function goTo(node) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  node.focus({ preventScroll: true });
  const { top } = node.getBoundingClientRect();
  if (top < 0 || top > window.innerHeight / 2)
    node.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
}

export function loadImage(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("This browser cannot show the photo."));
    image.src = source;
  });
}
