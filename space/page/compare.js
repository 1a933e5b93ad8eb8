// Two lesions, or one lesion at two dates, side by side.

import { button, capital, el, percent, picker, unbroken } from "./dom.js";
import { stateOf, verdictParts } from "./answer.js";
import { heatCanvas } from "./heatmap.js";

/**
 * @param {Array<{title: string, answer: object, sourceOf: (index: number) => string | null}>} lesions answered ones
 * @param {[number, number]} chosen
 * @param {(chosen: [number, number]) => void} onchange
 * @param {() => void} onclose
 */
export function compareCard(lesions, chosen, onchange, onclose) {
  const options = lesions.map((lesion, index) => [index, lesion.title]);
  const pair = chosen.map((index) => lesions[index]);
  const pick = (side, label) =>
    picker(`compare-${side}`, label, options, chosen[side], (value) => {
      const next = [...chosen];
      next[side] = Number(value);
      onchange(next);
    });
  const row = (label, cell) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, label),
      pair.map((lesion) => el("td", {}, cell(lesion))),
    );
  return el(
    "section",
    { class: "card", id: "comparison", "aria-labelledby": "h-compare" },
    el("h2", { id: "h-compare", tabindex: -1 }, "Two lesions side by side"),
    el(
      "div",
      { class: "buttons" },
      pick(0, "Left"),
      pick(1, "Right"),
      button("Close", onclose, { class: "second", id: "compare-close" }),
    ),
    el(
      "table",
      { class: "comparison" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("td", {}),
          pair.map((lesion) => el("th", { scope: "col" }, lesion.title)),
        ),
      ),
      el(
        "tbody",
        {},
        row("Photo", (lesion) => picture(lesion, false)),
        row("Heat map", (lesion) => picture(lesion, true)),
        row("Result", (lesion) => result(lesion.answer)),
        pair[0].answer.priors_choice !== pair[1].answer.priors_choice &&
          row("Diagnoses assumed", ({ answer }) =>
            answer.priors_choice === "equal" ? "equally common" : "as common as in the model's data",
          ),
        pair[0].answer.differential.map(({ code, name }) =>
          row(capital(name), ({ answer }) => number(answer, code)),
        ),
      ),
    ),
  );
}

function result(answer) {
  const [state, thresholds, diagnosis] = verdictParts(answer.verdict);
  return [
    el("strong", { class: `tag ${stateOf(answer)}` }, state.replace(": ", "") || unbroken(thresholds)),
    el("span", { class: "small" }, diagnosis),
  ];
}

function number(answer, code) {
  return answer.abstained ? "not answered" : percent(answer.probabilities[code]);
}

function picture({ answer, sourceOf }, withHeat) {
  const index = answer.photos.findIndex((photo) => photo.used);
  const photo = answer.photos[index];
  const source = sourceOf(index);
  if (!source) return "cannot be shown";
  const [height, width] = photo.size;
  const canHeat = withHeat && !answer.abstained && photo.evidence?.[answer.shown];
  if (withHeat && !canHeat) return answer.abstained ? "not answered" : "none";
  const heat = canHeat && heatCanvas(photo, answer.shown, { faded: true });
  if (heat) heat.style.opacity = 0.6;
  const name = answer.differential.find((row) => row.code === answer.shown).name;
  return [
    el(
      "div",
      { class: "stack", style: `aspect-ratio: ${width} / ${height}` },
      el("img", {
        src: source,
        alt: withHeat ? `Heat map for ${name} over ${photo.name}` : `Photo ${photo.name}`,
      }),
      heat,
    ),
    withHeat && el("span", { class: "small" }, `for ${name}`),
  ];
}
