// The page: header, tabs, and what holds for all of them. The engine that it is given answers, see engine.js.

import { batchPanel } from "./batch.js";
import { alertBox, el, working } from "./dom.js";
import { lesionPanel } from "./lesion.js";
import { modelPanel } from "./model.js";
import { programsPanel } from "./programs.js";
import { isZip } from "./zip.js";

const TABS = [
  ["lesion", "One lesion"],
  ["batch", "Batch"],
  ["model", "Model"],
  ["programs", "API"],
];

/**
 * Draw the page inside a host element.
 * @param {HTMLElement} host
 * @param {import("./engine.js").Engine} engine
 */
export async function mount(host, engine) {
  document.documentElement.lang = "en";
  const page = el("div", { id: "page" }, working("Loading the model …"));
  host.append(page);
  let about;
  try {
    about = await engine.about();
  } catch (error) {
    page.replaceChildren(header(null), alertBox("The model could not be loaded", error.message));
    return;
  }
  const lesion = lesionPanel({ engine, about, root: host });
  const batch = batchPanel({ engine, about, root: host, openRow: lesion.openRow, showTab });
  const nodes = {
    lesion: lesion.node,
    batch: batch.node,
    model: modelPanel(about),
    programs: programsPanel(about, engine),
  };
  const tabs = TABS.map(([name, text]) =>
    el(
      "button",
      { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": name, onclick: () => showTab(name) },
      text,
    ),
  );
  const panels = TABS.map(([name]) =>
    el("div", { role: "tabpanel", id: name, "aria-labelledby": `tab-${name}` }, nodes[name]),
  );
  const list = el("div", { role: "tablist", "aria-label": "Parts of this page", onkeydown: walk }, tabs);
  page.replaceChildren(header(about), list, el("main", {}, panels), footer(about, engine));

  function showTab(name) {
    TABS.forEach(([other], index) => {
      const chosen = other === name;
      tabs[index].setAttribute("aria-selected", String(chosen));
      tabs[index].tabIndex = chosen ? 0 : -1;
      panels[index].hidden = !chosen;
    });
    if (location.hash.slice(1) !== name) history.replaceState(null, "", `#${name}`);
  }

  function walk(event) {
    const at = tabs.indexOf(document.activeElement);
    const step = {
      ArrowRight: 1,
      ArrowDown: 1,
      ArrowLeft: -1,
      ArrowUp: -1,
      Home: -at,
      End: tabs.length - 1 - at,
    }[event.key];
    if (at < 0 || step === undefined) return;
    event.preventDefault();
    const next = tabs[(at + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  }

  function shown() {
    return TABS.find((_, index) => !panels[index].hidden)[0];
  }

  function byAddress() {
    const name = location.hash.slice(1);
    showTab(TABS.some(([known]) => known === name) ? name : "lesion");
  }

  async function take(files) {
    let toBatch = shown() === "batch";
    try {
      toBatch ||= (await Promise.all(files.map(isZip))).some(Boolean);
    } catch (error) {
      showTab("lesion");
      return lesion.fail(error.message);
    }
    showTab(toBatch ? "batch" : "lesion");
    (toBatch ? batch.add : lesion.start)(files);
  }

  let depth = 0; // of dragenter minus dragleave
  const marks = { dragenter: 1, dragover: 0, dragleave: -1 };
  for (const [kind, change] of Object.entries(marks)) {
    window.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      depth += change;
      page.classList.toggle("dragging", depth > 0);
    });
  }
  window.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    page.classList.remove("dragging");
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length) take(files);
  });
  window.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) take(files);
  });
  window.addEventListener("hashchange", byAddress);
  byAddress();
}

function header(about) {
  return el(
    "header",
    {},
    el("h1", {}, "Skin lesion classifier"),
    about && el("p", { class: "notice", role: "note" }, about.model.notice),
    about?.model.from_cache &&
      el(
        "p",
        { class: "notice", role: "status" },
        "The model's host did not answer; this is the copy downloaded earlier.",
      ),
  );
}

function footer({ model }, engine) {
  const revision = model.revision ? `, revision ${model.revision.slice(0, 12)}` : "";
  const license = model.license ? `, licence of the weights ${model.license}` : "";
  return el(
    "footer",
    { class: "small" },
    `Model ${model.id}${revision}, knows ${model.codes.length} diagnoses${license}. ${engine.privacy}`,
  );
}
