// Many lesions: the table of a batch, which it sorts and saves, and of which each row opens; shared.js stands above this.

const COLUMNS = [
  { key: "thumbnail", text: "Photo" },
  { key: "image", text: "File", value: (row) => row.image.toLowerCase() },
  { key: "verdict", text: "Verdict", value: (row) => row.verdict ?? "~" },
  { key: "melanoma", text: "Melanoma", value: (row) => row.probabilities?.MEL ?? -1, number: true },
  { key: "malignant", text: "Malignant, all together", value: (row) => row.malignant_probability ?? -1, number: true },
];
let items = [];
let order;
let running = false; // sent and not yet answered
let asked; // by which an answer to this batch is told from one to an earlier one, which may still be running
let stopped = false; // while it was running: gradio then reports a failure, which is none

const field = photoField({ id: "batch-files", title: "Many photos, each a lesion of its own", take: add, accept: "image/*,.heic,.heif,.tif,.tiff,.bmp,.zip",
  help: "Up to 200 photos, as files or in zip archives, which are read without being unpacked to disk. They are deleted from this server within minutes." });
const place = el("div", { id: "batch-answer" });
content.append(field, place);
// What comes late of a batch that was cleared is not shown.
watch("value", () => {
  const batch = props.value || null;
  if (batch?.asked && batch.asked !== asked) return;
  if (batch?.error && stopped) {
    stopped = false;
    return;
  }
  if (batch?.error || batch?.rows) running = false;
  draw(items.length ? batch : null);
});

async function add(files) {
  const batch = files.map((file) => ({ file }));
  items = batch;
  asked = Math.random();
  draw({ done: 0, total: 0 });
  try {
    const photos = await sent(batch);
    if (items !== batch) return;
    running = true;
    trigger("photos", { photos, asked });
  } catch {
    if (items === batch) draw({ error: UNSENT });
  }
}

function halt() {
  stopped = running;
  running = false;
  items = [];
  draw(null);
  trigger("halt");
}

function draw(batch) {
  place.replaceChildren();
  if (!batch) return;
  if (batch.error) {
    place.append(failure(batch.error));
    return goTo(root.getElementById("failure"));
  }
  const done = batch.rows !== undefined;
  const text = done ? counted(batch.rows) : batch.total ? `${batch.done} of ${batch.total} photos` : "Sending the files …";
  place.append(el("div", { class: "card" }, el("h2", { id: "batch-status", tabindex: -1, role: "status" }, text),
    done ? "" : el("progress", { max: batch.total || 1, value: batch.done, "aria-label": "Photos done" }),
    el("div", { class: "buttons" }, done ? el("button", { type: "button", id: "save-csv", onclick: () => saveText("lesions.csv", "text/csv", `\ufeff${batch.csv}`) }, "Table (CSV)") : "",
      el("button", { type: "button", class: "second", id: "batch-stop", onclick: halt }, done ? "Clear" : "Stop and clear"))));
  if (!done) return;
  place.append(table(batch.rows));
  goTo(root.getElementById("batch-status"));
}

function counted(rows) {
  const failed = rows.filter((row) => row.error).length;
  const abstained = rows.filter((row) => row.abstained).length;
  const parts = [`${rows.length} photos`];
  if (failed) parts.push(`${failed} could not be read`);
  if (abstained) parts.push(`the model abstains on ${abstained}`);
  return `${parts.join(", ")}.`;
}

function table(rows) {
  const columns = COLUMNS.filter((column) => column.key !== "melanoma" || rows.some((row) => row.probabilities?.MEL !== undefined));
  const body = el("tbody", {});
  const heads = columns.map((column) => {
    if (!column.value) return el("th", { scope: "col" }, column.text);
    const head = el("th", { scope: "col", class: column.number ? "number" : "" }, el("button", { type: "button", class: "sort", onclick: () => sort(column) }, column.text, el("span", { "aria-hidden": "true" }, "")));
    column.head = head;
    return head;
  });
  function sort(column) {
    order = { key: column.key, down: order?.key === column.key ? !order.down : column.number === true };
    for (const one of columns.filter((other) => other.value)) {
      one.head.setAttribute("aria-sort", one !== column ? "none" : order.down ? "descending" : "ascending");
      one.head.querySelector("span").textContent = one !== column ? " ↕" : order.down ? " ↓" : " ↑";
    }
    const sign = order.down ? -1 : 1;
    body.replaceChildren(...[...rows].sort((a, b) => sign * (column.number ? column.value(a) - column.value(b) : String(column.value(a)).localeCompare(String(column.value(b))))).map(line));
  }
  order = null;
  sort(columns.find((column) => column.number)); // by what the first thresholds are set on
  return el("table", { class: "batch" }, el("caption", {}, "The most suspicious first. Click a heading to sort, a verdict to see where it came from."), el("thead", {}, el("tr", {}, ...heads)), body);
}

function line(row) {
  const picture = el("td", { class: "picture-cell" }, row.thumbnail ? el("img", { src: row.thumbnail, alt: "" }) : "–");
  const name = el("th", { scope: "row" }, row.image);
  if (row.error) return el("tr", { class: "failed" }, picture, name, el("td", { colspan: 3 }, row.error));
  const number = (label, value) => el("td", { class: "number" }, el("span", { class: "label" }, label), percent(value));
  const above = !row.abstained && Object.values(row.operating_points).some(Boolean);
  return el("tr", { class: row.abstained ? "abstained" : above ? "above" : "" }, picture, name,
    el("td", {}, el("button", { type: "button", class: "open", onclick: () => open(row) }, row.verdict)),
    row.probabilities.MEL === undefined ? "" : number("Melanoma", row.probabilities.MEL), number("Malignant, all together", row.malignant_probability));
}

async function open(row) {
  const status = root.getElementById("batch-status");
  const text = counted(props.value.rows);
  status.textContent = `Opening ${row.image} …`;
  window.addEventListener("lesion-tab", () => { status.textContent = text; }, { once: true });
  try {
    question("open", { photos: await sent(items), number: row.number });
  } catch {
    status.textContent = UNSENT;
  }
}
