// @ts-check
// Blockwise quantization to a table of levels, as `wb.measure` does it: products and quotients in float32, sums in float64.

/** A packed array (widgets/heroes/hero.py) as numbers; bfloat16 becomes float32, which holds it exactly. */
function unpack({ dtype, base64 }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  if (dtype === "float32") return new Float32Array(bytes.buffer);
  if (dtype === "int32") return new Int32Array(bytes.buffer);
  if (dtype !== "bfloat16") throw new Error(`unknown dtype ${dtype}`);
  const words = new Uint32Array(bytes.length / 2);
  const halves = new Uint16Array(bytes.buffer);
  for (let i = 0; i < words.length; i++) words[i] = halves[i] << 16;
  return new Float32Array(words.buffer);
}

/** Midpoints of neighbouring levels: a value above edge k goes to level k + 1 or higher. */
function edgesOf(levels) {
  return Float32Array.from({ length: levels.length - 1 }, (_, k) => Math.fround(levels[k] + levels[k + 1]) / 2);
}

/** How many edges lie below a value. */
function rankOf(edges, value) {
  let low = 0, high = edges.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (edges[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The largest magnitude of each block of `size` weights. */
function absmaxOf(weights, size) {
  const absmax = new Float32Array(Math.ceil(weights.length / size));
  for (let i = 0; i < weights.length; i++) {
    const b = (i / size) | 0, magnitude = Math.abs(weights[i]);
    if (magnitude > absmax[b]) absmax[b] = magnitude;
  }
  return absmax;
}

/**
 * Quantize to `levels` (ascending, in units of a block's absmax) in whole blocks of `size`. `scales`, one a block, replace the
 * absmax values where codes become weights again, as double quantization's do.
 */
function measure(weights, levels, size, scales) {
  const table = Float32Array.from(levels), edges = edgesOf(table), absmax = absmaxOf(weights, size);
  const ranks = new Uint8Array(weights.length), becomes = new Float32Array(weights.length);
  const occupancy = new Float64Array(table.length), blockSquares = new Float64Array(absmax.length);
  let squares = 0, own = 0;
  for (let b = 0; b < absmax.length; b++) {
    const scale = (scales ?? absmax)[b], factor = absmax[b] ? Math.fround(1 / absmax[b]) : 0;
    for (let i = b * size; i < Math.min((b + 1) * size, weights.length); i++) {
      const x = weights[i], rank = rankOf(edges, Math.fround(x * factor));
      const restored = Math.fround(table[rank] * scale), error = x - restored;
      ranks[i] = rank;
      becomes[i] = restored;
      occupancy[rank]++;
      blockSquares[b] += error * error;
      own += x * x;
    }
    squares += blockSquares[b];
  }
  const rmse = Math.sqrt(squares / weights.length), rms = Math.sqrt(own / weights.length);
  return { absmax, ranks, becomes, occupancy, blockSquares, rmse, rms, relative: rms ? rmse / rms : 0 };
}
