// Photos out of zip archives, read without writing anything to disk.

import { MAX_PHOTOS_A_BATCH } from "./engine.js";

const MAX_ENTRIES = 1000;
const MAX_UNPACKED_BYTES = 500e6;

/**
 * @returns {Promise<boolean>} whether a file is a zip archive
 * @throws {Error} with a sentence, where it cannot be read
 */
export async function isZip(file) {
  const start = await file
    .slice(0, 4)
    .arrayBuffer()
    .catch(() => {
      throw new Error(`${file.name} cannot be read. If it is a folder, choose the photos in it.`);
    });
  const head = new Uint8Array(start);
  return head[0] === 0x50 && head[1] === 0x4b && head[2] === 3 && head[3] === 4;
}

/**
 * List the files of an archive (PKWARE APPNOTE 4.3).
 * @param {File} file
 * @returns {Promise<Array<{name: string, blob: Blob | null, error: string | null}>>}
 * @throws {Error} with a sentence, where the archive itself cannot be read
 */
export async function unzip(file) {
  const damaged = new Error(`${file.name} is a damaged zip archive; pack it again.`);
  const tailFrom = Math.max(0, file.size - 66000);
  const tail = new DataView(await file.slice(tailFrom).arrayBuffer());
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw damaged;
  const count = tail.getUint16(end + 10, true);
  const size = tail.getUint32(end + 12, true);
  const start = tail.getUint32(end + 16, true);
  if (count > MAX_ENTRIES || size > 1e6)
    throw new Error(`${file.name} lists too many files; pack at most ${MAX_PHOTOS_A_BATCH} photos.`);
  const list = new DataView(await file.slice(start, start + size).arrayBuffer());
  const entries = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + 46 > list.byteLength || list.getUint32(at, true) !== 0x02014b50) throw damaged;
    const nameLength = list.getUint16(at + 28, true);
    if (at + 46 + nameLength > list.byteLength) throw damaged;
    const path = new TextDecoder().decode(new Uint8Array(list.buffer, at + 46, nameLength));
    entries.push({
      path,
      encrypted: (list.getUint16(at + 8, true) & 1) === 1,
      method: list.getUint16(at + 10, true),
      packed: list.getUint32(at + 20, true),
      size: list.getUint32(at + 24, true),
      offset: list.getUint32(at + 42, true),
    });
    at += 46 + nameLength + list.getUint16(at + 30, true) + list.getUint16(at + 32, true);
  }
  let left = MAX_UNPACKED_BYTES;
  const photos = [];
  for (const entry of entries) {
    const name = entry.path.split("/").at(-1);
    if (entry.path.endsWith("/") || entry.path.startsWith("__MACOSX/") || name.startsWith(".")) continue;
    try {
      const blob = await unpack(file, entry, name, left);
      left -= blob.size;
      photos.push({ name, blob, error: null });
    } catch (error) {
      photos.push({ name, blob: null, error: error.message });
    }
  }
  return photos;
}

async function unpack(file, entry, name, left) {
  if (entry.encrypted) throw new Error(`${name} is encrypted; pack the archive without a password.`);
  if (entry.size > left) throw new Error(`${name} is left out: the archive unpacks to more than 500 MB.`);
  const broken = new Error(`${name} is damaged inside the archive; pack it again.`);
  const head = new DataView(await file.slice(entry.offset, entry.offset + 30).arrayBuffer());
  if (head.byteLength < 30) throw broken;
  const from = entry.offset + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  const packed = file.slice(from, from + entry.packed);
  if (entry.method === 0) return packed;
  if (entry.method !== 8)
    throw new Error(`${name} is packed in an unusual way; pack the archive as an ordinary zip.`);
  const reader = packed.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw broken;
    });
    if (done) break;
    size += value.length;
    if (size > entry.size) {
      await reader.cancel();
      throw broken;
    }
    parts.push(value);
  }
  if (size !== entry.size) throw broken;
  return new Blob(parts);
}
