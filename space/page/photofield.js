// Ways to add photos: choose, camera, clipboard. Dropping works on the whole page (page.js).

import { button, el } from "./dom.js";

export const IMAGES = "image/*,.heic,.heif,.tif,.tiff,.bmp";

/** A hidden file dialogue; `open()` shows it and hands the files to `take`. */
export function fileDialogue(take, attributes) {
  const input = el("input", {
    type: "file",
    multiple: true,
    hidden: true,
    "aria-hidden": "true",
    ...attributes,
    onchange: (event) => {
      const files = [...event.target.files];
      event.target.value = "";
      if (files.length) take(files);
    },
  });
  return { input, open: () => input.click() };
}

/**
 * @param {{id: string, title: string, help: string[], accept: string, take: (files: File[]) => void}} options
 */
export function photoField({ id, title, help, accept, take }) {
  const choose = fileDialogue(take, { accept });
  const camera = fileDialogue(take, { accept: "image/*", capture: "environment" });
  const note = el("p", { class: "small", role: "status" });
  const paste = async () => {
    try {
      take(await pasted());
    } catch {
      note.textContent = "Copy a picture first, and let this page read the clipboard.";
    }
  };
  return el(
    "section",
    { class: "card drop", id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    choose.input,
    camera.input,
    el(
      "div",
      { class: "buttons" },
      button("Choose files", choose.open, { class: "choose" }),
      button("Take a photo", camera.open, { class: "second camera" }),
      button("Paste", paste, { class: "second" }),
      el("span", { class: "small drop-word" }, "or drop them anywhere on this page"),
    ),
    help.map((text) => el("p", { class: "small" }, text)),
    note,
  );
}

async function pasted() {
  const files = [];
  for (const item of await navigator.clipboard.read()) {
    const type = item.types.find((one) => one.startsWith("image/"));
    if (type) files.push(new File([await item.getType(type)], `pasted.${type.slice(6)}`, { type }));
  }
  if (!files.length) throw new Error("There is no image in the clipboard.");
  return files;
}
