// From the network's outputs to an answer: what modeling/ and space/answers.py do in Python, with the same keys.
// Sentences come from texts.json, names of diagnoses from labels.json; the build copies both from modeling/.

import { percent as unbrokenPercent } from "./dom.js";
import { MAX_PHOTOS_A_LESION } from "./engine.js";

const TINY = 1e-12;
export const CONFIG_SCHEMA = 4;

const percent = (fraction) => unbrokenPercent(fraction).replaceAll("\u00a0", " ");
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Round a probability; since it is never 0 or 1, it is not rounded to them either. */
function rounded(probability) {
  return Math.min(Math.max(Number(probability.toFixed(6)), 1e-6), 1 - 1e-6);
}

function filled(template, values) {
  return template.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/**
 * What an answer needs of a model folder.
 * @param {object} config of config.json
 * @param {{texts: object, labels: object[]}} words
 * @param {{id: string, revision: string | null, packageVersion: string}} origin
 */
export function readModel(config, { texts, labels }, origin) {
  const { lesion } = config;
  if (lesion?.schema !== CONFIG_SCHEMA) {
    throw new Error(
      `This model's config.json is of schema ${lesion?.schema ?? "unknown"}, and this page reads ${CONFIG_SCHEMA}: ` +
        "publish the model, or this page, again with one version of the package.",
    );
  }
  const { label_names: codes, pretrained_cfg: cfg } = config;
  const points = lesion.operating_points ?? [];
  const classPriors = lesion.class_priors ?? null;
  const isWhole =
    ["bicubic", "bilinear"].includes(cfg.interpolation) &&
    [cfg.input_size, cfg.mean, cfg.std].every((channels) => channels.length === 3) &&
    points.every((point) => point.codes.every((code) => codes.includes(code))) &&
    codes.every((code) => classPriors === null || classPriors[code] > 0);
  if (!isWhole) throw new TypeError("config.json is not as modeling/config.py describes it");
  const known = new Map(labels.map((label) => [label.code, label]));
  const label = (code) => known.get(code) ?? { code, name: code, behaviour: "unknown", malignant: false };
  return {
    codes,
    label,
    labels,
    texts,
    origin,
    points,
    abstention: lesion.abstention ? readRule(lesion.abstention) : null,
    classPriors,
    license: lesion.license ?? null,
    notice: lesion.synthetic ? `${texts.notice} ${texts.synthetic_notice}` : texts.notice,
    provenance: {
      model_id: origin.id,
      revision: origin.revision,
      weights_sha256: lesion.weights_sha256,
      data_fingerprint: lesion.data_fingerprint ?? null,
      package_version: origin.packageVersion,
    },
  };
}

function readRule(rule) {
  const floats = (text) =>
    new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
  const centre = floats(rule.centre);
  const all = floats(rule.directions);
  const { length } = centre;
  if (!length || all.length % length) throw new RangeError("directions of another length than the centre");
  const directions = [];
  for (let from = 0; from < all.length; from += length) directions.push(all.subarray(from, from + length));
  return { ...rule, centre, directions };
}

/** ViM, as in modeling/abstention.py: distance of the features from the plane of known images, minus the energy. */
function oodScore(rule, logits, features) {
  const norm = Math.max(Math.sqrt(sum(Array.from(features, (value) => value * value))), TINY);
  const both = [
    ...Array.from(features, (value) => value / norm),
    ...Array.from(features, (value) => value / rule.length),
  ];
  const offsets = both.map((value, i) => value - rule.centre[i]);
  const rest = [...offsets];
  for (const direction of rule.directions) {
    const along = offsets.reduce((total, value, i) => total + value * direction[i], 0);
    for (let i = 0; i < rest.length; i++) rest[i] -= along * direction[i];
  }
  const distance = Math.sqrt(sum(rest.map((value) => value * value)));
  const highest = Math.max(...logits);
  const energy = highest + Math.log(sum(Array.from(logits, (logit) => Math.exp(logit - highest))));
  return rule.residual_weight * distance - energy;
}

/**
 * What the network's outputs for one photo mean.
 * @param {{logits: Float32Array, features: Float32Array, evidence: Float32Array | null, grid: number[]}} outputs
 */
export function readOutputs(model, { logits, features, evidence, grid }) {
  const highest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - highest));
  const total = sum(powers);
  const rule = model.abstention;
  const score = rule && oodScore(rule, logits, features);
  if (Number.isNaN(total + score))
    throw new Error("The network gives numbers that are not finite for this photo: publish the model again.");
  const reason =
    rule && score > rule.threshold
      ? filled(model.texts.reason, { percent: `${(100 * (1 - rule.false_alarm_rate)).toFixed(0)} %` })
      : null;
  return { probs: powers.map((power) => power / total), reason, ...readEvidence(model, evidence, grid) };
}

function readEvidence({ codes }, evidence, [height, width]) {
  if (!evidence) {
    return {
      evidence: null,
      scale: 0,
      strength: {},
      note: "There are no heat maps for this network in a browser.",
    };
  }
  const maps = codes.map((_, index) =>
    evidence.subarray(index * height * width, (index + 1) * height * width),
  );
  const peaks = maps.map((map) => map.reduce((peak, value) => Math.max(peak, value), 0));
  const scale = Math.max(...peaks);
  const rows = (map) =>
    Array.from({ length: height }, (_, y) =>
      Array.from(map.subarray(y * width, (y + 1) * width), (value) => Math.round(value * 1e4) / 1e4),
    );
  return {
    evidence: Object.fromEntries(codes.map((code, index) => [code, rows(maps[index])])),
    scale,
    strength: Object.fromEntries(codes.map((code, index) => [code, peaks[index] / Math.max(scale, TINY)])),
    note: null,
  };
}

function resolvePriors({ codes, classPriors }, choice) {
  if (!["equal", "dataset"].includes(choice)) throw new Error('priors must be "equal" or "dataset".');
  if (choice === "dataset" && !classPriors)
    throw new Error("This model does not record the mix of its dataset.");
  const weights = codes.map((code) => (choice === "dataset" ? classPriors[code] : 1));
  const total = sum(weights);
  return weights.map((weight) => weight / total);
}

function valueOf({ codes }, probs, point) {
  return sum(point.codes.map((code) => probs[codes.indexOf(code)]));
}

/** The operating points of the highest target sensitivity, one a target. */
function headlinePoints({ points }) {
  const highest = Math.max(0, ...points.map((point) => point.target_sensitivity));
  return points.filter((point) => point.target_sensitivity === highest);
}

function targetName({ texts, label }, codes) {
  if (codes.length === 1 && codes[0] === "MEL") return texts.melanoma;
  if (codes.every((code) => label(code).malignant)) return texts.malignancy;
  return codes.map((code) => label(code).name).join(" or ");
}

function verdictOf(model, reached, diagnosis, probability, abstained) {
  const { texts } = model;
  if (abstained) return texts.abstained;
  const mostLikely = filled(texts.most_likely, {
    name: model.label(diagnosis).name,
    probability: percent(rounded(probability)),
  });
  const points = headlinePoints(model);
  const above = points.filter((point) => reached[point.name]);
  const state = above.length ? "flagged" : points.length ? "not_flagged" : "no_threshold";
  let thresholds = "";
  if (points.length) {
    const targets = (above.length ? above : points).map((point) => targetName(model, point.codes));
    thresholds = filled(targets.length === 1 ? texts.threshold : texts.thresholds, {
      sensitivity: percent(points[0].target_sensitivity),
      target: targets.join(texts.and),
    });
  }
  return filled(texts[state], { thresholds, most_likely: mostLikely });
}

/** modeling.prediction.Prediction.to_dict, of probabilities at equal priors. */
function predictionOf(model, probs, reason, priors) {
  const { codes, points } = model;
  const weighted = probs.map((prob, index) => prob * priors[index]);
  const total = sum(weighted);
  const shown = weighted.map((weight) => weight / total);
  const best = shown.indexOf(Math.max(...shown));
  const reached = Object.fromEntries(
    points.map((point) => [point.name, valueOf(model, probs, point) >= point.threshold]),
  );
  const byCode = (values) => Object.fromEntries(codes.map((code, index) => [code, values[index]]));
  return {
    diagnosis: codes[best],
    probability: rounded(shown[best]),
    probabilities: byCode(shown.map(rounded)),
    priors: byCode(priors),
    flagged: headlinePoints(model)
      .filter((point) => reached[point.name])
      .map((point) => targetName(model, point.codes)),
    abstained: reason !== null,
    reason,
    operating_points: reached,
    verdict: verdictOf(model, reached, codes[best], shown[best], reason !== null),
    provenance: model.provenance,
    notice: model.notice,
  };
}

function malignantProbability({ codes, label }, probabilities) {
  const malignant = codes.filter((code) => label(code).malignant);
  return malignant.length
    ? { malignant_probability: rounded(sum(malignant.map((code) => probabilities[code]))) }
    : {};
}

/**
 * The answer for the photos of one lesion.
 * @param {Array<{name: string, error: string | null, reading?: object, size?: [number, number]}>} photos
 * @param {"equal" | "dataset"} choice
 */
export function answerOf(model, photos, choice) {
  if (photos.length > MAX_PHOTOS_A_LESION) {
    throw new Error(
      `There are ${photos.length} photos; at most ${MAX_PHOTOS_A_LESION} of one lesion are averaged. Choose fewer.`,
    );
  }
  const read = photos.filter((photo) => !photo.error);
  if (!read.length) throw new Error(photos.map((photo) => photo.error).join(" ") || "No photo was received.");
  const priors = resolvePriors(model, choice);
  const confident = read.filter(({ reading }) => reading.reason === null);
  const used = confident.length ? confident : read;
  const mean = model.codes.map(
    (_, index) => sum(used.map(({ reading }) => reading.probs[index])) / used.length,
  );
  const lesion = predictionOf(model, mean, used[0].reading.reason, priors);
  const order = model.codes.toSorted((a, b) => lesion.probabilities[b] - lesion.probabilities[a]);
  const flaggedCodes = headlinePoints(model)
    .filter((point) => lesion.operating_points[point.name])
    .flatMap((point) => point.codes);
  return {
    ...lesion,
    differential: order.map((code) => ({ ...model.label(code), probability: lesion.probabilities[code] })),
    ...malignantProbability(model, lesion.probabilities),
    thresholds: Object.fromEntries(
      model.points.map((point) => [point.name, thresholdOf(model, point, mean, lesion)]),
    ),
    not_known: notKnown(model),
    priors_choice: choice,
    n_used: used.length,
    shown: order.find((code) => !flaggedCodes.length || flaggedCodes.includes(code)),
    photos: photos.map((photo) => photoFields(model, photo, used.includes(photo), priors)),
    date: `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`,
    license: model.license,
    model_id: model.origin.id,
    revision: model.origin.revision,
  };
}

function photoFields(model, { name, error, reading, size }, used, priors) {
  if (error) return { name, used: false, error };
  const { abstained, reason, verdict, probabilities } = predictionOf(
    model,
    reading.probs,
    reading.reason,
    priors,
  );
  const { evidence, scale, strength, note } = reading;
  return {
    name,
    used,
    error: null,
    abstained,
    reason,
    verdict,
    probabilities,
    size,
    evidence,
    scale,
    strength,
    note,
  };
}

function thresholdOf(model, point, probs, lesion) {
  return {
    catches: targetName(model, point.codes),
    target_sensitivity: point.target_sensitivity,
    cutoff: point.threshold,
    value: rounded(valueOf(model, probs, point)),
    above: lesion.operating_points[point.name],
    caught: Math.round(point.sensitivity * point.n_positive),
    n_positive: point.n_positive,
    false_alarms: Math.round((1 - point.specificity) * point.n_negative),
    n_negative: point.n_negative,
  };
}

function notKnown({ codes, label, labels }) {
  const known = new Set(codes.flatMap((code) => [code, label(code).name]).map((name) => name.toLowerCase()));
  return labels
    .filter(({ code, name }) => !known.has(code.toLowerCase()) && !known.has(name.toLowerCase()))
    .map(({ name, malignant }) => ({ name, malignant }));
}

/** One row of a batch. */
export function rowOf(model, { name, error, reading, thumbnail }, number, choice) {
  if (error) return { number, name, error };
  const prediction = predictionOf(model, reading.probs, reading.reason, resolvePriors(model, choice));
  const { priors, notice, provenance, ...fields } = prediction;
  return {
    number,
    name,
    error: null,
    ...fields,
    diagnosis_name: model.label(prediction.diagnosis).name,
    ...malignantProbability(model, prediction.probabilities),
    thumbnail,
  };
}
