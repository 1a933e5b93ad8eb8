// The words and numbers of one answer: headline, probabilities, thresholds.

import { button, capital, el, listed, percent, percentPair, unbroken } from "./dom.js";

const NOW = {
  abstained:
    "Take the photo again through a dermatoscope: close, sharp, the whole lesion, without glare. " +
    "If there is no answer again, have the lesion examined; no answer does not rule out disease.",
  flagged: "Have this lesion examined by a dermatologist. A flag is not a diagnosis.",
  clear: "If this spot is new, changing, bleeding or worries you, see a doctor, whatever this page says.",
};

/** @returns {"abstained" | "flagged" | "clear"} */
export function stateOf(answer) {
  if (answer.abstained) return "abstained";
  return answer.flagged.length ? "flagged" : "clear";
}

/** What to do now, in one or two sentences. */
export function whatNow(answer) {
  const state = stateOf(answer);
  const unseen = answer.not_known.filter((one) => one.malignant).map((one) => one.name);
  const blind =
    state === "clear" && unseen.length ? ` The model cannot recognise ${listed(unseen, "or")}.` : "";
  return NOW[state] + blind;
}

/** The verdict, which is one sentence or two, in up to three parts: state, thresholds, diagnosis. */
export function verdictParts(verdict) {
  const [, state, thresholds, diagnosis] = /^(?:([^:.]+): )?(.*?)( Most likely: .*)?$/s.exec(
    unbroken(verdict),
  );
  return [state ? `${state}: ` : "", thresholds, (diagnosis ?? "").trimStart()];
}

/**
 * What a reader needs at first sight: flagged or not, for what, how sure, was the photo usable, what now.
 * @param {object} answer
 * @param {(index: number) => string | null} pictureOf address of a photo to show
 * @param {string | null} known what an example shows
 */
export function headline(answer, pictureOf, known) {
  const state = stateOf(answer);
  const [word, thresholds, diagnosis] = verdictParts(answer.verdict);
  const shown = answer.photos.findIndex((photo) => photo.used);
  const source = pictureOf(shown);
  return el(
    "section",
    { class: `card headline ${state}`, "aria-label": "Answer" },
    el(
      "div",
      { class: "headline-top" },
      source && el("img", { class: "thumb", src: source, alt: "" }),
      el(
        "h2",
        { id: "verdict", tabindex: -1 },
        el("span", { class: "state" }, word),
        el("span", { class: "thresholds" }, thresholds, diagnosis ? " " : ""),
        el("span", { class: "most-likely" }, diagnosis),
      ),
    ),
    state === "abstained" ? el("p", { id: "reason" }, unbroken(answer.reason)) : thresholdLines(answer),
    el("ul", { class: "facts" }, photoLines(answer), known && el("li", {}, known)),
    el("p", { class: "now" }, el("strong", {}, "What now? "), whatNow(answer)),
  );
}

/** For each target, the probability and where the highest-sensitivity threshold is. */
function thresholdLines(answer) {
  const best = new Map();
  for (const point of Object.values(answer.thresholds)) {
    const other = best.get(point.catches);
    if (!other || point.target_sensitivity > other.target_sensitivity) best.set(point.catches, point);
  }
  if (!best.size) return null;
  const lines = [...best.values()].map((point) => {
    const [value, cutoff] = percentPair(point.value, point.cutoff);
    return el(
      "li",
      { class: point.above ? "above" : "" },
      el("span", {}, capital(point.catches)),
      el("strong", {}, value),
      el("span", { class: "small" }, `${point.above ? "▲ above" : "below"} threshold ${cutoff}`),
    );
  });
  return el("ul", { class: "values", "aria-label": "Probability and threshold" }, lines);
}

function photoLines(answer) {
  const used = answer.photos.filter((photo) => photo.used);
  const leftOut = answer.photos.filter((photo) => !photo.used);
  const lines = [];
  if (answer.abstained) {
    lines.push(
      el("li", { class: "bad" }, `${used.length > 1 ? "Photos" : "Photo"}: not usable by this model`),
    );
  } else if (answer.photos.length === 1) {
    lines.push(el("li", { class: "good" }, "Photo: usable"));
  } else {
    const together = used.length > 1 ? "usable, averaged as one lesion" : "usable";
    lines.push(el("li", { class: "good" }, `Photos: ${used.length} of ${answer.photos.length} ${together}`));
  }
  for (const photo of leftOut) {
    const why = unbroken(photo.error ?? photo.reason ?? "");
    const text = why.startsWith(photo.name) ? why : `${photo.name}: ${why}`;
    lines.push(el("li", { class: "bad left-out" }, el("strong", {}, "Left out: "), text));
  }
  return lines;
}

function probabilityTable(answer) {
  const rows = answer.differential.map((row) =>
    el(
      "tr",
      { class: row.code === answer.diagnosis ? "first" : "" },
      el(
        "th",
        { scope: "row" },
        el("span", { class: "name" }, capital(row.name)),
        row.malignant && el("span", { class: "badge" }, row.behaviour),
      ),
      el("td", { class: "number" }, percent(row.probability)),
      el(
        "td",
        { class: "bar-cell", "aria-hidden": "true" },
        el(
          "div",
          { class: "bar" },
          el("div", {
            class: row.malignant ? "fill malignant" : "fill",
            style: `width:${100 * row.probability}%`,
          }),
        ),
      ),
    ),
  );
  const heads = ["Diagnosis", "Probability", "Bar"].map((text) => el("th", { scope: "col" }, text));
  return el(
    "table",
    { class: "differential" },
    el("thead", { class: "sr-only" }, el("tr", {}, heads)),
    el("tbody", {}, rows),
  );
}

/**
 * @param {object} answer
 * @param {{code: string} | null} classPriors of the model; null if it does not know its dataset's mix
 * @param {(choice: "equal" | "dataset") => void} onpriors
 */
export function probabilityCard(answer, classPriors, onpriors) {
  return el(
    "section",
    { class: "card", "aria-labelledby": "h-differential" },
    el("h2", { id: "h-differential" }, "Probability of each diagnosis"),
    probabilityTable(answer),
    el("p", { class: "small", id: "not-known" }, lacking(answer)),
    classPriors && priorsChoice(answer, onpriors),
  );
}

function lacking(answer) {
  const [dangerous, others] = [true, false].map((malignant) =>
    answer.not_known.filter((one) => one.malignant === malignant).map((one) => one.name),
  );
  const names = [...(dangerous.length ? [`${listed(dangerous, "and")} (can be dangerous)`] : []), ...others];
  return names.length
    ? `This model was not trained on ${listed(names, "or")}: it labels such a lesion as one of the diagnoses above, unless it abstains.`
    : "It labels any other disease as one of the diagnoses above, unless it abstains.";
}

function priorsChoice(answer, onpriors) {
  const choice = (value, text, meaning) =>
    el(
      "label",
      { class: "radio" },
      el("input", {
        type: "radio",
        name: "priors",
        value,
        checked: answer.priors_choice === value,
        onchange: () => onpriors(value),
      }),
      el("span", {}, text, el("span", { class: "small" }, meaning)),
    );
  return el(
    "details",
    { class: "priors", open: answer.priors_choice !== "equal" },
    el("summary", {}, "How common are the diagnoses where this photo comes from?"),
    el(
      "fieldset",
      {},
      el("legend", { class: "sr-only" }, "How common are the diagnoses where this photo comes from?"),
      choice("equal", "Equally common", " The photo alone decides."),
      choice("dataset", "As in the training data", " Frequent diagnoses become more probable."),
    ),
    el("p", { class: "small" }, "The flag does not depend on this choice."),
  );
}

export function thresholdCard(answer) {
  const points = Object.values(answer.thresholds).sort((a, b) => b.target_sensitivity - a.target_sensitivity);
  if (!points.length) {
    return el("p", { class: "card" }, "This model was published without tested thresholds.");
  }
  const cell = (label, text) => el("td", {}, el("span", { class: "label" }, label), text);
  const rows = points.map((point) => {
    const [value, cutoff] = percentPair(point.value, point.cutoff);
    return el(
      "tr",
      { class: point.above ? "above" : "" },
      el("th", { scope: "row" }, `${capital(point.catches)}, ${percent(point.target_sensitivity)} of cases`),
      cell("This lesion", `${value} ${point.above ? "▲ above" : "▽ below"} ${cutoff}`),
      cell("Caught", `${point.caught} of ${point.n_positive}`),
      cell("False alarms", `${point.false_alarms} of ${point.n_negative}`),
    );
  });
  const heads = ["Target", "This lesion", "Caught", "False alarms"];
  const few = answer.n_used > 1 ? " They were set on single photos, not on averages of several." : "";
  return el(
    "details",
    { class: "card", id: "thresholds" },
    el("summary", {}, el("h2", {}, "Thresholds and validation results")),
    el(
      "table",
      { class: "points" },
      el(
        "caption",
        {},
        "A lesion at or above a threshold is flagged. Caught and false alarms: on the validation photos, whose " +
          `diagnosis is known. The values assume equally common diagnoses.${few}`,
      ),
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          heads.map((text) => el("th", { scope: "col" }, text)),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );
}

/** The answer without the page's own parts, as a program gets it. */
export function asJson(answer) {
  const photos = answer.photos.map(({ preview, ...photo }) => photo);
  return JSON.stringify({ ...answer, photos }, null, 2);
}

export function takeAwayButtons(actions) {
  const one = (id, text, onclick) => button(text, onclick, { class: "second", id });
  return el(
    "section",
    { class: "buttons take", "aria-label": "Save the answer" },
    one("save-report", "Report", actions.report),
    one("print", "Print", actions.print),
    one("save-overlay", "Overlay (JPEG)", actions.overlay),
    one("save-json", "Data (JSON)", actions.json),
  );
}
