// The tab "Model": what a reviewer asks, from metrics.json; every term has its meaning beside it.

import { capital, el, listed, percent } from "./dom.js";

const COLUMNS = { age_approx: "age", anatom_site_general: "body site" };
const FAR = {
  blank: "blank images",
  drawing: "drawings",
  scene: "images of scenes",
  texture: "images of textures",
};
const RECALL = "fraction of its photos that are recognised";
const PRECISION = "fraction of the photos given this diagnosis that have it";

/** @param {object} about */
export function modelPanel(about) {
  const { metrics } = about;
  const problem = (sentence) =>
    el(
      "section",
      { class: "card alert", id: "no-card" },
      el("p", {}, `The numbers of this model cannot be shown here. ${sentence}`),
    );
  if (!metrics) return problem(about.metrics_problem ?? "It was published without metrics.json.");
  try {
    return el("div", { class: "panel-content reading" }, whole(metrics, about));
  } catch (error) {
    console.warn(error);
    return problem("This page cannot read this version of metrics.json.");
  }
}

function whole(metrics, about) {
  return [
    summary(metrics),
    el(
      "div",
      { class: "tables" },
      keyNumbers(metrics),
      thresholds(metrics),
      byDiagnosis(metrics),
      noAnswer(metrics, about.model.names),
    ),
    figures(about.figures ?? []),
  ];
}

function summary({ model, data, test, intervals }) {
  const leak = data.leakage?.overall;
  const names = model.codes.map((code) => model.names[code]);
  const leaking =
    leak === null || leak === undefined
      ? "It is unknown how many of these images show a lesion that is also in training."
      : leak === 0 && data.split_unit === "lesion"
        ? `No lesion is both in training and in the test${data.test_without_lesion_id ? ", as far as known: some images have no lesion id" : ""}.`
        : `${percent(leak)} of these images show a lesion that is also in training.`;
  const sources = Object.keys(data.sources ?? {});
  const dataset = data.synthetic
    ? "synthetic drawings"
    : (data.dataset ?? "a dataset without a name") +
      (sources.some((name) => name !== "unknown")
        ? ` (${sources.length > 1 ? "sources" : "source"} ${listed(sources, "and")})`
        : "");
  const level = percent(intervals?.level ?? 0.95);
  return el(
    "section",
    { class: "card" },
    el("h2", {}, "How good the model is"),
    el(
      "p",
      {},
      `${model.architecture}, trained on ${dataset} to distinguish ${listed(names, "and")}. ` +
        `Measured on ${test.n_images} test images of ${test.n_lesions} lesions. ${leaking}`,
    ),
    el(
      "p",
      { class: "small" },
      `In brackets: ${level} intervals; for the calibration error, the range of a perfectly calibrated model. ` +
        "Probabilities and thresholds assume equally common diagnoses, unless a line says otherwise.",
    ),
  );
}

function table(caption, heads, rows) {
  const head = heads.map(([text, meaning]) =>
    el("th", { scope: "col" }, text, meaning && el("span", { class: "term" }, meaning)),
  );
  return el(
    "section",
    { class: "card" },
    el(
      "table",
      {},
      el("caption", {}, caption),
      el("thead", { class: heads.some(([text]) => text) ? null : "sr-only" }, el("tr", {}, head)),
      el("tbody", {}, rows),
    ),
  );
}

function line(name, meaning, ...cells) {
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, name, meaning && el("span", { class: "term" }, meaning)),
    cells.map((cell) => el("td", {}, cell)),
  );
}

/** A number with its interval, in percent, or why there is none. */
function estimate(entry) {
  if (!entry) return "–";
  if (entry.value === null)
    return el("span", { class: "small" }, `not known: ${entry.reason || "too few images"}`);
  const bounds = entry.if_calibrated ?? entry;
  const hasInterval = bounds.low !== null && bounds.low !== undefined;
  const range =
    hasInterval && `${percent(bounds.low)} to ${percent(bounds.high)}`.replaceAll("\u00a0%", "", 1);
  const tail = entry.if_calibrated ? " if perfect" : "";
  return [percent(entry.value), " ", range && el("span", { class: "interval" }, `(${range}${tail})`)];
}

function keyNumbers({ test, calibration, baselines }) {
  const seen = (row) =>
    Object.entries(COLUMNS).reduce((text, [column, words]) => text.replace(column, words), row.sees);
  const rows = [
    line(
      "Balanced accuracy",
      "fraction recognised, averaged over the diagnoses",
      estimate(test.balanced_accuracy),
    ),
    ...["metadata_only", "majority"]
      .filter((name) => baselines?.[name]?.sees) // older files may hold a reason instead
      .map((name) =>
        line(
          "… without the photo",
          `for comparison: a rule that uses ${seen(baselines[name])}`,
          estimate(baselines[name].balanced_accuracy),
        ),
      ),
    line("Accuracy", "fraction recognised, at the dataset's mix of diagnoses", estimate(test.accuracy)),
    line(
      "AUROC",
      "how often a photo with a diagnosis scores higher for it than one without",
      estimate(test.macro_auroc),
    ),
    line(
      "Calibration error",
      "average gap between predicted probability and observed frequency",
      estimate(calibration?.test?.after?.ece),
    ),
  ];
  return table(
    "Key numbers",
    [
      ["Number", ""],
      ["Value", ""],
    ],
    rows,
  );
}

function thresholds({ operating_points: points, model }) {
  const measured = (points ?? []).filter((point) => point.test);
  measured.sort((a, b) => b.target_sensitivity - a.target_sensitivity);
  if (!measured.length)
    return el("p", { class: "card" }, "This model was published without tested thresholds.");
  const target = ({ codes }) =>
    codes.length === 1
      ? model.names[codes[0]]
      : listed(
          codes.map((code) => model.names[code]),
          "or",
        );
  const rows = measured.map((point) =>
    line(
      `${capital(target(point))}, ${percent(point.target_sensitivity)} of cases`,
      `flagged from ${percent(point.threshold)} on`,
      estimate(point.test.sensitivity),
      estimate(point.test.specificity),
    ),
  );
  return table(
    "Thresholds on test",
    [
      ["Target", ""],
      ["Sensitivity", "fraction of them that is flagged"],
      ["Specificity", "fraction of the others that is not flagged"],
    ],
    rows,
  );
}

function byDiagnosis({ test, model }) {
  const rows = Object.entries(test.per_class).map(([code, row]) =>
    line(
      capital(model.names[code] ?? code),
      `${code}, ${row.n_images} images`,
      estimate(row.recall),
      estimate(row.precision),
    ),
  );
  const heads = [
    ["Diagnosis", ""],
    ["Recall", RECALL],
    ["Precision", PRECISION],
  ];
  return table("By diagnosis", heads, rows);
}

function noAnswer({ abstention }, names) {
  if (!abstention?.test) return null;
  const rows = [
    line("Test photos", "the diagnoses that it knows", estimate(abstention.test.abstained)),
    ...Object.entries(abstention.near ?? {}).map(([code, row]) =>
      line(
        capital(names[code] ?? code),
        `a diagnosis that it was not trained on, ${row.n_images} images`,
        estimate(row.abstained),
      ),
    ),
    ...Object.entries(abstention.far ?? {}).map(([kind, row]) =>
      line(capital(FAR[kind] ?? kind), `no lesion, ${row.n_images} images`, estimate(row.abstained)),
    ),
  ];
  return table(
    "How often it gives no answer",
    [
      ["Images", ""],
      ["No answer", ""],
    ],
    rows,
  );
}

function figures(list) {
  if (!list.length) return null;
  const one = ({ title, caption, alt, src }) => {
    const image = el("img", { src, alt, loading: "lazy" });
    const large = el("dialog", { class: "large" }, el("img", { src, alt, loading: "lazy" }));
    const close = el("button", { type: "button", class: "second", onclick: () => large.close() }, "Close");
    large.prepend(close);
    large.addEventListener("click", (event) => event.target === large && large.close());
    return el(
      "figure",
      { class: "card" },
      el("h3", {}, title),
      el(
        "button",
        {
          type: "button",
          class: "enlarge",
          "aria-label": `Enlarge: ${title}`,
          onclick: () => large.showModal(),
        },
        image,
      ),
      el("figcaption", { class: "small" }, caption),
      large,
    );
  };
  return el(
    "section",
    { "aria-labelledby": "figures-title" },
    el("h2", { id: "figures-title" }, "Figures"),
    el("div", { class: "figures" }, list.map(one)),
  );
}
