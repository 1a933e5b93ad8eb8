// The photo and its heat map: one over the other with a divider, or side by side; zoom by button, wheel and pinch.

import { button, el, loadImage, percent, picker } from "./dom.js";
import { colourScale, flatten, heatCanvas } from "./heatmap.js";

const MAX_ZOOM = 8;
const OVERLAY_SIDE_PX = 1024;

/**
 * @param {object} answer
 * @param {(index: number) => string | null} sourceOf address of a photo that this browser can show
 * @returns {HTMLElement & {pictures: (index: number) => Promise<object>}}
 */
export function pictureCard(answer, sourceOf) {
  const used = answer.photos.map((photo, index) => ({ photo, index })).filter(({ photo }) => photo.used);
  const view = { index: used[0].index, code: answer.shown, opacity: 0.6, layout: "divider" };
  const names = new Map(answer.differential.map((row) => [row.code, row.name]));
  const hasMaps = () => Object.keys(answer.photos[view.index].evidence ?? {}).length > 0;

  const body = el("div", { class: "pictures" });
  const note = el("p", { class: "small", id: "map-note", role: "status" });
  const card = el("section", { class: "card picture-card", "aria-labelledby": "h-heat" });
  const layouts = el(
    "div",
    { class: "segments", role: "group", "aria-label": "View" },
    button("Over the photo", () => setLayout("divider"), { id: "view-divider" }),
    button("Side by side", () => setLayout("side"), { id: "view-side" }),
  );
  const legend = el(
    "div",
    { class: "legend" },
    el("img", { class: "scale", src: colourScale(), alt: "" }),
    el(
      "div",
      { class: "ticks", "aria-hidden": "true" },
      ["no contribution", "half", "strongest"].map((text) => el("span", {}, text)),
    ),
  );
  const opacity = el(
    "label",
    { class: "pick", for: "opacity" },
    el("span", {}, "Strength of the colours"),
    el("input", {
      type: "range",
      id: "opacity",
      min: 0,
      max: 100,
      value: 100 * view.opacity,
      oninput: (event) => {
        view.opacity = event.target.value / 100;
        for (const layer of body.querySelectorAll(".faded")) layer.style.opacity = view.opacity;
      },
    }),
  );
  card.append(
    el("h2", { id: "h-heat" }, "Where the score came from"),
    el(
      "div",
      { class: "buttons" },
      used.length > 1 &&
        picker(
          "which-photo",
          "Photo",
          used.map(({ photo, index }) => [index, photo.name]),
          view.index,
          (value) => {
            view.index = Number(value);
            draw();
          },
        ),
      picker("which-map", "Heat map for", [...names], view.code, (value) => {
        view.code = value;
        draw();
      }),
      layouts,
    ),
    body,
    legend,
    note,
    opacity,
  );

  function setLayout(layout) {
    view.layout = layout;
    draw();
  }

  function draw() {
    const photo = answer.photos[view.index];
    const source = sourceOf(view.index);
    for (const one of layouts.children)
      one.setAttribute("aria-pressed", String(one.id === `view-${view.layout}`));
    legend.hidden = opacity.hidden = layouts.hidden = !hasMaps();
    note.textContent = hasMaps() ? describe(photo) : photo.note;
    if (!source) {
      body.replaceChildren(el("p", { class: "small" }, `This browser cannot show ${photo.name}.`));
      return;
    }
    body.replaceChildren(
      view.layout === "side" && hasMaps() ? sideBySide(photo, source) : overPhoto(photo, source),
    );
  }

  function describe(photo) {
    const name = names.get(view.code);
    const strength = photo.strength[view.code];
    if (strength === 0) return `No part of this photo raised the score for ${name}.`;
    const compared =
      strength === 1
        ? "No other diagnosis has a brighter spot."
        : `Its peak is ${percent(strength)} of the highest peak of any diagnosis.`;
    return (
      `The brighter a part, the more it raised the score for ${name}; no colour: little or not at all. ${compared} ` +
      "It shows where, not why, and does not outline the lesion."
    );
  }

  function overPhoto(photo, source) {
    const image = el("img", { id: "original", src: source, alt: `Photo ${photo.name}`, draggable: "false" });
    return viewer(photo, image, hasMaps() ? heatLayer(photo) : null);
  }

  function heatLayer(photo) {
    const canvas = heatCanvas(photo, view.code, { faded: true });
    canvas.id = "overlay";
    canvas.classList.add("faded");
    canvas.style.opacity = view.opacity;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Heat map for ${names.get(view.code)} over the photo`);
    return canvas;
  }

  function sideBySide(photo, source) {
    const [height, width] = photo.size;
    const figure = (caption, ...layers) =>
      el(
        "figure",
        {},
        el("div", { class: "stack", style: `aspect-ratio: ${width} / ${height}` }, layers),
        el("figcaption", { class: "small" }, caption),
      );
    const photoImage = (alt) => el("img", { src: source, alt });
    const solid = heatCanvas(photo, view.code, { faded: false });
    solid.id = "heat";
    solid.setAttribute("role", "img");
    solid.setAttribute("aria-label", `Heat map for ${names.get(view.code)}`);
    return el(
      "div",
      { class: "triple" },
      figure("Photo", photoImage(`Photo ${photo.name}`)),
      figure("Heat map", solid),
      figure("Overlay", photoImage(""), heatLayer(photo)),
    );
  }

  /** What the report and the download need of one photo: data URIs, or null where the browser cannot show it. */
  card.pictures = async (index, sidePx = OVERLAY_SIDE_PX) => {
    const photo = answer.photos[index];
    const source = sourceOf(index);
    if (!source) return null;
    const image = await loadImage(source);
    const bare = flatten([[image, 1]], photo.size, sidePx);
    if (!photo.evidence?.[view.code]) return { photo: bare };
    return {
      photo: bare,
      heat: flatten([[heatCanvas(photo, view.code, { faded: false }), 1]], photo.size, sidePx),
      overlay: flatten(
        [
          [image, 1],
          [heatCanvas(photo, view.code, { faded: true }), view.opacity],
        ],
        photo.size,
        sidePx,
      ),
    };
  };
  card.shown = () => ({ index: view.index, name: names.get(view.code), note: note.textContent });
  draw();
  return card;
}

/** A photo with a heat map over it, right of a divider that is always in view, also when zoomed. */
function viewer(photo, image, heat) {
  const [height, width] = photo.size;
  const view = { split: 0, zoom: 1, x: 0, y: 0 }; // x, y: the picture's offset as a fraction of the frame
  const over = heat && el("div", { class: "over" }, heat);
  const handle =
    heat &&
    el("div", {
      class: "handle",
      id: "handle",
      role: "slider",
      tabindex: 0,
      "aria-label": "Divider: photo on the left, heat map on the right",
      "aria-valuemin": 0,
      "aria-valuemax": 100,
    });
  const frame = el(
    "div",
    { class: "frame", id: "frame", style: `--aspect: ${width / height}`, tabindex: 0, role: "group" },
    image,
    over,
    handle,
  );
  frame.setAttribute("aria-label", "Photo; plus and minus zoom, arrow keys move it");
  const level = el("span", { class: "level", id: "zoom-level", role: "status" });
  const controls = el(
    "div",
    { class: "zoom-buttons" },
    button("−", () => zoomTo(view.zoom / 1.5), { id: "zoom-out", class: "second", "aria-label": "Zoom out" }),
    level,
    button("+", () => zoomTo(view.zoom * 1.5), { id: "zoom-in", class: "second", "aria-label": "Zoom in" }),
    button("Whole photo", () => zoomTo(1), { id: "zoom-reset", class: "second" }),
  );

  function apply() {
    const least = 1 - view.zoom;
    view.x = Math.min(0, Math.max(least, view.x));
    view.y = Math.min(0, Math.max(least, view.y));
    const transform = `translate(${100 * view.x}%, ${100 * view.y}%) scale(${view.zoom})`;
    for (const layer of [image, heat]) if (layer) layer.style.transform = transform;
    frame.classList.toggle("zoomed", view.zoom > 1);
    level.textContent = `${Math.round(100 * view.zoom)}\u00a0%`;
    if (!heat) return;
    over.style.clipPath = `inset(0 0 0 ${100 * view.split}%)`;
    handle.style.left = `clamp(18px, ${100 * view.split}%, 100% - 18px)`;
    handle.setAttribute("aria-valuenow", Math.round(100 * view.split));
  }

  /** Zoom so that the point (x, y), in fractions of the frame, keeps its place. */
  function zoomTo(zoom, x = 0.5, y = 0.5) {
    const next = Math.min(MAX_ZOOM, Math.max(1, zoom));
    view.x = x - ((x - view.x) * next) / view.zoom;
    view.y = y - ((y - view.y) * next) / view.zoom;
    view.zoom = next;
    apply();
  }

  function divide(split) {
    view.split = Math.min(Math.max(split, 0), 1);
    apply();
  }

  const at = (event) => {
    const box = frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const pointers = new Map();
  let drags = null; // "divider", "photo" or "pinch"
  frame.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    pointers.set(event.pointerId, at(event));
    frame.setPointerCapture(event.pointerId);
    if (pointers.size === 2) drags = "pinch";
    else drags = heat && (event.target === handle || view.zoom === 1) ? "divider" : "photo";
    if (drags === "divider" && event.target !== handle && event.pointerType === "mouse") divide(at(event)[0]);
    event.preventDefault();
  });
  frame.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = at(event);
    if (drags === "pinch") {
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const spread = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
        zoomTo(
          (view.zoom * spread(now)) / Math.max(spread(before), 1e-3),
          (now[0] + other[0]) / 2,
          (now[1] + other[1]) / 2,
        );
      }
    } else if (drags === "divider") {
      divide(now[0]);
    } else {
      view.x += now[0] - before[0];
      view.y += now[1] - before[1];
      apply();
    }
    pointers.set(event.pointerId, now);
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    frame.addEventListener(kind, (event) => {
      pointers.delete(event.pointerId);
      drags = null;
    });
  }
  frame.addEventListener("dblclick", (event) => zoomTo(view.zoom > 1 ? 1 : 3, ...at(event)));
  frame.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey && view.zoom === 1) return; // the page scrolls
      event.preventDefault();
      zoomTo(view.zoom * Math.exp(-event.deltaY / 300), ...at(event));
    },
    { passive: false },
  );
  frame.addEventListener("keydown", (event) => {
    if (event.target === handle) {
      const step = { ArrowLeft: -0.05, ArrowDown: -0.05, ArrowRight: 0.05, ArrowUp: 0.05, Home: -1, End: 1 }[
        event.key
      ];
      if (step === undefined) return;
      divide(view.split + step);
    } else {
      const move = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[
        event.key
      ];
      if (event.key === "+" || event.key === "=") zoomTo(view.zoom * 1.5);
      else if (event.key === "-") zoomTo(view.zoom / 1.5);
      else if (move && view.zoom > 1) {
        view.x += move[0];
        view.y += move[1];
        apply();
      } else return;
    }
    event.preventDefault();
  });
  apply();
  return el("div", { class: "viewer" }, frame, controls);
}
