// The network in a worker of the browser, so that the page stays responsive: photo in, the network's outputs back.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { readSquare } from "./decode.js";
import { forgetOthers, load } from "./store.js";

const OUTPUTS = ["logits", "features", "evidence"];
let session = null;
let preprocessing = null;
let tables = null; // for each channel, the normalised value of each of the 256 levels

/**
 * @param {{config: object, modelUrl: string, runtimeUrl: string, runtime: string}} job
 * @param {(part: string, loaded: number, total: number) => void} tell
 */
async function open({ config, modelUrl, runtimeUrl, runtime }, tell) {
  const { pretrained_cfg: cfg, lesion } = config;
  const sha256 = lesion.onnx_sha256;
  if (!sha256) throw new Error("This model has no onnx/model.onnx: export it, and publish it again.");
  const wasm = await load(runtimeUrl, { cacheFirst: runtime, onProgress: (...n) => tell("runtime", ...n) });
  if (wasm === null) throw new Error("The runtime is missing beside this page: build the page again.");
  const content = await load(`${modelUrl}onnx/model.onnx`, {
    cacheFirst: sha256,
    onProgress: (...n) => tell("model", ...n),
  });
  if (content === null) throw new Error("The model has no onnx/model.onnx: export it, and publish it again.");
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  const hex = Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (hex !== sha256) {
    await forgetOthers([]);
    throw new Error(
      "The model file is damaged or not of this config.json: reload the page, or publish the model again.",
    );
  }
  ort.env.wasm.numThreads = 1; // more need headers that not every host sends, and gain little for one photo
  ort.env.wasm.wasmBinary = wasm;
  ort.env.logLevel = "fatal";
  try {
    session = await ort.InferenceSession.create(content, { executionProviders: ["wasm"] });
  } catch (error) {
    await forgetOthers([]); // the kept runtime may be damaged
    throw new Error(
      `This browser could not run the model (${String(error.message ?? error).slice(0, 200)}): reload the page, or try another browser.`,
    );
  }
  await forgetOthers([runtime, sha256]);
  preprocessing = { side: cfg.input_size[1], kind: cfg.interpolation };
  // Single precision in the order of modeling/preprocessing.py: a product with 1 / std would differ in the last bit.
  tables = [0, 1, 2].map((channel) =>
    Float32Array.from({ length: 256 }, (_, level) => {
      const centred = Math.fround(Math.fround(level / 255) - Math.fround(cfg.mean[channel]));
      return Math.fround(centred / Math.fround(cfg.std[channel]));
    }),
  );
}

async function infer({ blob, name }) {
  const { side } = preprocessing;
  const started = performance.now();
  const photo = await readSquare(blob, name, preprocessing);
  const decoded = performance.now();
  const nPixels = side * side;
  const values = new Float32Array(3 * nPixels);
  for (let i = 0; i < nPixels; i++) {
    for (let channel = 0; channel < 3; channel++) {
      values[channel * nPixels + i] = tables[channel][photo.square[3 * i + channel]];
    }
  }
  const names = OUTPUTS.filter((output) => session.outputNames.includes(output));
  const input = new ort.Tensor("float32", values, [1, 3, side, side]);
  const outputs = await session.run({ pixel_values: input }, names);
  const { logits, features, evidence } = outputs;
  return {
    logits: logits.data,
    features: features.data,
    evidence: evidence?.data ?? null,
    grid: evidence ? evidence.dims.slice(2) : [0, 0],
    size: photo.size,
    thumbnail: photo.thumbnail,
    milliseconds: { decode: decoded - started, network: performance.now() - decoded },
  };
}

const jobs = { open, infer };
let last = Promise.resolve(); // one photo at a time

self.onmessage = ({ data: { id, job, argument } }) => {
  const tell = (part, loaded, total) => self.postMessage({ id, progress: { part, loaded, total } });
  last = last.then(async () => {
    try {
      self.postMessage({ id, result: await jobs[job](argument, tell) });
    } catch (error) {
      self.postMessage({ id, error: error.message });
    }
  });
};
