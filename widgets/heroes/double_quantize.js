// @ts-check
// Double quantization as `wb.double_quantize` does it, which is bitsandbytes' way on a CPU: every product rounded to float32.

const STEPS = 65536; // entries of the table over [−1, 1] through which it rounds
const f32 = Math.fround;

/** The code of each of the table's steps: how many midpoints between dynamic levels lie below it. */
function codesOfSteps(dynamic) {
  const middles = Float32Array.from({ length: dynamic.length - 1 }, (_, k) => f32(0.5 * f32(dynamic[k] + dynamic[k + 1])));
  return Uint8Array.from({ length: STEPS }, (_, i) => rankOf(middles, f32(-1 + f32(f32(2 * i) / f32(STEPS - 1)))));
}

/** Bits of scales to each weight. */
const scaleBits = (size, nested, double) => (double ? 8 / size + 32 / (size * nested) : 32 / size);

/** Whether the scales are quantized too: buttons for the state's `double`. */
function scaleButtons(hero) {
  const options = [["plain", "32-bit scales"], ["double", "Quantize the scales too"]];
  const { group, press } = buttons("Scales", options, (key) => hero.change({ double: key === "double" }));
  return { group, press: (double) => press(double ? "double" : "plain") };
}

/** The scales that the weights are restored with: absmax values through 8 bits, in blocks of `nested`. */
function doubleQuantized(absmax, nested, dynamic, codes) {
  const offset = f32(absmax.reduce((sum, value) => sum + value, 0) / absmax.length);
  const centred = absmax.map((value) => f32(value - offset));
  const second = absmaxOf(centred, nested);
  return centred.map((value, i) => {
    const largest = second[(i / nested) | 0];
    if (!largest) return offset; // code 0 of a block of zeros, times 0
    const scaled = clamp(f32(value * f32(1 / largest)), -1, 1);
    const step = Math.trunc(f32(f32(f32(f32(scaled + 1) * 0.5) * (STEPS - 1)) + 0.5));
    return f32(f32(dynamic[codes[step]] * largest) + offset);
  });
}
