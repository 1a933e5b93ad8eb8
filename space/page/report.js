// The report: one HTML file without scripts or outside references, which prints on one A4 page.

import { stateOf, whatNow } from "./answer.js";
import { capital, el, percent, percentPair, unbroken } from "./dom.js";
import { colourScale } from "./heatmap.js";

const STYLE = `
body { font: 14px/1.4 system-ui, sans-serif; color: #1c2430; background: #fff; max-width: 52rem; margin: 1.5rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0; }
h2 { font-size: 1rem; margin: .8rem 0 .3rem; }
.verdict { font-size: 1.1rem; font-weight: 650; border-left: 5px solid #a3341b; padding: .4rem .8rem; }
.notice, .left-out { border-left: 4px solid #b26a00; background: #fff6e5; padding: .4rem .8rem; margin: .5rem 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .15rem .6rem .15rem 0; border-bottom: 1px solid #d9dee6; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: grid; gap: .5rem; grid-template-columns: repeat(var(--columns), 1fr); }
figure { margin: 0; }
.pictures img { width: 100%; max-height: var(--height); object-fit: contain; display: block; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2px; }
.scale { width: 100%; height: 10px; display: block; margin-top: .4rem; }
figcaption, .small { font-size: .9em; color: #4c5a68; margin: .2rem 0; overflow-wrap: anywhere; }
@page { size: A4; margin: 12mm; }
@media print {
  body { margin: 0; padding: 0; max-width: none; font-size: 10.5px; line-height: 1.3; }
  h1 { font-size: 15px; }
  h2 { font-size: 12px; margin: .5rem 0 .2rem; }
  .notice, .left-out, .verdict { margin: .3rem 0; padding: .2rem .6rem; }
}`;

/**
 * @param {object} answer
 * @param {object} card of picture.js
 * @returns {Promise<string>} a whole HTML document
 */
export async function reportHtml(answer, card) {
  const policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";
  const head = el(
    "head",
    {},
    el("meta", { charset: "utf-8" }),
    el("meta", { "http-equiv": "Content-Security-Policy", content: policy }),
    el("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }),
    el("title", {}, `Skin lesion report, ${answer.date}`),
    el("style", {}, STYLE),
  );
  const body = el("body", {}, el("main", {}, await content(answer, card)));
  return `<!doctype html>\n<html lang="en">${head.outerHTML}${body.outerHTML}</html>\n`;
}

async function content(answer, card) {
  const used = answer.photos.filter((photo) => photo.used);
  const names = used.map((photo) => `${photo.name} (${photo.size[1]} × ${photo.size[0]} px)`).join(", ");
  const leftOut = answer.photos.filter((photo) => !photo.used);
  const abstained = stateOf(answer) === "abstained";
  const { provenance } = answer;
  return [
    el("h1", {}, "Skin lesion report"),
    el(
      "p",
      { class: "small" },
      `${answer.date} · ${names}${used.length > 1 ? ", probabilities averaged" : ""}`,
    ),
    el("p", { class: "verdict" }, unbroken(answer.verdict)),
    abstained && el("p", { class: "notice" }, unbroken(answer.reason)),
    el("p", {}, el("strong", {}, "What now? "), whatNow(answer)),
    leftOut.map((photo) =>
      el("p", { class: "left-out" }, `${photo.name} was left out. ${photo.error ?? photo.reason ?? ""}`),
    ),
    ...(abstained ? [] : [probabilities(answer), thresholds(answer)]),
    await pictures(answer, card, abstained),
    el("p", { class: "notice" }, answer.notice),
    el(
      "p",
      { class: "small" },
      `Model ${provenance.model_id}, revision ${provenance.revision ?? "local folder"}, ` +
        `weights SHA-256 ${provenance.weights_sha256}, ` +
        `training data ${provenance.data_fingerprint ?? "not recorded"}, ` +
        `package ${provenance.package_version}, licence of the weights: ${answer.license ?? "not stated"}.`,
    ),
  ];
}

function probabilities(answer) {
  const assumed =
    answer.priors_choice === "dataset" ? "as frequent as in the training data" : "equally frequent";
  const rows = answer.differential.map((row) =>
    el(
      "tr",
      {},
      el("td", {}, `${capital(row.name)} (${row.code})`),
      el("td", {}, row.behaviour),
      el("td", { class: "number" }, percent(row.probability)),
    ),
  );
  const lacking = answer.not_known.map((one) => one.name).join(", ");
  return el(
    "section",
    {},
    el("h2", {}, `Probability of each diagnosis, if they are ${assumed}`),
    el("table", {}, heads("Diagnosis", "Behaviour", "Probability"), rows),
    lacking && el("p", { class: "small" }, `This model was not trained on ${lacking}.`),
  );
}

function thresholds(answer) {
  const points = Object.values(answer.thresholds).sort((a, b) => b.target_sensitivity - a.target_sensitivity);
  if (!points.length) return null;
  const rows = points.map((point) => {
    const [value, cutoff] = percentPair(point.value, point.cutoff);
    return el(
      "tr",
      {},
      el("td", {}, `${capital(point.catches)}, ${percent(point.target_sensitivity)} of cases`),
      el("td", {}, `${value}, ${point.above ? "above" : "below"} ${cutoff}`),
      el("td", {}, `${point.caught} of ${point.n_positive}`),
      el("td", {}, `${point.false_alarms} of ${point.n_negative} others`),
    );
  });
  return el(
    "section",
    {},
    el("h2", {}, "Thresholds"),
    el("table", {}, heads("Target", "This lesion", "Caught in validation", "False alarms"), rows),
  );
}

function heads(...texts) {
  return el(
    "tr",
    {},
    texts.map((text) => el("th", { scope: "col", class: text === "Probability" ? "number" : null }, text)),
  );
}

async function pictures(answer, card, abstained) {
  const used = answer.photos.map((photo, index) => ({ photo, index })).filter(({ photo }) => photo.used);
  const several = used.length > 1;
  const figures = [];
  for (const { photo, index } of used) {
    const made = await card.pictures(index, several ? 480 : 800);
    if (!made) continue;
    const image = (canvas, alt) => el("img", { src: canvas.toDataURL("image/jpeg", 0.88), alt });
    if (abstained || !made.overlay) {
      figures.push(
        el("figure", {}, image(made.photo, `Photo ${photo.name}`), el("figcaption", {}, photo.name)),
      );
    } else if (several) {
      const pair = el(
        "div",
        { class: "pair" },
        image(made.photo, "Photo"),
        image(made.overlay, "Heat map over the photo"),
      );
      figures.push(el("figure", {}, pair, el("figcaption", {}, photo.name)));
    } else {
      figures.push(
        el("figure", {}, image(made.photo, "Photo"), el("figcaption", {}, "Photo")),
        el("figure", {}, image(made.heat, "Heat map"), el("figcaption", {}, "Heat map")),
        el("figure", {}, image(made.overlay, "Overlay"), el("figcaption", {}, "Heat map over the photo")),
      );
    }
  }
  const columns = several ? Math.min(used.length, 4) : 3;
  const height = several ? "34mm" : "46mm";
  const grid = el("div", { class: "pictures", style: `--columns: ${columns}; --height: ${height}` }, figures);
  if (abstained) return el("section", {}, el("h2", {}, "Photos"), grid);
  return el(
    "section",
    {},
    el("h2", {}, "Where the score came from"),
    grid,
    el("img", { class: "scale", src: colourScale(), alt: "Colour scale" }),
    el(
      "p",
      { class: "small" },
      `Heat map for ${card.shown().name}; colours from left to right: no contribution to the strongest. ` +
        "It shows where, not why, and does not outline the lesion.",
    ),
  );
}
