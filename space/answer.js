// Draws the answer of one lesion; shared.js stands above this.

const tables = Object.fromEntries(Object.entries(props.colours).map(([name, hex]) => [name, hexToBytes(hex)]));
const view = { photo: 0, map: null, opacity: 0.6, split: 0.5 };

watch("value", draw);
draw();

function draw() {
  const answer = props.value;
  content.replaceChildren();
  if (!answer) return content.append(welcome());
  if (answer.error) return content.append(failure(answer.error));
  Object.assign(view, { photo: 0, map: answer.differential[0].code });
  content.append(
    el("p", { class: "sr-only", role: "status" }, summary(answer)),
    ...warnings(answer),
    el("div", { class: "cards" }, differentialCard(answer), pictureCard(answer), takeAwayCard(answer)),
  );
  // On a phone the answer lies below the upload field: bring it into view.
  if (element.getBoundingClientRect().top > 0.6 * window.innerHeight) {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  }
}

function welcome() {
  return el("div", { class: "card empty" }, el("h2", {}, "The answer appears here"),
    el("p", {}, "Add one photo of a lesion taken through a dermatoscope, or several photos of the same lesion. ",
      "You get the probability of every diagnosis, what it means at a tested threshold, and where in the photo it came from."));
}

function summary(answer) {
  if (answer.abstained) return `The model abstains. ${answer.reason}`;
  const first = answer.differential[0];
  return `Most probable: ${first.name}, ${probabilityPercent(first.probability)}.`;
}

// Before anything else: what makes the answer unusable, or covers only a part of the photos.
function warnings(answer) {
  const boxes = [];
  if (answer.abstained) {
    boxes.push(el("div", { class: "card alert", role: "alert", id: "abstention" },
      el("h2", {}, "The model abstains: do not use this answer"), el("p", {}, answer.reason)));
  }
  for (const number of answer.left_out) {
    boxes.push(el("div", { class: "card warn" },
      el("p", {}, el("strong", {}, `Photo ${number} was left out of the average. `), answer.photos[number - 1].reason)));
  }
  return boxes;
}

function differentialCard(answer) {
  const rows = answer.differential.map((row) =>
    el("tr", {},
      el("th", { scope: "row" }, el("span", { class: "name" }, row.name), " ", el("span", { class: "code" }, row.code), " ", behaviourBadge(row)),
      el("td", { class: "bar-cell", "aria-hidden": "true" },
        el("div", { class: "bar" }, el("div", { class: row.malignant ? "fill malignant" : "fill", style: `width:${100 * row.probability}%` }))),
      el("td", { class: "number" }, probabilityPercent(row.probability))));
  const several = answer.n_photos > 1 ? `Mean of ${answer.n_photos - answer.left_out.length} photos of one lesion. ` : "";
  const points = el("div", { class: "thresholds" }, el("h3", {}, "At tested thresholds"));
  const card = el("section", { class: answer.abstained ? "card muted split" : "card split", "aria-labelledby": "h-diff" },
    el("div", {}, el("h2", { id: "h-diff" }, "Differential diagnosis"), el("table", { class: "differential" },
      el("caption", {}, `${several}Calibrated probabilities, most probable first.`),
      el("thead", { class: "sr-only" }, el("tr", {}, el("th", {}, "Diagnosis"), el("th", {}, "Bar"), el("th", {}, "Probability"))),
      el("tbody", {}, ...rows))), points);
  if (answer.operating_points.length) {
    points.append(el("ul", { class: "points" }, ...answer.operating_points.map((point) =>
      el("li", { class: point.reached ? "reached" : "" },
        el("span", { class: "tag" }, `${point.reached ? "▲ above" : "▽ below"} ${point.name}`), " ", point.sentence))));
    if (answer.n_photos > 1) points.append(el("p", { class: "small" }, "The thresholds were fitted on single photos; an average over several is not quite the same test."));
  } else {
    points.append(el("p", { class: "small" }, "This model was published without tested thresholds."));
  }
  return card;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function behaviourBadge(row) {
  const mark = row.malignant ? "⚠ " : "";
  return el("span", { class: `badge ${row.malignant ? "malignant" : ""}` }, mark + row.behaviour);
}

function takeAwayCard(answer) {
  const stem = (answer.photos[0].name.replace(/\.[^.]*$/, "").replace(/[^\w-]+/g, "_") || "photo").slice(0, 60);
  const model = answer.provenance;
  return el("section", { class: "card", "aria-labelledby": "h-take" },
    el("h2", { id: "h-take" }, "Take it away"),
    el("div", { class: "buttons" },
      el("button", { type: "button", id: "save-report", onclick: () => save(`${stem}-report.html`, "text/html", filledReport(answer)) }, "Report (HTML)"),
      el("button", { type: "button", id: "save-json", onclick: () => save(`${stem}-answer.json`, "application/json", asJson(answer)) }, "Data (JSON)")),
    el("p", { class: "small" }, "Made in your browser from what is on this page; the report shows the heat map that you chose."),
    el("p", { class: "small provenance" }, `Model ${model.model_id}, ${model.revision ? `revision ${model.revision.slice(0, 12)}` : "local folder"}, weights ${model.weights_sha256.slice(0, 12)}, data ${model.data_fingerprint ? model.data_fingerprint.slice(0, 12) : "not recorded"}, package ${model.package_version}. ${answer.date}.`));
}

function pictureCard(answer) {
  const card = el("section", { class: "card", "aria-labelledby": "h-heat" },
    el("h2", { id: "h-heat" }, "Where the score came from (not why)"),
    el("p", { class: "small" }, "Bright areas raised the score of the chosen diagnosis. They do not outline the lesion and prove nothing."));
  const [first, second] = answer.contrast;
  if (answer.photos.length > 1) {
    card.append(choice("Photo", "photo", answer.photos.map((photo, index) => [String(index), `${index + 1}. ${photo.name}`]), "0",
      (value) => { view.photo = Number(value); show(); }));
  }
  const maps = answer.differential.map((row) => [row.code, `${capital(row.name)} (${row.code})`]);
  maps.push(["contrast", `${first} rather than ${second}`]);
  const opacity = el("input", { type: "range", min: 0, max: 100, value: 100 * view.opacity, id: "opacity" });
  const opacityText = el("output", { for: "opacity" }, `${Math.round(100 * view.opacity)} %`);
  opacity.addEventListener("input", () => { view.opacity = opacity.value / 100; opacityText.textContent = `${opacity.value} %`; paint(); });
  const split = el("input", { type: "range", min: 0, max: 100, value: 50, id: "split", "aria-label": "Before and after: how much of the overlay is shown" });
  split.addEventListener("input", () => { view.split = split.value / 100; clip(); });
  const photo = el("img", { class: "picture", id: "original" });
  const heat = el("canvas", { class: "picture", id: "heat", role: "img" });
  const over = el("canvas", { class: "picture", id: "overlay", role: "img" });
  const before = el("img", { class: "picture", alt: "" });
  const after = el("canvas", { class: "picture", "aria-hidden": "true" });
  const divider = el("div", { class: "divider", "aria-hidden": "true" });
  const squashed = el("img", { class: "squashed" });
  const note = el("p", { class: "note", id: "map-note", "aria-live": "polite" });
  const legend = el("div", { class: "legend", "aria-hidden": "true" });
  const squashedText = el("p", { class: "small" });
  card.append(
    choice("Show the evidence for", "map", maps, view.map, (value) => { view.map = value; paint(); }),
    note,
    el("div", { class: "three" },
      el("figure", {}, photo, el("figcaption", {}, "Original")),
      el("figure", {}, heat, el("figcaption", {}, "Heat map")),
      el("figure", {}, over, el("figcaption", {}, "Overlay"))),
    legend,
    el("div", { class: "slider" }, el("label", { for: "opacity" }, "Opacity of the overlay"), opacity, opacityText),
    el("div", { class: "below" },
      el("div", {}, el("h3", {}, "Before and after"),
        el("div", { class: "compare" }, before, after, divider),
        el("div", { class: "slider" }, el("span", { "aria-hidden": "true" }, "Photo"), split, el("span", { "aria-hidden": "true" }, "Overlay"))),
      el("div", { class: "sees" }, el("h3", {}, "What the model sees"), squashed, squashedText)));

  const layers = new Map(); // photo → {image, grey}, decoded once
  function show() {
    const item = answer.photos[view.photo];
    photo.src = before.src = item.picture;
    photo.alt = `Photo ${item.name}`;
    squashed.src = item.model_input;
    squashed.alt = `The photo squashed to a square of ${item.model_input_px} pixels`;
    squashedText.textContent = `The whole photo (${item.width} × ${item.height} px), squashed to ${item.model_input_px} × ${item.model_input_px} px. Details smaller than a pixel here are lost to it.`;
    const ready = layers.get(item) ?? Promise.all([load(item.picture), load(item.maps)]).then(([image, sprite]) => ({ image, grey: pixels(sprite) }));
    layers.set(item, ready);
    ready.then((layer) => { show.layer = layer; paint(); });
  }
  function paint() {
    const layer = show.layer;
    if (!layer) return;
    const item = answer.photos[view.photo];
    const isContrast = view.map === "contrast";
    const index = isContrast ? item.codes.length : item.codes.indexOf(view.map);
    const coloured = colour(layer.grey, item.map_size, index, isContrast);
    for (const canvas of [heat, over, after]) [canvas.width, canvas.height] = [layer.image.naturalWidth, layer.image.naturalHeight];
    fill(heat, coloured.solid, 1);
    for (const canvas of [over, after]) { fill(canvas, layer.image, 1); fill(canvas, coloured.faded, view.opacity); }
    const name = maps.find(([value]) => value === view.map)[1];
    note.textContent = describe(item, view.map, name);
    heat.setAttribute("aria-label", `Heat map: ${note.textContent}`);
    over.setAttribute("aria-label", `Heat map for ${name} over the photo, ${Math.round(100 * view.opacity)} % opaque`);
    legend.replaceChildren(...legendParts(isContrast));
    card.dataset.map = view.map;
    clip();
  }
  function clip() {
    after.style.clipPath = `inset(0 0 0 ${100 * (1 - view.split)}%)`;
    divider.style.left = `${100 * (1 - view.split)}%`;
  }
  function describe(item, map, name) {
    if (map === "contrast") return `Pink areas speak for ${first} rather than ${second}, blue areas the other way round; black is neutral.`;
    const strength = item.strength[map];
    if (strength === 0) return `${name}: no part of this photo speaks for it.`;
    return strength === 1 ? `${name}: the strongest evidence for any diagnosis.` : `${name}: at its strongest spot, ${percent(strength)} of the strongest evidence for any diagnosis.`;
  }
  function legendParts(isContrast) {
    const bytes = tables[isContrast ? "berlin" : "viridis"];
    const stops = [0, 32, 64, 96, 128, 160, 192, 224, 255].map((i) => `rgb(${bytes[3 * i]},${bytes[3 * i + 1]},${bytes[3 * i + 2]})`);
    const words = isContrast ? [`for ${second}`, "neutral", `for ${first}`] : ["none", "half", "strongest for any diagnosis"];
    return [el("div", { class: "scale", style: `background:linear-gradient(90deg,${stops.join(",")})` }), el("div", { class: "ticks" }, ...words.map((word) => el("span", {}, word)))];
  }
  function filled() {
    const item = answer.photos[view.photo];
    return { photo: item.picture, heat: heat.toDataURL("image/jpeg", 0.9), overlay: over.toDataURL("image/jpeg", 0.9),
      caption: `${item.name}. ${note.textContent} Colours: ${view.map === "contrast" ? "berlin" : "viridis"}, one scale for all diagnoses; overlay ${Math.round(100 * view.opacity)} % opaque.` };
  }
  pictureCard.filled = filled;
  show();
  return card;
}

function choice(legend, name, options, chosen, onChoose) {
  return el("fieldset", { class: "choice" }, el("legend", {}, legend), el("div", { class: "chips" }, ...options.map(([value, text]) =>
    el("label", { class: "chip" }, el("input", { type: "radio", name, value, ...(value === chosen ? { checked: "" } : {}), onchange: () => onChoose(value) }), el("span", {}, text)))));
}

// Two versions of one small map: opaque for the heat map, and see-through where there is little evidence.
function colour(grey, [width, height], index, isContrast) {
  const bytes = tables[isContrast ? "berlin" : "viridis"];
  const solid = new ImageData(width, height);
  const faded = new ImageData(width, height);
  for (let i = 0, from = index * width * height; i < width * height; i++, from++) {
    const value = grey[from];
    const weight = isContrast ? Math.abs(value - 128) / 127 : value / 255;
    for (let k = 0; k < 3; k++) solid.data[4 * i + k] = faded.data[4 * i + k] = bytes[3 * value + k];
    solid.data[4 * i + 3] = 255;
    faded.data[4 * i + 3] = 255 * Math.min(1, weight / props.fade_below);
  }
  return { solid: toCanvas(solid), faded: toCanvas(faded) };
}

function toCanvas(data) {
  const canvas = el("canvas", { width: data.width, height: data.height });
  canvas.getContext("2d").putImageData(data, 0, 0);
  return canvas;
}

function fill(canvas, source, alpha) {
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.globalAlpha = alpha;
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
}

function pixels(image) {
  const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data;
  return Uint8Array.from({ length: rgba.length / 4 }, (_, i) => rgba[4 * i]);
}

function load(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture of the answer could not be drawn"));
    image.src = source;
  });
}

function filledReport(answer) {
  const parts = pictureCard.filled();
  const escaped = el("p", {}, parts.caption).innerHTML;
  return answer.report_html.replace("@@photo@@", () => parts.photo).replace("@@heat@@", () => parts.heat)
    .replace("@@overlay@@", () => parts.overlay).replace("@@caption@@", () => escaped);
}

// The numbers without the pictures.
function asJson(answer) {
  const { report_html, photos, ...rest } = answer;
  const bare = photos.map(({ picture, model_input, maps, map_size, ...photo }) => photo);
  return JSON.stringify({ ...rest, photos: bare }, null, 2);
}

function hexToBytes(hex) {
  return Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
}
