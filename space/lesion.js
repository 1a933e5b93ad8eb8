// One lesion: its photos, and the answer; shared.js stands above this.

const tables = Object.fromEntries(Object.entries(props.colours).map(([name, hex]) => [name, hexToBytes(hex)]));
const IMAGES = "image/*,.heic,.heif,.tif,.tiff,.bmp";
const phone = matchMedia("(max-width: 900px)");
let items = []; // what the visitor added: {file, path, at}
let view;
let answer = props.value || null;

const aside = el("div", { class: "side" });
const answerPlace = el("div", { class: "main", id: "answer" });
content.append(el("div", { class: "layout" }, aside, answerPlace));
const field = photoField({ id: "photos", title: "Photos of one lesion", accept: IMAGES, take: add,
  help: "Close-ups taken through a dermatoscope, sharp, with the whole lesion. Up to 8 photos of the same lesion are averaged. JPEG, PNG, HEIC, WebP, TIFF, BMP or GIF. They are deleted from this server within minutes and used for nothing else." });

watch("value", () => {
  const next = props.value || null;
  if (!next?.asked || next.asked === window.lesionAsked) show(next);
});
draw();

function show(next) {
  answer = next;
  draw();
}

function draw() {
  if (answer?.opened) {
    items = [];
    window.showLesionTab("lesion");
  }
  const change = el("details", { class: "change", ...(answer && !answer.error && phone.matches ? {} : { open: "" }) },
    el("summary", {}, "Add or change photos"), field, samples());
  aside.replaceChildren(...(answer ? [photoList(answer)] : []), change);
  if (!answer) return answerPlace.replaceChildren(welcome());
  if (answer.error) {
    const box = failure(answer.error);
    answerPlace.replaceChildren(box);
    return goTo(box);
  }
  view = { photo: answer.photos.findIndex((photo) => photo.used), map: answer.diagnosis, opacity: 0.6, split: 0.5, zoom: 1 };
  const picture = pictureCard(answer);
  const verdict = verdictCard(answer);
  answerPlace.replaceChildren(verdict,
    el("div", { class: answer.abstained ? "cards muted" : "cards" },
      el("div", { class: "main" }, probabilityCard(answer), thresholdCard(answer)), el("div", { class: "main" }, picture, takeAway(answer, picture))));
  goTo(verdict.querySelector("#verdict"));
}

function add(files) {
  items.push(...files.map((file) => ({ file })));
  ask();
}

async function ask() {
  window.lesionAsked = null; // answers to what was asked before are of other photos
  if (!items.length) return show(null);
  answerPlace.replaceChildren(working(items.length === 1 ? "Reading the photo …" : `Reading ${items.length} photos …`));
  const asked = [...items];
  try {
    const photos = await sent(asked);
    if (asked.length === items.length && asked.every((item, index) => item === items[index])) question("photos", { photos });
  } catch {
    show({ error: UNSENT });
  }
}

function welcome() {
  return el("div", { class: "card empty" }, el("h2", {}, "The answer appears here"),
    el("p", {}, "First one line: above or below the tested thresholds, and the most probable diagnosis. Then every probability, and where in the photo the score came from."));
}

function samples() {
  const { samples: known, samples_source: source } = props;
  if (!known.length) return el("p", { class: "small", id: "no-samples" }, "This model brings no examples; it expects a dermoscopic close-up of one lesion.");
  return el("section", { id: "examples", "aria-labelledby": "examples-title" }, el("h3", { id: "examples-title" }, "No photo at hand? Examples of known diagnosis"),
    el("div", { class: "samples" }, ...known.map((sample, index) => el("button", { type: "button", class: "sample", onclick: () => {
      items = [];
      answerPlace.replaceChildren(working("Reading the example …"));
      question("example", { index });
    } }, el("img", { src: sample.thumbnail, alt: "" }), el("span", {}, sample.about)))),
    source ? el("p", { class: "small" }, source) : "");
}

// All photos that were sent, each marked used or left out.
function photoList(answer) {
  const photos = answer.photos ?? items.map((item) => ({ name: item.file.name }));
  return el("ul", { class: "photos", "aria-label": "Photos of this lesion" }, ...photos.map((photo, index) => el("li", { class: photo.used === false ? "out" : "" },
    photo.thumbnail ? el("img", { src: photo.thumbnail, alt: "" }) : el("span", { class: "no-picture", "aria-hidden": "true" }, "?"),
    el("span", { class: "about" }, el("span", { class: "file", title: photo.name }, photo.name), el("span", { class: "state" }, photo.used === undefined ? "" : photo.used ? (answer.abstained ? "looked at" : "used") : "left out")),
    items.length ? el("button", { type: "button", class: "remove", "aria-label": `Remove ${photo.name}`, onclick: () => { items.splice(index, 1); ask(); } }, "✕") : "")));
}

function verdictCard(answer) {
  const above = Object.values(answer.operating_points).some(Boolean);
  const several = answer.photos.length > 1 ? `${answer.n_used} of ${answer.photos.length} photos ${answer.n_used > 1 ? "averaged" : "used"}. ` : "";
  const leftOut = answer.photos.filter((photo) => !photo.used);
  return el("section", { class: `card verdict ${answer.abstained ? "alert" : above ? "above" : ""}`, ...(answer.abstained ? { id: "abstention" } : {}) },
    el("h2", { id: "verdict", tabindex: -1 }, answer.verdict.replaceAll(" %", "\u00a0%")),
    answer.abstained ? el("p", {}, answer.reason) : "",
    several || answer.example ? el("p", { class: "small" }, several, answer.example ?? "") : "",
    ...leftOut.map((photo) => el("p", { class: "warn" }, el("strong", {}, `${photo.name} was left out. `), photo.reason)));
}

function probabilityCard(answer) {
  const rows = answer.differential.map((row) => el("tr", { class: row.code === answer.diagnosis ? "first" : "" },
    el("th", { scope: "row" }, el("span", { class: "name" }, row.name), " ", row.malignant ? el("span", { class: "badge" }, `⚠ ${row.behaviour}`) : ""),
    el("td", { class: "number" }, percent(row.probability)),
    el("td", { class: "bar-cell", "aria-hidden": "true" }, el("div", { class: "bar" }, el("div", { class: row.malignant ? "fill malignant" : "fill", style: `width:${100 * row.probability}%` })))));
  const [dangerous, others] = [true, false].map((malignant) => answer.not_known.filter((one) => one.malignant === malignant).map((one) => one.name));
  const lacking = [...(dangerous.length ? [`${listed(dangerous, "and")} (⚠ can be dangerous)`] : []), ...others];
  return el("section", { class: "card", "aria-labelledby": "h-diff" }, el("h2", { id: "h-diff" }, "Probability of each diagnosis"),
    el("table", { class: "differential" },
      el("thead", { class: "sr-only" }, el("tr", {}, el("th", {}, "Diagnosis"), el("th", {}, "Probability"), el("th", {}, "Bar"))),
      el("tbody", {}, ...rows)),
    el("p", { class: "small", id: "not-known" }, lacking.length ? `This model cannot recognise ${listed(lacking, "or")}: it labels them as one of the diagnoses above.` : "It labels any other disease as one of the diagnoses above, too."));
}

function listed(words, last) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words.at(-1)}`;
}

function thresholdCard(answer) {
  const points = Object.values(answer.thresholds).sort((a, b) => b.target_sensitivity - a.target_sensitivity);
  if (!points.length) return el("section", { class: "card" }, el("h2", {}, "Thresholds"), el("p", {}, "This model was published without tested thresholds."));
  const cell = (label, ...parts) => el("td", {}, el("span", { class: "label" }, label), ...parts);
  const figure = (...parts) => el("span", { class: "figure" }, ...parts);
  const line = (point) => el("tr", { class: point.above ? "above" : "" },
    el("th", { scope: "row" }, `${point.in_words.target} of ${point.catches}`),
    cell("This lesion", figure(`${point.in_words.value} `, el("strong", {}, point.above ? "▲ above" : "▽ below")), " ", figure(`cut-off ${point.in_words.cutoff}`)),
    cell("Caught", figure(`${point.caught} of ${point.n_positive}`)), cell("False alarms", figure(`${point.false_alarms} of ${point.n_negative}`)));
  const few = answer.n_used > 1 ? " They were set on single photos; the mean of several is not quite the same test." : "";
  return el("details", { class: "card", id: "thresholds", ...(phone.matches ? {} : { open: "" }) }, el("summary", {}, el("h2", {}, "Thresholds, and how they did")),
    el("table", { class: "points" }, el("caption", {}, `Lesions at or above a threshold are flagged. Being below it is no all-clear. Caught, and false alarms among the others: how it did on the validation photos, whose diagnosis is known.${few}`),
      el("thead", {}, el("tr", {}, ...["Set to catch", "This lesion", "Caught", "False alarms"].map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", {}, ...points.map(line))));
}

function takeAway(answer, picture) {
  const stem = (answer.photos[view.photo].name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "_") || "photo").slice(0, 60);
  const button = (id, text, onclick) => el("button", { type: "button", class: "second", id, onclick }, text);
  return el("section", { class: "buttons take", "aria-label": "Take the answer away" },
    button("save-report", "Report", () => saveText(`${stem}-report.html`, "text/html", filledReport(answer, picture.filled()))),
    button("save-json", "Data (JSON)", () => saveText(`${stem}-answer.json`, "application/json", asJson(answer))),
    button("save-overlay", "Overlay (JPEG)", () => root.getElementById("overlay").toBlob((blob) => save(`${stem}-overlay.jpg`, blob), "image/jpeg", 0.92)));
}

function pictureCard(answer) {
  const card = el("section", { class: "card", "aria-labelledby": "h-heat" }, el("h2", { id: "h-heat" }, "Where the score came from"));
  const maps = answer.differential.map((row) => [row.code, row.name]);
  const [first, second] = answer.contrast.map((code) => new Map(maps).get(code));
  maps.push(["contrast", `${first} rather than ${second}`]);
  const used = answer.photos.map((photo, index) => [index, photo]).filter(([, photo]) => photo.used);
  const pick = (id, label, options, onchange) => el("label", { class: "pick", for: id }, label, el("select", { id, onchange: (event) => onchange(event.target.value) },
    ...options.map(([value, text]) => el("option", { value }, text))));
  const range = (id, text, value, oninput) => el("label", { class: "pick", for: id }, text, el("input", { type: "range", id, min: 0, max: 100, value, oninput: (event) => oninput(event.target.value / 100) }));

  const photo = el("img", { class: "picture", id: "original", draggable: "false" });
  const over = el("canvas", { class: "picture", id: "overlay", role: "img" });
  const heat = el("canvas", { class: "picture", id: "heat", role: "img" });
  const squashed = el("img", { class: "squashed", id: "model-input" });
  const squashedText = el("p", { class: "small" });
  const handle = el("div", { class: "handle", id: "handle", role: "slider", tabindex: 0, "aria-label": "Photo on the left, heat map on the right", "aria-valuemin": 0, "aria-valuemax": 100 });
  const compare = el("div", { class: "compare", id: "compare" }, photo, over, handle);
  const frame = el("div", { class: "frame" }, compare);
  const zoom = el("button", { type: "button", class: "second", id: "zoom", onclick: () => { view.zoom = view.zoom >= 3 ? 1 : view.zoom + 1; zoomed(); } });
  const note = el("p", { class: "small", id: "map-note", role: "status" });
  const legend = el("div", { class: "legend", "aria-hidden": "true" });
  card.append(
    el("p", { class: "small" }, "Not why: coloured areas raised the score, but are no outline and no proof. Drag to compare."),
    el("div", { class: "buttons" }, used.length > 1 ? pick("which-photo", "Photo", used.map(([index, one]) => [index, one.name]), (value) => { view.photo = Number(value); look(); }) : "",
      pick("which-map", "Heat map for", maps, (value) => { view.map = value; paint(); })),
    el("div", { class: "pictures" }, frame, zoom), legend, note,
    el("details", {}, el("summary", {}, "More views"), el("div", { class: "views" },
      el("div", {}, range("opacity", "Opacity of the heat map", 100 * view.opacity, (value) => { view.opacity = value; paint(); }), heat, el("p", { class: "small" }, "The heat map alone")),
      el("div", {}, squashed, squashedText))));
  card.querySelector("#which-map").value = view.map;

  // The divider is under the finger, and right of it lies the heat map.
  const drag = (event) => { const box = compare.getBoundingClientRect(); divide((event.clientX - box.left) / box.width); };
  compare.addEventListener("pointerdown", (event) => { if (event.button) return; event.preventDefault(); compare.setPointerCapture(event.pointerId); drag(event); });
  compare.addEventListener("pointermove", (event) => { if (compare.hasPointerCapture(event.pointerId)) drag(event); });
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05, Home: -1, End: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    divide(view.split + step);
  });
  function divide(split) {
    view.split = Math.min(Math.max(split, 0), 1);
    over.style.clipPath = `inset(0 0 0 ${100 * view.split}%)`;
    handle.style.left = `${100 * view.split}%`;
    handle.setAttribute("aria-valuenow", Math.round(100 * view.split));
  }
  function zoomed() {
    compare.style.width = `${100 * view.zoom}%`;
    frame.classList.toggle("zoomed", view.zoom > 1);
    zoom.textContent = `Zoom ${view.zoom}×`;
  }

  const layers = new Map(); // photo → {image, grey}, decoded once
  let layer = null;
  function look() {
    const item = answer.photos[view.photo];
    photo.src = item.picture;
    frame.style.setProperty("--aspect", item.width / item.height);
    photo.alt = `Photo ${item.name}`;
    squashed.src = item.model_input;
    squashed.alt = "What the model sees";
    squashedText.textContent = `What the model sees: the whole photo (${item.width} × ${item.height} pixels), squashed to ${item.model_input_px} × ${item.model_input_px}. Finer detail is lost to it.`;
    const ready = layers.get(item) ?? Promise.all([load(item.picture), load(item.maps)]).then(([image, sprite]) => ({ image, grey: pixels(sprite) }));
    layers.set(item, ready);
    ready.then((loaded) => { layer = loaded; paint(); });
  }
  function paint() {
    if (!layer) return;
    const item = answer.photos[view.photo];
    const isContrast = view.map === "contrast";
    const coloured = colour(layer.grey, item.map_size, isContrast ? item.codes.length : item.codes.indexOf(view.map), isContrast);
    for (const canvas of [heat, over]) [canvas.width, canvas.height] = [layer.image.naturalWidth, layer.image.naturalHeight];
    fill(heat, coloured.solid, 1);
    fill(over, layer.image, 1);
    fill(over, coloured.faded, view.opacity);
    const name = maps.find(([value]) => value === view.map)[1];
    note.textContent = [item.has_maps && describe(item, view.map, name), item.map_note].filter(Boolean).join(" ");
    heat.setAttribute("aria-label", `Heat map for ${name}. ${note.textContent}`);
    over.setAttribute("aria-label", `Heat map for ${name} over the photo`);
    legend.replaceChildren(...legendParts(isContrast));
    divide(view.split);
  }
  function describe(item, map, name) {
    if (map === "contrast") return `Pink areas speak for ${first} rather than ${second}, blue areas the other way round; dark is neutral.`;
    const strength = item.strength[map];
    if (strength === 0) return `No part of this photo raised the score of ${name}.`;
    const compared = strength === 1 ? "is the brightest of all diagnoses" : `reaches ${percent(strength)} of the brightest of any diagnosis`;
    return `Its brightest spot ${compared}. Brightness is not certainty.`;
  }
  function legendParts(isContrast) {
    const words = isContrast ? [`for ${second}`, "neutral", `for ${first}`] : ["no contribution", "half", "largest in this photo"];
    return [el("img", { class: "scale", src: scale(isContrast), alt: "" }), el("div", { class: "ticks" }, ...words.map((word) => el("span", {}, word)))];
  }
  card.filled = () => ({ photo: answer.photos[view.photo].picture, heat: heat.toDataURL("image/jpeg", 0.9), overlay: over.toDataURL("image/jpeg", 0.9),
    scale: scale(view.map === "contrast"), ticks: [...legend.querySelectorAll(".ticks span")].map((tick) => tick.textContent).join(" · "),
    caption: `${answer.photos[view.photo].name}, heat map for ${maps.find(([value]) => value === view.map)[1]}. ${note.textContent}` });
  zoomed();
  look();
  return card;
}

// The colours from none to most, as a picture: backgrounds vanish in print and in forced colours.
function scale(isContrast) {
  const bytes = tables[isContrast ? "berlin" : "viridis"];
  const row = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) row.data.set([bytes[3 * i], bytes[3 * i + 1], bytes[3 * i + 2], 255], 4 * i);
  return toCanvas(row).toDataURL();
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

function filledReport(answer, parts) {
  let html = answer.report_html;
  for (const [gap, text] of Object.entries(parts)) html = html.replace(`<!--${gap}-->`, () => el("p", {}, text).innerHTML);
  return html;
}

// The numbers without the pictures.
function asJson(answer) {
  const { report_html, nonce, photos, ...rest } = answer;
  const bare = photos.map(({ thumbnail, picture, model_input, maps, map_size, ...photo }) => photo);
  return JSON.stringify({ ...rest, photos: bare }, null, 2);
}

function hexToBytes(hex) {
  return Uint8Array.from(hex.match(/../g), (pair) => parseInt(pair, 16));
}
