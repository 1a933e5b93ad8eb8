// The two engines, engine_server.js and engine_browser.js, have one form and the same limits.

/**
 * @typedef {object} Photo
 * @property {string} name
 * @property {Blob} blob
 */

/**
 * @typedef {object} Engine
 * @property {"server" | "browser"} kind
 * @property {string} privacy what happens to a photo, in a sentence
 * @property {() => Promise<object>} about
 *   {model, examples, examples_source, metrics, metrics_problem, figures}
 * @property {(photos: Photo[], options: {priors: "equal" | "dataset"}) => Promise<object>} answer
 *   the answer for the photos of one lesion; rejects with an Error whose message is a sentence for the visitor
 * @property {(photos: Photo[], options: {priors: "equal" | "dataset"}, onRow: (row: object) => void,
 *   signal: AbortSignal) => Promise<void>} batch one row for each photo, in order
 */

export const MAX_PHOTOS_A_LESION = 8;
export const MAX_PHOTOS_A_BATCH = 200;
