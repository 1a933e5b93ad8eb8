// The tab "One lesion". Every lesion of this visit is kept, so that two can be compared; a reload forgets them.

import { asJson, headline, probabilityCard, stateOf, takeAwayButtons, thresholdCard } from "./answer.js";
import { compareCard } from "./compare.js";
import { alertBox, button, el, goTo, picker, save, textBlob, working } from "./dom.js";
import { MAX_PHOTOS_A_LESION } from "./engine.js";
import { fileDialogue, IMAGES, photoField } from "./photofield.js";
import { pictureCard } from "./picture.js";
import { reportHtml } from "./report.js";

const ARCHIVE = "https://www.isic-archive.com";

/**
 * @typedef {object} Lesion
 * @property {string} title
 * @property {Array<{name: string, blob: Blob, url?: string}>} photos
 * @property {object | null} answer
 * @property {string | null} error
 * @property {{photos: object[], known: string | null} | null} kept what that answer was about
 * @property {string | null} known what an example shows
 * @property {{at: number, of: number, go: (at: number) => void, back: () => void} | null} row in a batch
 */

/**
 * @param {{engine: object, about: object, root: HTMLElement}} page
 * @returns {{node: HTMLElement, start: (files: File[]) => void, openRow: (photo: object, row: object) => void,
 *   fail: (sentence: string) => void}}
 */
export function lesionPanel({ engine, about, root }) {
  const node = el("div", { class: "panel-content" });
  /** @type {Lesion[]} */
  const lesions = [];
  let current = null; // a Lesion; null shows the start view
  let compared = null; // two indices of answered lesions
  let priors = "equal";
  let question = 0; // answers to earlier questions are not shown
  let card = null; // the picture card on screen
  const more = fileDialogue((files) => add(files), { accept: IMAGES, id: "more-photos" });

  function start(files) {
    begin(
      files.map((file) => ({ name: file.name, blob: file })),
      {},
    );
  }

  function begin(photos, { known = null, row = null }) {
    const title = `${lesions.length + 1}: ${photos[0].name}`;
    current = { title, photos, answer: null, kept: null, error: null, known, row };
    lesions.push(current);
    compared = null;
    return ask();
  }

  function add(files) {
    current.photos.push(...files.map((file) => ({ name: file.name, blob: file })));
    current.known = null;
    ask();
  }

  function remove(index) {
    release(current.photos[index]);
    current.photos.splice(index, 1);
    ask();
  }

  async function ask() {
    const lesion = current;
    const number = ++question;
    const n = lesion.photos.length;
    node.replaceChildren(working(n === 1 ? "Reading the photo …" : `Reading ${n} photos …`));
    try {
      lesion.answer = await engine.answer(lesion.photos, { priors });
      lesion.kept = { photos: [...lesion.photos], known: lesion.known };
      lesion.error = null;
    } catch (error) {
      lesion.error = error.message;
    }
    if (number === question && lesion === current) draw();
  }

  function newLesion() {
    question++;
    current = null;
    compared = null;
    draw();
    node.querySelector(".choose").focus();
  }

  function forget(lesion) {
    lesion.photos.forEach(release);
    lesions.splice(lesions.indexOf(lesion), 1);
  }

  async function openExample(example) {
    const number = ++question;
    node.replaceChildren(working("Reading the example …"));
    try {
      const response = await fetch(example.src);
      if (!response.ok) throw new Error(String(response.status));
      const blob = await response.blob();
      if (number !== question) return; // other photos were chosen meanwhile
      const known =
        example.about === "not a lesion"
          ? "Example: not a lesion."
          : `Example of known diagnosis: ${example.about}.`;
      await begin([{ name: example.name, blob }], { known });
    } catch {
      if (number !== question) return;
      node.replaceChildren(startView());
      fail("The example could not be loaded; try again.");
    }
  }

  function draw() {
    if (compared) return drawComparison();
    if (!current) return node.replaceChildren(startView());
    if (!current.error) return drawAnswer();
    const sentence = current.error;
    if (current.answer) {
      // Back to the photos and the priors that were answered.
      Object.assign(current, { error: null, photos: [...current.kept.photos], known: current.kept.known });
      priors = current.answer.priors_choice;
      drawAnswer();
      fail(sentence, "The answer below has not changed");
    } else {
      forget(current);
      current = null;
      node.replaceChildren(startView());
      fail(sentence);
    }
  }

  function fail(sentence, title = "No answer") {
    node.querySelector("#failure")?.remove();
    const box = alertBox(title, sentence);
    node.prepend(box);
    goTo(box);
  }

  function drawAnswer() {
    const { answer, known, row } = current;
    const sourceOf = sources(current);
    const probabilities = probabilityCard(answer, about.model.class_priors, (choice) => {
      priors = choice;
      ask();
    });
    card = pictureCard(answer, sourceOf);
    const numbers = [probabilities, thresholdCard(answer)];
    const take = takeAwayButtons({
      report: saveReport,
      print: () => window.print(),
      overlay: saveOverlay,
      json: saveJson,
    });
    const head = headline(answer, sourceOf, known);
    const abstained = stateOf(answer) === "abstained";
    const cards = abstained
      ? [plainPhoto(answer, sourceOf), folded([...numbers, card])]
      : [el("div", { class: "column" }, numbers), el("div", { class: "column" }, card)];
    node.replaceChildren(
      ...[row && rowBar(row), head, toolbar()].filter(Boolean),
      el("div", { class: "cards" }, cards),
      take,
      el("p", { class: "only-print small" }, `Model ${answer.model_id}, ${answer.date}`),
    );
    goTo(head.querySelector("#verdict"));
  }

  /** What the model abstained on: the photo in colour, and nothing over it. */
  function plainPhoto(answer, sourceOf) {
    const figures = answer.photos.map((photo, index) => {
      const source = sourceOf(index);
      return (
        source &&
        el(
          "figure",
          {},
          el("img", { src: source, alt: `Photo ${photo.name}` }),
          el("figcaption", { class: "small" }, photo.name),
        )
      );
    });
    return el("section", { class: "card plain", "aria-label": "Photo" }, figures);
  }

  function folded(cards) {
    return el(
      "details",
      { class: "card", id: "anyway" },
      el("summary", {}, "Show the numbers anyway"),
      el("p", { class: "small" }, "They are for inspecting the model and say nothing about this lesion."),
      cards,
    );
  }

  function toolbar() {
    const answered = lesions.filter((lesion) => lesion.answer);
    const several = current.photos.length > 1;
    const chips = current.photos.map((photo, index) =>
      el(
        "li",
        {},
        el("span", { class: "file", title: photo.name }, photo.name),
        several &&
          button("✕", () => remove(index), { class: "remove", "aria-label": `Remove ${photo.name}` }),
      ),
    );
    return el(
      "section",
      { class: "toolbar no-print", "aria-label": "Photos and lesions" },
      more.input,
      el(
        "div",
        { class: "buttons" },
        button("New lesion", newLesion, { id: "new-lesion" }),
        button("Add a photo of the same lesion", more.open, { id: "add-photo", class: "second" }),
        answered.length > 1 &&
          button("Compare two lesions", openComparison, { id: "compare-lesions", class: "second" }),
        lesions.length > 1 &&
          picker(
            "which-lesion",
            "Lesion",
            lesions.map((one, index) => [index, one.title]),
            lesions.indexOf(current),
            show,
          ),
      ),
      several && el("ul", { class: "chips", "aria-label": "Photos of this lesion" }, chips),
    );
  }

  function show(index) {
    current = lesions[Number(index)];
    if (current.answer) draw();
    else ask();
  }

  function rowBar({ at, of, go, back }) {
    return el(
      "nav",
      { class: "buttons row-bar no-print", "aria-label": "Batch" },
      button("‹ Batch", back, { class: "second", id: "row-back" }),
      button("‹ Previous", () => go(at - 1), { class: "second", id: "row-previous", disabled: at === 0 }),
      button("Next ›", () => go(at + 1), { class: "second", id: "row-next", disabled: at === of - 1 }),
      el("span", { class: "small" }, `${at + 1} of ${of}`),
    );
  }

  function openRow(photo, row) {
    priors = row.priors;
    const known = lesions.find((lesion) => lesion.row && lesion.photos[0].blob === photo.blob);
    if (!known) return begin([photo], { row });
    current = known;
    current.row = row;
    compared = null;
    if (current.answer?.priors_choice === priors) draw();
    else ask();
  }

  function openComparison() {
    const answered = lesions.filter((lesion) => lesion.answer);
    const here = answered.indexOf(current);
    compared = here > 0 ? [here - 1, here] : [0, 1];
    drawComparison();
  }

  function drawComparison() {
    const answered = lesions.filter((lesion) => lesion.answer);
    const shown = answered.map((lesion) => ({
      title: lesion.title,
      answer: lesion.answer,
      sourceOf: sources(lesion),
    }));
    const change = (next) => {
      compared = next;
      drawComparison();
    };
    const close = () => {
      compared = null;
      draw();
    };
    const comparison = compareCard(shown, compared, change, close);
    node.replaceChildren(comparison);
    goTo(comparison.querySelector("#h-compare"));
  }

  function startView() {
    const field = photoField({
      id: "photos",
      title: lesions.length ? "New lesion: choose its photos" : "Photos of one lesion",
      accept: IMAGES,
      take: start,
      help: [
        "A close-up through a dermatoscope: sharp, the whole lesion. " +
          `Up to ${MAX_PHOTOS_A_LESION} photos of the same lesion are averaged.`,
        engine.privacy,
      ],
    });
    const back =
      lesions.length > 0 &&
      picker("which-lesion", "Back to", [["", "…"], ...lesions.map((one, i) => [i, one.title])], "", show);
    return el("div", { class: "start" }, el("div", { class: "column" }, field, back), examplesCard());
  }

  function examplesCard() {
    const { examples, examples_source: source } = about;
    if (!examples.length) {
      return el(
        "section",
        { class: "card", id: "no-examples" },
        el("h2", {}, "No photo at hand?"),
        el(
          "p",
          {},
          "The public ",
          el("a", { href: ARCHIVE, target: "_blank", rel: "noreferrer" }, "ISIC Archive"),
          " has thousands. Look for a dermoscopic image that shows the whole lesion, without ink or a ruler over it.",
        ),
      );
    }
    const tiles = examples.map((example) =>
      el(
        "button",
        { type: "button", class: "sample", onclick: () => openExample(example) },
        el("img", { src: example.src, alt: "", loading: "lazy" }),
        el("span", {}, example.about),
      ),
    );
    return el(
      "section",
      { class: "card", id: "examples", "aria-labelledby": "examples-title" },
      el("h2", { id: "examples-title" }, "No photo at hand? Examples of known diagnosis"),
      el("div", { class: "samples" }, tiles),
      source && el("p", { class: "small" }, source),
    );
  }

  function fileStem() {
    const stem = current.photos[0].name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "_");
    return (stem || "photo").slice(0, 60);
  }

  async function saveReport() {
    const stem = fileStem(); // another lesion may be opened meanwhile
    const html = await reportHtml(current.answer, card);
    save(root, `${stem}-report.html`, textBlob("text/html", html));
  }

  function saveJson() {
    save(root, `${fileStem()}-answer.json`, textBlob("application/json", asJson(current.answer)));
  }

  async function saveOverlay() {
    const stem = fileStem();
    const pictures = await card.pictures(card.shown().index);
    const canvas = pictures?.overlay ?? pictures?.photo;
    canvas?.toBlob((blob) => save(root, `${stem}-overlay.jpg`, blob), "image/jpeg", 0.92);
  }

  draw();
  return { node, start, openRow, fail };
}

function release(photo) {
  URL.revokeObjectURL(photo.url);
  photo.url = undefined;
}

/** Addresses of a lesion's photos that this browser can show; the server sends a preview of the others. */
function sources(lesion) {
  return (index) => {
    const shown = lesion.answer.photos[index];
    if (shown.error) return null;
    if (shown.preview) return shown.preview;
    const photo = lesion.photos[index];
    photo.url ??= URL.createObjectURL(photo.blob);
    return photo.url;
  };
}
