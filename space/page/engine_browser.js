// The engine in the browser: a model folder by its address, onnxruntime-web in a worker; no photo leaves the device.
//
//   const engine = await open("https://…/resolve/main/");
//   const answer = await engine.answer(blob);
//   answer.verdict, answer.probabilities, answer.abstained, answer.photos[0].evidence

import { answerOf, readModel, readOutputs, rowOf } from "./prediction.js";
import { loadJson } from "./store.js";

const RUNTIME = "onnxruntime-web-RUNTIME_VERSION"; // build.mjs writes it, from package.json

/**
 * Load a model.
 * @param {string} modelUrl address of a model folder (config.json, onnx/model.onnx), with a slash at the end
 * @param {object} [options]
 * @param {(fraction: number, sentence: string) => void} [options.onProgress]
 * @param {{model_id: string, revision: string | null, package_version: string}} [options.origin] for the provenance
 * @returns {Promise<import("./engine.js").Engine & {answer: (photos: Blob | import("./engine.js").Photo[],
 *   options?: {priors: "equal" | "dataset"}) => Promise<object>, close: () => void}>}
 * @throws {Error} with a sentence: not reachable, not found, damaged, or of another version
 */
export async function open(modelUrl, { onProgress = () => {}, origin = {} } = {}) {
  const here = (file) => new URL(file, import.meta.url).href;
  onProgress(0, "Loading the model's description …");
  const folder = new URL(modelUrl, location.href).href;
  const [config, texts, labels] = await Promise.all([
    loadJson(`${folder}config.json`),
    loadJson(here("texts.json")),
    loadJson(here("labels.json")),
  ]);
  if (!config) throw new Error(`There is no model at ${folder}: it has no config.json. Check the address.`);
  if (!texts || !labels) throw new Error("A file of this page is missing: build the page again.");
  const { model_id: id = folder, revision = null, package_version: packageVersion = "unknown" } = origin;
  let model;
  try {
    model = readModel(config, { texts, labels }, { id, revision, packageVersion });
  } catch (error) {
    if (error.constructor === Error) throw error; // a sentence
    throw new Error("The model's config.json is damaged, or of another version: publish the model again.");
  }
  const worker = startWorker(here("worker.js"));
  const loaded = { runtime: [0, 14.3e6], model: [0, 14e6] };
  const onPart = ({ part, loaded: bytes, total }) => {
    loaded[part] = [bytes, total || Math.max(loaded[part][1], bytes)];
    const [done, all] = [0, 1].map((index) => loaded.runtime[index] + loaded.model[index]);
    onProgress(done / all, `Loading the model: ${Math.round(done / 1e6)} of ${Math.round(all / 1e6)} MB`);
  };
  const job = { config, modelUrl: folder, runtimeUrl: here("ort-wasm-simd-threaded.wasm"), runtime: RUNTIME };
  try {
    await worker.ask("open", job, onPart);
  } catch (error) {
    worker.end();
    throw error;
  }

  const seen = new WeakMap(); // Blob → what the network made of it
  async function read({ name, blob, error = null }) {
    if (error) return { name, error };
    try {
      if (!seen.has(blob)) {
        const outputs = await worker.ask("infer", { blob, name });
        seen.set(blob, {
          reading: readOutputs(model, outputs),
          size: outputs.size,
          thumbnail: outputs.thumbnail,
        });
      }
      return { name, error: null, ...seen.get(blob) };
    } catch (failure) {
      return { name, error: failure.message };
    }
  }

  return {
    kind: "browser",
    privacy:
      "Photos stay on this device: this page computes in your browser and sends nothing. " +
      "The page's host may log your visit.",
    about: () => aboutModel(model, config, folder),
    async answer(photos, { priors = "equal" } = {}) {
      const list = photos instanceof Blob ? [{ name: photos.name ?? "photo", blob: photos }] : photos;
      const reading = [];
      for (const photo of list) reading.push(await read(photo));
      return answerOf(model, reading, priors);
    },
    async batch(photos, { priors = "equal" }, onRow, signal) {
      for (const [number, photo] of photos.entries()) {
        if (signal?.aborted) return;
        onRow(rowOf(model, await read(photo), number, priors));
      }
    },
    /** The network's outputs for a photo, for comparisons with other engines. */
    outputs: (blob) => worker.ask("infer", { blob, name: "photo" }),
    close: () => worker.end(),
  };
}

/** A worker whose replies are promises. */
function startWorker(url) {
  // By way of a blob, a worker inherits the page's Content-Security-Policy; by its own address it would have none.
  const starter = URL.createObjectURL(
    new Blob([`import ${JSON.stringify(url)};`], { type: "text/javascript" }),
  );
  const worker = new Worker(starter, { type: "module" });
  const waiting = new Map();
  let count = 0;
  worker.onmessage = ({ data: { id, result, error, progress } }) => {
    const { resolve, reject, onProgress } = waiting.get(id);
    if (progress) return onProgress?.(progress);
    waiting.delete(id);
    return error === undefined ? resolve(result) : reject(new Error(error));
  };
  let ended = null; // why nothing is answered any more
  const end = (sentence) => {
    ended = sentence;
    worker.terminate();
    URL.revokeObjectURL(starter);
    for (const { reject } of waiting.values()) reject(new Error(sentence));
    waiting.clear();
  };
  worker.onerror = (event) => {
    event.preventDefault();
    end("The engine of this page failed to start, or crashed: reload the page, or try another browser.");
  };
  return {
    ask(job, argument, onProgress) {
      return new Promise((resolve, reject) => {
        if (ended) return void reject(new Error(ended));
        waiting.set(++count, { resolve, reject, onProgress });
        worker.postMessage({ id: count, job, argument });
      });
    },
    end: () => end("This engine was closed."),
  };
}

async function aboutModel(model, config, folder) {
  const [metrics, listed] = await Promise.all([
    optional(`${folder}metrics.json`),
    optional(`${folder}examples/examples.json`),
  ]);
  const examples = entries(listed.content?.examples)
    .filter(({ file }) => /^[\w-]{1,80}\.(jpg|png)$/.test(file))
    .filter(({ diagnosis }) => diagnosis === null || typeof diagnosis === "string")
    .slice(0, 12)
    .map(({ file, diagnosis }) => ({
      name: file,
      about: diagnosis === null ? "not a lesion" : model.label(diagnosis).name,
      src: `${folder}examples/${file}`,
    }));
  const figures = entries(metrics.content?.figures)
    .filter(({ file }) => /^[a-z0-9_]{1,100}\.png$/.test(file))
    .map((figure) => ({ ...figure, src: `${folder}figures/${figure.file}` }));
  return {
    model: {
      id: model.origin.id,
      revision: model.origin.revision,
      notice: model.notice,
      license: model.license,
      codes: model.codes,
      names: Object.fromEntries(
        [...model.labels.map(({ code }) => code), ...model.codes].map((code) => [
          code,
          model.label(code).name,
        ]),
      ),
      class_priors: model.classPriors,
      from_cache: false,
      provenance: model.provenance,
      url: folder,
    },
    examples,
    examples_source: [listed.content?.attribution, listed.content?.license].filter(Boolean).join(" "),
    metrics: metrics.content,
    metrics_problem: metrics.problem,
    figures,
  };
}

/** The objects of a list in an untrusted file. */
function entries(list) {
  return Array.isArray(list) ? list.filter((entry) => entry instanceof Object) : [];
}

/** A file that a model may lack: the rest of the page works without it. */
async function optional(url) {
  try {
    return { content: await loadJson(url), problem: null };
  } catch (error) {
    return { content: null, problem: error.message };
  }
}
