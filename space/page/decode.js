// From a file to the square that the network sees: as modeling/images.py and Pillow do, with the browser's decoders.

import { BandResizer } from "./resize.js";

const MAX_FILE_BYTES = 100e6;
const MAX_PIXELS = 51e6; // a 50-megapixel phone fits
const MIN_SIDE_PX = 8;
const MAX_ASPECT_RATIO = 10;
const BAND_ROWS = 128;
const THUMBNAIL_PX = 96;
const BY_HAND = "save it as JPEG or PNG";
let canvasCheck = null; // a promise; once a visit

/**
 * @param {Blob} blob
 * @param {string} name for error sentences
 * @param {{side: number, kind: "bicubic" | "bilinear"}} options
 * @returns {Promise<{square: Uint8Array, size: [number, number], thumbnail: string}>}
 *   square: RGB; size: [height, width]
 * @throws {Error} with a sentence for the visitor
 */
export async function readSquare(blob, name, { side, kind }) {
  await check(blob, name);
  await (canvasCheck ??= checkCanvas());
  let bitmap;
  try {
    // Colour profiles are ignored, as in training; the Exif orientation is applied.
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Error(`${name} is damaged or incomplete. Choose it again, or ${BY_HAND}.`);
  }
  try {
    const { width, height } = bitmap;
    checkSize(width, height, name);
    const resizer = new BandResizer(width, height, side, kind);
    const canvas = new OffscreenCanvas(width, Math.min(height, BAND_ROWS));
    const context = canvas.getContext("2d", { willReadFrequently: true });
    for (let from = 0; from < height; from += BAND_ROWS) {
      const nRows = Math.min(BAND_ROWS, height - from);
      context.fillStyle = "#fff"; // under transparent pixels, as viewers show them
      context.fillRect(0, 0, width, nRows);
      context.drawImage(bitmap, 0, -from);
      resizer.add(context.getImageData(0, 0, width, nRows).data, from, nRows);
    }
    return { square: resizer.result(), size: [height, width], thumbnail: await thumbnailOf(bitmap) };
  } finally {
    bitmap.close();
  }
}

/** Refuse a browser that falsifies what is read from a canvas, as protections against tracking do. */
async function checkCanvas() {
  const known = new ImageData(64, 64);
  known.data.forEach((_, i) => (known.data[i] = i % 4 === 3 ? 255 : (97 * i + (i >> 6)) % 256));
  const context = new OffscreenCanvas(64, 64).getContext("2d", { willReadFrequently: true });
  context.drawImage(await createImageBitmap(known), 0, 0);
  const read = context.getImageData(0, 0, 64, 64).data;
  if (known.data.every((value, i) => value === read[i])) return;
  throw new Error(
    "This browser changes the pixels that a page reads, as a protection against tracking: " +
      "switch it off for this page, or use another browser.",
  );
}

async function thumbnailOf(bitmap) {
  const shrink = Math.min(1, THUMBNAIL_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.ceil(bitmap.width * shrink), Math.ceil(bitmap.height * shrink));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const bytes = new Uint8Array(
    await (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 })).arrayBuffer(),
  );
  return `data:image/jpeg;base64,${btoa(String.fromCharCode(...bytes))}`;
}

function checkSize(width, height, name) {
  const size = `${name} has ${width} x ${height} pixels`;
  if (width * height > MAX_PIXELS) throw new Error(`${size}, more than 51 megapixels; make it smaller.`);
  if (Math.min(width, height) < MIN_SIDE_PX) {
    throw new Error(`${size}; both sides need at least ${MIN_SIDE_PX}. Choose the photograph itself.`);
  }
  if (Math.max(width, height) > MAX_ASPECT_RATIO * Math.min(width, height)) {
    throw new Error(`${size}, a strip longer than ${MAX_ASPECT_RATIO}:1; crop it to the lesion.`);
  }
}

/** Refuse what a decoder should not see: too large, of a format that no browser reads, or cut off. */
async function check(blob, name) {
  if (blob.size === 0) throw new Error(`${name} is empty (0 bytes); choose it again.`);
  if (blob.size > MAX_FILE_BYTES) throw new Error(`${name} is larger than 100 MB; save it as JPEG.`);
  const view = new DataView(await blob.slice(0, 1 << 16).arrayBuffer());
  const text = (from, length) => {
    let letters = "";
    for (let i = from; i < Math.min(from + length, view.byteLength); i++)
      letters += String.fromCharCode(view.getUint8(i));
    return letters;
  };
  try {
    if (text(0, 2) === "\xff\xd8") {
      await checkJpeg(blob, name);
    } else if (text(0, 8) === "\x89PNG\r\n\x1a\n") {
      checkSize(view.getUint32(16), view.getUint32(20), name);
    } else if (text(0, 4) === "GIF8") {
      checkSize(view.getUint16(6, true), view.getUint16(8, true), name);
    } else if (text(0, 2) === "BM") {
      checkSize(Math.abs(view.getInt32(18, true)), Math.abs(view.getInt32(22, true)), name);
    } else if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP") {
      const [width, height] = webpSize(view, text(12, 4));
      checkSize(width, height, name);
    } else if (text(4, 4) === "ftyp") {
      await checkHeic(blob, name, text(8, 4));
    } else if (text(0, 4) === "II*\0" || text(0, 4) === "MM\0*") {
      throw new Error(`${name} is a TIFF file, which browsers cannot read; ${BY_HAND}.`);
    } else if (text(0, 2) === "PK") {
      throw new Error(`${name} is an archive; open it in the tab Batch.`);
    } else {
      throw new Error(
        `${name} is not an image, or its start is damaged. Choose one of JPEG, PNG, WebP, BMP or GIF.`,
      );
    }
  } catch (error) {
    if (error instanceof RangeError)
      throw new Error(`${name} is damaged or incomplete. Choose it again, or ${BY_HAND}.`);
    throw error;
  }
}

async function checkHeic(blob, name, brand) {
  try {
    (await createImageBitmap(blob, { resizeWidth: 8, resizeHeight: 8 })).close();
  } catch {
    const kind = brand === "avif" ? "an AVIF image that is damaged, or" : "a HEIC photograph,";
    throw new Error(`${name} is ${kind} which this browser cannot read; save it as JPEG (or use Safari).`);
  }
}

/** Read a JPEG's size before it is decoded, and refuse one that ends too early: the rest would be grey. */
async function checkJpeg(blob, name) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(bytes.buffer);
  const isFrame = (marker) => marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
  let at = 2;
  for (;;) {
    while (view.getUint8(at) !== 0xff) at++;
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) at++;
    else if (marker <= 0x01 || (marker >= 0xd0 && marker <= 0xd9)) at += 2;
    else if (marker === 0xda) break;
    else {
      if (isFrame(marker)) checkSize(view.getUint16(at + 7), view.getUint16(at + 5), name);
      at += 2 + view.getUint16(at + 2);
    }
  }
  while ((at = bytes.indexOf(0xff, at + 1)) >= 0) if (bytes[at + 1] === 0xd9) return;
  throw new Error(`${name} is damaged or incomplete. Choose it again, or ${BY_HAND}.`);
}

function webpSize(view, kind) {
  const uint24 = (at) => view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
  if (kind === "VP8X") return [uint24(24) + 1, uint24(27) + 1];
  if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    return [(bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1];
  }
  return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
}
