// Draws the table of a batch, sorts and saves it; shared.js stands above this.

let order = { key: null, down: true };

const COLUMNS = [
  { key: "thumbnail", text: "Photo" },
  { key: "image", text: "File", value: (row) => row.image.toLowerCase() },
  { key: "diagnosis", text: "Most probable", value: (row) => row.diagnosis_name ?? "~" },
  { key: "probability", text: "Probability", value: (row) => row.probability ?? -1, number: true },
  { key: "malignant", text: "Malignant, summed", value: (row) => row.malignant_probability ?? -1, number: true },
  { key: "remarks", text: "Thresholds and remarks", value: (row) => remarks(row).join(" ") },
];

watch("value", draw);
draw();

function draw() {
  const batch = props.value;
  content.replaceChildren();
  if (!batch) return;
  if (batch.error) return content.append(failure(batch.error));
  const done = batch.done === batch.total;
  content.append(el("div", { class: "card", id: "progress-card" },
    el("p", { role: "status" }, done ? `All ${batch.total} pictures are done. ` : `${batch.done} of ${batch.total} pictures`, done ? counted(batch.rows) : ""),
    el("progress", { max: batch.total, value: batch.done, "aria-label": "TestImages done" })));
  if (!done) return;
  order = { key: null, down: true };
  content.append(
    el("div", { class: "buttons" },
      el("button", { type: "button", id: "save-csv", onclick: () => save("lesions.csv", "text/csv", `\ufeff${batch.csv}`) }, "Table (CSV)")),
    table(batch.rows));
}

function counted(rows) {
  const failed = rows.filter((row) => row.error).length;
  const abstained = rows.filter((row) => row.abstained).length;
  return `${failed} could not be read, the model abstains on ${abstained}.`;
}

function table(rows) {
  const body = el("tbody", {}, ...rows.map(line));
  const heads = COLUMNS.map((column) => {
    if (!column.value) return el("th", { scope: "col" }, column.text);
    const head = el("th", { scope: "col", "aria-sort": "none" }, el("button", { type: "button", class: "sort", onclick: () => sort(column, head) }, column.text, el("span", { "aria-hidden": "true" }, " ↕")));
    return head;
  });
  function sort(column, head) {
    order = { key: column.key, down: order.key === column.key ? !order.down : column.number === true };
    for (const other of heads) {
      other.setAttribute("aria-sort", "none");
      const arrow = other.querySelector("span");
      if (arrow) arrow.textContent = " ↕";
    }
    head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    head.querySelector("span").textContent = order.down ? " ↓" : " ↑";
    const sign = order.down ? -1 : 1;
    const sorted = [...rows].sort((a, b) => sign * (column.number ? column.value(a) - column.value(b) : String(column.value(a)).localeCompare(String(column.value(b)))));
    body.replaceChildren(...sorted.map(line));
  }
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Results" },
    el("table", { class: "batch" }, el("caption", {}, "One row per picture. Click a heading to sort."), el("thead", {}, el("tr", {}, ...heads)), body));
}

function line(row) {
  const picture = row.thumbnail ? el("img", { src: row.thumbnail, alt: "" }) : "–";
  if (row.error) return el("tr", { class: "failed" }, el("td", {}, picture), el("th", { scope: "row" }, row.image), el("td", { colspan: "4" }, row.error));
  return el("tr", { class: row.abstained ? "abstained" : "" },
    el("td", {}, picture), el("th", { scope: "row" }, row.image),
    el("td", {}, row.diagnosis_name, " ", el("span", { class: "code" }, row.diagnosis)),
    el("td", { class: "number" }, probabilityPercent(row.probability)),
    el("td", { class: "number" }, probabilityPercent(row.malignant_probability)),
    el("td", {}, ...remarks(row).map((remark) => el("span", { class: remark.startsWith("▲") || row.abstained ? "badge malignant" : "badge" }, remark))));
}

function remarks(row) {
  if (row.error) return [row.error];
  if (row.abstained) return ["⚠ abstains: do not use"];
  return Object.entries(row.operating_points).map(([name, reached]) => `${reached ? "▲ above" : "▽ below"} ${name}`);
}
