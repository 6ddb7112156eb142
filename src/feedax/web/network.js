"use strict";
// A network that runs in the page. feedax/train/page_program.py writes the program: operations on flat
// arrays of float32, of which each knows the numbers of its inputs and the size of its output.

(() => {
  const bytesOf = (base64) => {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return bytes;
  };

  const kinds = { float32: Float32Array, int16: Int16Array, int32: Int32Array };
  const arrayOf = ({ dtype, scale, data }) =>
    new Float32Array(new kinds[dtype](bytesOf(data).buffer)).map((number) => number * scale);

  // The places of an array's elements that lie at regular steps in another one.
  const placesOf = ({ lengths, offset, strides }) => {
    let places = Int32Array.of(offset);
    lengths.forEach((length, axis) => {
      const longer = new Int32Array(places.length * length);
      for (let i = 0; i < places.length; i++)
        for (let k = 0; k < length; k++) longer[i * length + k] = places[i] + k * strides[axis];
      places = longer;
    });
    return places;
  };

  // Numerical Recipes, section 6.2: right to 1.2e-7.
  const erfc = (x) => {
    const t = 1 / (1 + 0.5 * Math.abs(x));
    const terms = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806,
      0.09678418, 0.37409196, 1.00002368, -1.26551223];
    const y = t * Math.exp(-x * x + terms.reduce((sum, term) => sum * t + term, 0));
    return x >= 0 ? y : 2 - y;
  };
  const roundEven = (x) => {
    const below = Math.floor(x), rest = x - below;
    return rest === 0.5 ? below + (below % 2 ? 1 : 0) : Math.round(x);
  };

  const elementwise = {
    abs: Math.abs, acos: Math.acos, acosh: Math.acosh, asin: Math.asin, asinh: Math.asinh,
    atan: Math.atan, atanh: Math.atanh, cbrt: Math.cbrt, ceil: Math.ceil, cos: Math.cos,
    cosh: Math.cosh, erf: (x) => 1 - erfc(x), erfc, exp: Math.exp, exp2: (x) => 2 ** x,
    expm1: Math.expm1, floor: Math.floor, is_finite: (x) => +Number.isFinite(x), log: Math.log,
    log1p: Math.log1p, logistic: (x) => 1 / (1 + Math.exp(-x)), neg: (x) => -x, not: (x) => +!x,
    round: (x) => Math.sign(x) * Math.round(Math.abs(x)), round_even: roundEven,
    rsqrt: (x) => 1 / Math.sqrt(x), sign: Math.sign, sin: Math.sin, sinh: Math.sinh,
    sqrt: Math.sqrt, square: (x) => x * x, tan: Math.tan, tanh: Math.tanh, trunc: Math.trunc,
    add: (a, b) => a + b, and: (a, b) => a & b, atan2: Math.atan2, div: (a, b) => a / b,
    eq: (a, b) => +(a === b), ge: (a, b) => +(a >= b), gt: (a, b) => +(a > b),
    le: (a, b) => +(a <= b), lt: (a, b) => +(a < b), max: (a, b) => Math.max(a, b),
    min: (a, b) => Math.min(a, b), mul: (a, b) => a * b, ne: (a, b) => +(a !== b),
    or: (a, b) => a | b, pow: (a, b) => a ** b, rem: (a, b) => a % b, sub: (a, b) => a - b,
    xor: (a, b) => a ^ b,
    clamp: (low, x, high) => Math.min(Math.max(x, low), high),
    select_n: (which, ...cases) => cases[which],
  };

  const apply = (f, out, inputs) => {
    const [a, b, c] = inputs;
    const [p, q, r] = inputs.map((input) => (input.length === 1 ? 0 : 1)); // a single number stays
    for (let i = 0; i < out.length; i++)
      switch (inputs.length) {
        case 1: out[i] = f(a[i * p]); break;
        case 2: out[i] = f(a[i * p], b[i * q]); break;
        case 3: out[i] = f(a[i * p], b[i * q], c[i * r]); break;
        default: out[i] = f(...inputs.map((input) => input[input.length === 1 ? 0 : i]));
      }
  };

  const over = (f, start) => (out, [x]) => {
    const count = x.length / out.length;
    for (let i = 0; i < out.length; i++) {
      let sum = start;
      for (let k = i * count; k < (i + 1) * count; k++) sum = f(sum, x[k]);
      out[i] = sum;
    }
  };
  const place = (isBetter) => (out, [x]) => {
    const count = x.length / out.length;
    for (let i = 0; i < out.length; i++) {
      let best = 0;
      for (let k = 1; k < count; k++) if (isBetter(x[i * count + k], x[i * count + best])) best = k;
      out[i] = best;
    }
  };

  const operations = {
    sum: over((a, b) => a + b, 0), prod: over((a, b) => a * b, 1),
    max: over(Math.max, -Infinity), min: over(Math.min, Infinity),
    argmax: place((a, b) => a > b), argmin: place((a, b) => a < b),
    take: (out, [x, places]) => {
      for (let i = 0; i < out.length; i++) out[i] = places[i] < 0 ? NaN : x[places[i]];
    },
    view: (out, [x], { places }) => {
      for (let i = 0; i < out.length; i++) out[i] = x[places[i]];
    },
    pad: (out, [x, value], { places }) => {
      out.fill(value[0]);
      for (let i = 0; i < x.length; i++) out[places[i]] = x[i];
    },
    concatenate: (out, inputs, { sizes }) => {
      const row = sizes.reduce((sum, size) => sum + size, 0);
      let start = 0;
      inputs.forEach((input, k) => {
        for (let i = 0; i < input.length / sizes[k]; i++)
          out.set(input.subarray(i * sizes[k], (i + 1) * sizes[k]), i * row + start);
        start += sizes[k];
      });
    },
    // Products of matrices: every row of the left one with every row of the right one.
    dot: (out, [left, right], { rows, columns, terms }) => {
      for (let at = 0; at < out.length; at++) {
        const column = at % columns, row = Math.floor(at / columns); // of all matrices
        const a = row * terms, b = (Math.floor(row / rows) * columns + column) * terms;
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0, k = 0;
        for (; k < terms - 3; k += 4) {
          s0 += left[a + k] * right[b + k];
          s1 += left[a + k + 1] * right[b + k + 1];
          s2 += left[a + k + 2] * right[b + k + 2];
          s3 += left[a + k + 3] * right[b + k + 3];
        }
        for (; k < terms; k++) s0 += left[a + k] * right[b + k];
        out[at] = s0 + s1 + (s2 + s3);
      }
    },
  };

  // A function from an example, any array of numbers, to the network's outputs.
  feedax.network = (program) => {
    const arrays = [];
    for (const constant of program.constants) arrays[constant.number] = arrayOf(constant);
    const steps = program.equations.map((equation) => {
      const { op, inputs, output, size } = equation;
      const places = equation.strides && placesOf(equation);
      arrays[output] = new Float32Array(size);
      // Reductions and elementwise functions share names; the former have one input.
      const isElementwise = op in elementwise && !(inputs.length === 1 && op in operations);
      const run = isElementwise ? (out, given) => apply(elementwise[op], out, given) : operations[op];
      return () => run(arrays[output], inputs.map((input) => arrays[input]), { ...equation, places });
    });
    return (example) => {
      arrays[program.input] = Float32Array.from(example);
      for (const step of steps) step();
      return arrays[program.output].slice();
    };
  };

  feedax.softmax = (outputs) => {
    const most = Math.max(...outputs);
    const powers = Array.from(outputs, (output) => Math.exp(output - most));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  };
})();
