// Files of the model and the runtime: fetched with their progress, and kept in the browser's cache for later visits.

const NAME = `lesion-model-${new URL(".", import.meta.url).pathname}`; // a copy of the page elsewhere has its own

// Only on https and on localhost, and where the visitor allows it; elsewhere files are fetched at every visit.
const openCache = async () => ("caches" in globalThis ? caches.open(NAME).catch(() => null) : null);

/**
 * @param {string} url
 * @param {{cacheFirst?: string, onProgress?: (loaded: number, total: number) => void, check?: (bytes: ArrayBuffer) => void}} options
 *   cacheFirst: a name of this content; a copy under that name is taken without asking the network.
 *   Without it, a copy is taken only where the network does not answer, or the host is out of order.
 *   check: throws for content that must not be kept.
 * @returns {Promise<ArrayBuffer | null>} null where the server has no such file
 */
export async function load(url, { cacheFirst, onProgress, check = () => {} } = {}) {
  const cache = await openCache();
  const key = cacheFirst ? `${url}?${cacheFirst}` : url;
  if (cacheFirst) {
    const kept = await cache?.match(key);
    if (kept) return kept.arrayBuffer();
  }
  let response, bytes;
  try {
    response = await fetch(url);
    if (response.ok) bytes = await readAll(response, onProgress);
  } catch {
    response = null; // no connection, or it broke
  }
  if (response === null || response.status >= 500 || response.status === 429) {
    const kept = await cache?.match(key);
    if (kept) return kept.arrayBuffer();
  }
  if (response === null) {
    throw new Error(
      `${fileName(url)} could not be loaded: no connection to ${hostOf(url)}, or the network refuses it.`,
    );
  }
  if (response.status === 404) return null;
  if (!response.ok) {
    throw new Error(
      `${fileName(url)} could not be loaded: ${hostOf(url)} answered ${response.status}. ` +
        (response.status === 401 || response.status === 403
          ? "The model may be private."
          : "Try again later."),
    );
  }
  check(bytes);
  // Answers do not depend on the copy, so a full disk does not matter.
  await cache?.put(key, new Response(bytes)).catch((error) => console.warn(error));
  return bytes;
}

async function readAll(response, onProgress) {
  if (!onProgress) return response.arrayBuffer();
  // Unpacked bytes are counted, of which servers say the packed number only.
  const packed = response.headers.get("Content-Encoding");
  const total = packed ? 0 : Number(response.headers.get("Content-Length") ?? 0);
  const reader = response.body.getReader();
  const parts = [];
  let loaded = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    onProgress(loaded, total);
  }
  return new Blob(parts).arrayBuffer();
}

/** Forget copies of former models and runtimes. */
export async function forgetOthers(keep) {
  const cache = await openCache();
  for (const request of (await cache?.keys()) ?? []) {
    if (request.url.includes("?") && !keep.some((name) => request.url.endsWith(`?${name}`)))
      await cache.delete(request);
  }
}

export async function loadJson(url) {
  const parse = (bytes) => {
    try {
      return JSON.parse(new TextDecoder().decode(bytes));
    } catch {
      throw new Error(`${fileName(url)} is damaged: it is not JSON. Reload the page, or publish it again.`);
    }
  };
  const bytes = await load(url, { check: parse });
  return bytes && parse(bytes);
}

function fileName(url) {
  return new URL(url).pathname.split("/").at(-1);
}

function hostOf(url) {
  return new URL(url).host;
}
