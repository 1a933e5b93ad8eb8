// Entry of the page without a server: loads the model into the browser with a progress bar, then draws the page.

import { alertBox, el } from "./dom.js";
import { open } from "./engine_browser.js";
import { mount } from "./page.js";
import { loadJson } from "./store.js";

const host = document.getElementById("lesion-page");
const sentence = el("p", { role: "status" }, "Loading …");
const bar = el("progress", { max: 1, value: 0, "aria-label": "Loading the model" });
const loading = el(
  "main",
  { class: "card", id: "loading" },
  el("h1", {}, "Skin lesion classifier"),
  sentence,
  bar,
);
host.replaceChildren(loading);

try {
  const origin = await loadJson(new URL("page.json", location.href).href);
  if (!origin) throw new Error("A file of this page is missing: build the page again.");
  const onProgress = (fraction, text) => {
    bar.value = fraction;
    sentence.textContent = text;
  };
  const engine = await open(origin.model_url, { onProgress, origin });
  host.replaceChildren();
  await mount(host, engine);
} catch (error) {
  const again = el("button", { type: "button", onclick: () => location.reload() }, "Try again");
  host.replaceChildren(el("main", {}, alertBox("The model could not be loaded", error.message), again));
}
// After the first visit the page works without a connection.
if ("serviceWorker" in navigator) {
  await navigator.serviceWorker.register("sw.js").catch((error) => console.warn(error));
}
