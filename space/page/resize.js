// Pillow's antialiased bicubic resize, bit by bit (src/libImaging/Resample.c), for 8-bit pictures and for float maps.

const SUPPORT = 2;
const PRECISION_BITS = 22;
const HALF = 2 ** (PRECISION_BITS - 1);

function bicubic(x) {
  const a = -0.5;
  const t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  if (t < 2) return (((t - 5) * t + 8) * t - 4) * a;
  return 0;
}

/** Triangle filter, for models whose `interpolation` is bilinear. */
function bilinear(x) {
  const t = Math.abs(x);
  return t < 1 ? 1 - t : 0;
}

/**
 * Weights of the input pixels for each output pixel.
 * @param {number} inSize
 * @param {number} outSize
 * @param {"bicubic" | "bilinear"} kind
 * @returns {{first: Int32Array, weights: Float64Array[]}}
 */
function coefficients(inSize, outSize, kind) {
  const [filter, width] = kind === "bilinear" ? [bilinear, 1] : [bicubic, SUPPORT];
  const scale = inSize / outSize;
  const filterScale = Math.max(scale, 1);
  const support = width * filterScale;
  const step = 1 / filterScale;
  const first = new Int32Array(outSize);
  const weights = [];
  for (let out = 0; out < outSize; out++) {
    const centre = (out + 0.5) * scale;
    const from = Math.max(Math.trunc(centre - support + 0.5), 0);
    const count = Math.min(Math.trunc(centre + support + 0.5), inSize) - from;
    const row = new Float64Array(count);
    let sum = 0;
    for (let i = 0; i < count; i++) {
      row[i] = filter((i + from - centre + 0.5) * step);
      sum += row[i];
    }
    if (sum !== 0) for (let i = 0; i < count; i++) row[i] /= sum;
    first[out] = from;
    weights.push(row);
  }
  return { first, weights };
}

function fixedPoint({ first, weights }) {
  const rounded = weights.map((row) =>
    Int32Array.from(row, (weight) => Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * 2 ** PRECISION_BITS)),
  );
  return { first, weights: rounded };
}

function clip8(sum) {
  const value = sum >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/**
 * Resizes a picture that comes in bands of rows, so that a photo of 50 megapixels is never in memory twice.
 * Rounds to 8 bits between the horizontal and the vertical pass, as Pillow does.
 */
export class BandResizer {
  /**
   * @param {number} width of the picture
   * @param {number} height of the picture
   * @param {number} side of the square that comes out
   * @param {"bicubic" | "bilinear"} kind
   */
  constructor(width, height, side, kind = "bicubic") {
    Object.assign(this, { width, height, side, kind });
    this.horizontal = fixedPoint(coefficients(width, side, kind));
    this.narrow = new Uint8Array(height * side * 3);
  }

  /** Take rows `from` to `from + nRows` as RGBA bytes; opacity is ignored. */
  add(rgba, from, nRows) {
    const { width, side, narrow } = this;
    const { first, weights } = this.horizontal;
    for (let y = 0; y < nRows; y++) {
      for (let out = 0; out < side; out++) {
        const row = weights[out];
        let at = 4 * (y * width + first[out]);
        let r = HALF;
        let g = HALF;
        let b = HALF;
        for (let i = 0; i < row.length; i++, at += 4) {
          const weight = row[i];
          r += rgba[at] * weight;
          g += rgba[at + 1] * weight;
          b += rgba[at + 2] * weight;
        }
        const to = 3 * ((from + y) * side + out);
        narrow[to] = clip8(r);
        narrow[to + 1] = clip8(g);
        narrow[to + 2] = clip8(b);
      }
    }
  }

  /** @returns {Uint8Array} RGB, side x side x 3 */
  result() {
    const { height, side, narrow } = this;
    const { first, weights } = fixedPoint(coefficients(height, side, this.kind));
    const square = new Uint8Array(side * side * 3);
    const rowBytes = 3 * side;
    for (let out = 0; out < side; out++) {
      const row = weights[out];
      for (let x = 0; x < rowBytes; x++) {
        let sum = HALF;
        for (let i = 0, at = first[out] * rowBytes + x; i < row.length; i++, at += rowBytes)
          sum += narrow[at] * row[i];
        square[out * rowBytes + x] = clip8(sum);
      }
    }
    return square;
  }
}

/**
 * Resize a map of floats bicubically, as modeling/explain.py does.
 * @param {number[][]} grid rows of numbers
 * @returns {Float32Array} width x height values, row by row
 */
export function resizeMap(grid, width, height) {
  const across = coefficients(grid[0].length, width, "bicubic");
  const down = coefficients(grid.length, height, "bicubic");
  const narrow = grid.map((row) =>
    Float32Array.from(across.weights, (weights, out) =>
      weights.reduce((sum, weight, i) => sum + weight * row[across.first[out] + i], 0),
    ),
  );
  const result = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const weights = down.weights[y];
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * narrow[down.first[y] + i][x];
      result[y * width + x] = sum;
    }
  }
  return result;
}
