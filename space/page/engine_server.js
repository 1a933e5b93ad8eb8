// The engine that asks the Gradio server: photos go there, answers come back as JSON (docs/api.md).

const UNREACHED = "The server did not answer. It may be busy or restarting: try again in a minute.";
const RESEND_AFTER_MS = 240000; // the server deletes uploads after five minutes
const MAX_SENT_BYTES = 250e6; // in one request, of which the server takes 300 MB
const AT_ONCE = 8; // photos of a batch that are sent and answered together

/**
 * @param {string} base address of the server, without a slash at the end
 * @returns {import("./engine.js").Engine}
 */
export function serverEngine(base) {
  const api = `${base}/gradio_api`;
  const sent = new WeakMap(); // Blob → {path, at}

  async function upload(photos, signal) {
    const due = photos.filter(({ blob }) => !(Date.now() - sent.get(blob)?.at < RESEND_AFTER_MS));
    const size = due.reduce((sum, { blob }) => sum + blob.size, 0);
    const parts = size > MAX_SENT_BYTES ? due.map((photo) => [photo]) : due.length ? [due] : [];
    for (const part of parts) {
      const form = new FormData();
      for (const { name, blob } of part) form.append("files", blob, name);
      const response = await request(`${api}/upload`, { method: "POST", body: form, signal });
      const paths = await response.json();
      part.forEach(({ blob }, index) => sent.set(blob, { path: paths[index], at: Date.now() }));
    }
    return photos.map(({ name, blob }) => ({
      path: sent.get(blob).path,
      orig_name: name,
      meta: { _type: "gradio.FileData" },
    }));
  }

  /** Call an endpoint; `onData` gets each JSON value that it yields, and the last one is returned. */
  async function call(endpoint, data, { onData, signal } = {}) {
    const started = await request(`${api}/call/${endpoint}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ data }),
      signal,
    });
    const { event_id: id } = await started.json();
    const stream = await request(`${api}/call/${endpoint}/${id}`, { signal });
    let last;
    for await (const { event, value } of events(stream)) {
      if (event === "error") throw new Error(sentenceOf(value));
      if (event !== "generating" && event !== "complete") continue;
      if (Array.isArray(value) && value.length) {
        last = typeof value[0] === "string" ? JSON.parse(value[0]) : value[0];
        if (event === "generating") onData?.(last);
      }
    }
    if (last === undefined) throw new Error(UNREACHED);
    return last;
  }

  return {
    kind: "server",
    privacy: "Photos are deleted from this server within minutes and used for nothing else.",
    about: () => call("page_about", []),
    async answer(photos, { priors }) {
      return call("page_answer", [await upload(photos), priors]);
    },
    async batch(photos, { priors }, onRow, signal) {
      const readable = photos.filter((photo) => !photo.error);
      const rows = new Map(
        photos.filter((photo) => photo.error).map((photo) => [photo, { ...photo, blob: undefined }]),
      );
      let nReported = 0;
      const report = () => {
        while (nReported < photos.length && rows.has(photos[nReported])) onRow(rows.get(photos[nReported++]));
      };
      for (let from = 0; from < readable.length; from += AT_ONCE) {
        const some = readable.slice(from, from + AT_ONCE);
        const files = await upload(some, signal);
        let done = 0;
        const onData = ({ row }) => {
          if (!row || done === some.length) return;
          rows.set(some[done], { ...row, name: some[done].name });
          done++;
          report();
        };
        await call("batch", [files, priors], { onData, signal });
        if (done < some.length) throw new Error(UNREACHED);
      }
      report();
    },
  };
}

async function request(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(UNREACHED);
  }
  if (response.ok) return response;
  const text = (await response.text()).slice(0, 300);
  throw new Error(text && !text.trimStart().startsWith("<") ? sentenceOf(text) : UNREACHED);
}

function sentenceOf(value) {
  if (typeof value === "string") {
    try {
      return sentenceOf(JSON.parse(value));
    } catch {
      return value;
    }
  }
  return value?.error ?? value?.message ?? value?.detail ?? UNREACHED;
}

/** Read server-sent events: {event, value}. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const field = (name) =>
        block
          .split("\n")
          .find((line) => line.startsWith(`${name}: `))
          ?.slice(name.length + 2);
      const data = field("data");
      const parsed = data === undefined ? null : JSON.parse(data);
      yield { event: field("event"), value: parsed };
    }
  }
}
