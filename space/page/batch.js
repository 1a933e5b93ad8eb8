// The tab "Batch": many photos, each a lesion of its own; a table sorted by what is flagged, whose rows open.

import { alertBox, button, capital, el, goTo, percent, picker, save, textBlob, unbroken } from "./dom.js";
import { MAX_PHOTOS_A_BATCH } from "./engine.js";
import { photoField } from "./photofield.js";
import { isZip, unzip } from "./zip.js";

const ROWS_A_FRAME = 20; // of the table: 200 at once would stop the page for a tenth of a second

/**
 * @param {{engine: object, about: object, root: HTMLElement, openRow: (photo: object, row: object) => void,
 *   showTab: (name: string) => void}} page
 */
export function batchPanel({ engine, about, root, openRow, showTab }) {
  const field = photoField({
    id: "batch-files",
    title: "Many photos, each a lesion of its own",
    accept: "image/*,.heic,.heif,.tif,.tiff,.bmp,.zip",
    take: (files) => add(files),
    help: [`Up to ${MAX_PHOTOS_A_BATCH} photos, as files or in zip archives. ${engine.privacy}`],
  });
  let priors = "equal";
  const choice =
    about.model.class_priors &&
    picker(
      "batch-priors",
      "How common are the diagnoses where these photos come from?",
      [
        ["equal", "Equally common"],
        ["dataset", "As in the training data"],
      ],
      priors,
      (value) => {
        priors = value;
        if (chosen) add(chosen);
      },
    );
  const place = el("div", { class: "panel-content" });
  const node = el("div", { class: "panel-content" }, field, choice, place);
  let stop = null; // an AbortController while a batch runs
  let chosen = null; // the files of the batch that is shown

  async function add(files) {
    stop?.abort();
    chosen = files;
    stop = new AbortController();
    const { signal } = stop;
    let photos;
    try {
      photos = await listPhotos(files);
    } catch (error) {
      return signal.aborted || fail(error.message);
    }
    if (signal.aborted) return;
    const rows = [];
    const status = el("h2", { id: "batch-status", tabindex: -1 }, `0 of ${photos.length} photos`);
    const bar = el("progress", { max: photos.length, value: 0, "aria-label": "Photos done" });
    place.replaceChildren(
      el(
        "section",
        { class: "card" },
        status,
        bar,
        el("div", { class: "buttons" }, clearButton("Stop and clear")),
      ),
    );
    goTo(status);
    const onRow = (row) => {
      if (signal.aborted) return;
      rows.push(row);
      bar.value = rows.length;
      status.textContent = `${rows.length} of ${photos.length} photos`;
    };
    try {
      await engine.batch(photos, { priors }, onRow, signal);
      if (!signal.aborted) draw(photos, rows);
    } catch (error) {
      if (!signal.aborted) fail(error.message, rows.length ? () => draw(photos, rows) : null);
    }
  }

  function fail(sentence, keep) {
    const box = alertBox("The batch stopped", sentence);
    if (keep) keep();
    place.prepend(box);
    if (!keep) place.replaceChildren(box);
    goTo(box);
  }

  function clearButton(text) {
    const clear = () => {
      stop?.abort();
      chosen = null;
      place.replaceChildren();
      field.querySelector(".choose").focus();
    };
    return button(text, clear, { class: "second", id: "batch-stop" });
  }

  function draw(photos, rows) {
    const sorted = rows.map((row, index) => ({ row, photo: photos[index] })).sort(mostUrgentFirst);
    const answered = sorted.filter(({ row }) => !row.error);
    const status = el("h2", { id: "batch-status", tabindex: -1 }, counted(rows));
    const csv = () =>
      save(
        root,
        "lesions.csv",
        textBlob(
          "text/csv",
          toCsv(
            sorted.map(({ row }) => row),
            about,
          ),
        ),
      );
    const open = (at) => {
      const { photo } = answered[at];
      const back = () => {
        showTab("batch");
        place.querySelectorAll(".open")[at]?.focus();
      };
      showTab("lesion");
      openRow(photo, { at, of: answered.length, go: open, back, priors });
    };
    place.replaceChildren(
      el(
        "section",
        { class: "card" },
        status,
        el(
          "div",
          { class: "buttons no-print" },
          button("Table (CSV)", csv, { id: "save-csv" }),
          clearButton("Clear"),
        ),
      ),
      table(sorted, (entry) => open(answered.indexOf(entry))),
      el("p", { class: "only-print small" }, `${about.model.notice} Model ${about.model.id}.`),
    );
    goTo(status);
  }

  return { node, add };
}

/** Unpack archives; a file that is not a photo is kept, and gets a row that says so. */
async function listPhotos(files) {
  const photos = [];
  for (const file of files) {
    if (await isZip(file)) photos.push(...(await unzip(file)).filter((photo) => !isNoPhoto(photo.name)));
    else photos.push({ name: file.name, blob: file, error: null });
    if (photos.length > MAX_PHOTOS_A_BATCH)
      throw new Error(`The limit is ${MAX_PHOTOS_A_BATCH} photos; choose fewer at a time.`);
  }
  if (!photos.length)
    throw new Error("There is no photo in it; choose image files, or a zip archive of image files.");
  return photos;
}

/** Tables and notes that come with the photos of an archive. */
function isNoPhoto(name) {
  return /\.(csv|tsv|txt|json|md|xlsx?|pdf|xml|html?|db|ini)$/i.test(name);
}

function rank({ error, abstained, flagged }) {
  if (error) return 3;
  if (abstained) return 1;
  return flagged.length ? 0 : 2;
}

function mostUrgentFirst({ row: a }, { row: b }) {
  return rank(a) - rank(b) || (b.malignant_probability ?? 0) - (a.malignant_probability ?? 0);
}

function hasThresholds({ operating_points: points }) {
  return Object.keys(points ?? {}).length > 0;
}

function counted(rows) {
  const count = (test) => rows.filter(test).length;
  const failed = count((row) => row.error);
  const flagged = count((row) => rank(row) === 0);
  const abstained = count((row) => rank(row) === 1);
  const parts = [`${rows.length} ${rows.length === 1 ? "photo" : "photos"}`];
  if (rows.some(hasThresholds)) parts.push(`${flagged} flagged`);
  if (abstained) parts.push(`${abstained} without an answer`);
  if (failed) parts.push(`${failed} could not be read`);
  return `${parts.join(", ")}.`;
}

const RESULTS = [
  ["Flagged", "flagged"],
  ["No answer", "abstained"],
  ["Not flagged", "clear"],
  ["Not read", "failed"],
  ["No threshold", "clear"],
];

function table(sorted, open) {
  const knowsMalignant = sorted.some(({ row }) => row.malignant_probability !== undefined);
  const line = (entry) => {
    const { row } = entry;
    const place = rank(row);
    const [text, kind] = RESULTS[place === 2 && !hasThresholds(row) ? 4 : place];
    const picture = el(
      "td",
      { class: "picture-cell" },
      row.thumbnail ? el("img", { src: row.thumbnail, alt: "" }) : null,
    );
    const tag = el("td", { class: "result-cell" }, el("span", { class: `tag ${kind}` }, text));
    if (row.error) {
      const columns = knowsMalignant ? 3 : 2;
      return el(
        "tr",
        { class: kind },
        picture,
        el("th", { scope: "row" }, row.name),
        tag,
        el("td", { colspan: columns, class: "why" }, row.error),
      );
    }
    const name = button(row.name, () => open(entry), { class: "open", title: unbroken(row.verdict) });
    const number = (label, value) =>
      el("td", { class: "number" }, el("span", { class: "label" }, label), value);
    const hasAnswer = !row.abstained;
    return el(
      "tr",
      { class: kind },
      picture,
      el("th", { scope: "row" }, name),
      tag,
      el("td", { class: "diagnosis" }, hasAnswer ? capital(row.diagnosis_name) : "–"),
      number("", hasAnswer ? percent(row.probability) : "–"),
      knowsMalignant && number("malignant ", hasAnswer ? percent(row.malignant_probability) : "–"),
    );
  };
  const heads = [
    "Photo",
    "File",
    "Result",
    "Most likely",
    "Probability",
    ...(knowsMalignant ? ["Malignant (total)"] : []),
  ];
  const order = knowsMalignant ? "; within each by the probability of malignancy" : "";
  return el(
    "table",
    { class: "batch" },
    el(
      "caption",
      {},
      `Flagged first, then no answer, then not flagged${order}. ` +
        "Not flagged does not rule out disease. A file name opens the photo.",
    ),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        heads.map((text) =>
          el("th", { scope: "col", class: /Prob|Malig/.test(text) ? "number" : null }, text),
        ),
      ),
    ),
    appendRows(
      el("tbody"),
      sorted.map((entry) => () => line(entry)),
    ),
  );
}

/** Make the rows of a table's body a few a frame; stop when somebody clears the table. */
function appendRows(body, makers) {
  const rest = makers.splice(ROWS_A_FRAME);
  body.append(...makers.map((make) => make()));
  if (rest.length) requestAnimationFrame(() => body.isConnected && appendRows(body, rest));
  return body;
}

/** The columns of the server's table (modeling/rows.py); cells that a spreadsheet would run as a formula are made harmless. */
function toCsv(rows, about) {
  const answered = rows.find((row) => !row.error);
  const points = Object.keys(answered?.operating_points ?? {});
  const { provenance } = about.model;
  const columns = [
    ...["image", "verdict", "diagnosis", "probability", "flagged", ...about.model.codes],
    ...(answered?.malignant_probability === undefined ? [] : ["malignant_probability"]),
    ...["abstained", "reason", ...points, "error", ...Object.keys(provenance)],
  ];
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r\n＝＋－＠]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = rows.map((row) => {
    const flagged = (row.flagged ?? []).join("; ");
    const values = {
      ...provenance,
      ...row,
      image: row.name,
      flagged,
      ...row.probabilities,
      ...row.operating_points,
    };
    return columns.map((name) => cell(values[name])).join(",");
  });
  return `\ufeff${[columns.map(cell).join(","), ...lines].join("\r\n")}\r\n`;
}
