"use strict";
// A drawing as an example of 28 x 28, as feedax/predicting.py makes one of its PNG. Where the two
// differ, that module is right; tests hold them equal. Drawings are dark on white, at most 600 pixels
// long, with a white margin, so of its ways only that for clean paper is needed.

(() => {
  const SIDE = 28;

  const roundEven = (x) => {
    const below = Math.floor(x);
    return x - below === 0.5 ? below + (below % 2) : Math.round(x);
  };

  // Parts that touch, also by their corners: what each weighs, and its box.
  const partsOf = (strength, width, height, least, strong) => {
    const labels = new Int32Array(width * height).fill(-1), parts = [], pending = [];
    for (let start = 0; start < strength.length; start++) {
      if (strength[start] < least || labels[start] >= 0) continue;
      const label = parts.length;
      const part = { weight: 0, top: height, left: width, bottom: 0, right: 0 };
      labels[start] = label;
      pending.push(start);
      while (pending.length) {
        const at = pending.pop(), row = Math.floor(at / width), column = at % width;
        if (strength[at] > strong) part.weight += strength[at];
        part.top = Math.min(part.top, row);
        part.bottom = Math.max(part.bottom, row + 1);
        part.left = Math.min(part.left, column);
        part.right = Math.max(part.right, column + 1);
        for (let r = Math.max(0, row - 1); r <= Math.min(height - 1, row + 1); r++)
          for (let c = Math.max(0, column - 1); c <= Math.min(width - 1, column + 1); c++) {
            const next = r * width + c;
            if (strength[next] < least || labels[next] >= 0) continue;
            labels[next] = label;
            pending.push(next);
          }
      }
      part.extent = Math.max(part.bottom - part.top, part.right - part.left);
      parts.push(part);
    }
    return { labels, parts };
  };

  const gap = (a, b) => Math.max(
    a.top - b.bottom, b.top - a.bottom, a.left - b.right, b.left - a.right);

  // The parts of the largest thing, and how many things there are.
  const oneThing = (parts, side) => {
    for (const part of parts) part.isThing = part.weight > 0 && part.extent > 0.04 * side;
    const isAny = parts.some((part) => part.isThing);
    const counts = (part) => part.isThing || !isAny;
    let main = parts[0];
    for (const part of parts)
      if ((counts(part) ? part.weight : 0) > (counts(main) ? main.weight : 0)) main = part;
    const large = parts.filter((part) => part.weight > 0.03 * main.weight);
    const joined = large.filter(counts), kept = new Set([main]);
    for (let before = 0; before < kept.size;) {
      before = kept.size;
      const members = [...kept];
      for (const part of joined)
        if (members.some((member) => gap(part, member) <= 0.1 * main.extent)) kept.add(part);
    }
    const others = large.filter((part) => part.weight > 0.15 * main.weight && !kept.has(part));
    return { kept, things: 1 + others.length };
  };

  // Pillow's ways to resize an image of float32.
  const box = { support: 0.5, of: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) };
  const bicubic = {
    support: 2,
    of: (x) => {
      const d = Math.abs(x);
      if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
      return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
    },
  };

  const weightsOf = (filter, from, to) => {
    const scale = from / to, wide = Math.max(scale, 1), support = filter.support * wide;
    return Array.from({ length: to }, (_, i) => {
      const centre = (i + 0.5) * scale;
      const first = Math.max(0, Math.trunc(centre - support + 0.5));
      const last = Math.min(from, Math.trunc(centre + support + 0.5));
      const weights = [];
      for (let k = first; k < last; k++) weights.push(filter.of((k - centre + 0.5) / wide));
      const sum = weights.reduce((a, b) => a + b, 0);
      return { first, weights: weights.map((weight) => weight / sum) };
    });
  };

  const resizedRows = (filter, image, width, height, to) => {
    if (to === width) return image;
    const out = new Float32Array(to * height);
    weightsOf(filter, width, to).forEach(({ first, weights }, column) => {
      for (let row = 0; row < height; row++) {
        let sum = 0;
        weights.forEach((weight, k) => { sum += image[row * width + first + k] * weight; });
        out[row * to + column] = sum;
      }
    });
    return out;
  };
  const transposed = (image, width, height) => {
    const out = new Float32Array(image.length);
    for (let i = 0; i < image.length; i++) out[(i % width) * height + Math.floor(i / width)] = image[i];
    return out;
  };
  const resized = (filter, image, width, height, newWidth, newHeight) => {
    const narrow = transposed(resizedRows(filter, image, width, height, newWidth), newWidth, height);
    return transposed(resizedRows(filter, narrow, height, newWidth, newHeight), newHeight, newWidth);
  };

  const centreOfMass = (image, width) => {
    let total = 0, rows = 0, columns = 0;
    image.forEach((value, i) => {
      total += value;
      rows += value * Math.floor(i / width);
      columns += value * (i % width);
    });
    return [rows / total, columns / total];
  };

  // The ink in a frame of 28 x 28.
  const placed = (ink, width, height, framing) => {
    const scale = framing.length / Math.max(width, height);
    const newWidth = Math.max(1, roundEven(width * scale));
    const newHeight = Math.max(1, roundEven(height * scale));
    const filter = scale < 1 ? box : bicubic;
    const small = resized(filter, ink, width, height, newWidth, newHeight);
    const brighter = Math.fround(255 / small.reduce((a, b) => Math.max(a, b), 0));
    for (let i = 0; i < small.length; i++)
      small[i] = Math.min(Math.max(Math.fround(small[i] * brighter), 0), 255);
    const offsets = framing.by_mass
      ? centreOfMass(small, newWidth).map((middle) => 14 - middle)
      : [(SIDE - newHeight) / 2, (SIDE - newWidth) / 2];
    const inside = (offset, side) => Math.min(Math.max(roundEven(offset), 0), SIDE - side);
    const top = inside(offsets[0], newHeight), left = inside(offsets[1], newWidth);
    const frame = new Float32Array(SIDE * SIDE);
    for (let row = 0; row < newHeight; row++)
      for (let column = 0; column < newWidth; column++)
        frame[(top + row) * SIDE + left + column] = small[row * newWidth + column];
    return frame;
  };

  // The 784 pixels of a drawing in ImageData and how many things it shows; null of a blank one.
  //   framing: {length, by_mass, transposed, blank, noise}, as feedax.predicting.canvas_data gives it.
  feedax.prepareDrawing = ({ data, width, height }, framing) => {
    const strength = new Float32Array(width * height).map((_, i) => 255 - data[4 * i]);
    const level = strength.reduce((a, b) => Math.max(a, b), 0);
    if (level < framing.blank) return null;
    const least = framing.noise * level;
    const { labels, parts } = partsOf(strength, width, height, least, 0.5 * level);
    const { kept, things } = oneThing(parts, Math.max(width, height));
    const all = [...kept];
    const top = Math.min(...all.map((part) => part.top)), left = Math.min(...all.map((part) => part.left));
    const right = Math.max(...all.map((part) => part.right));
    const bottom = Math.max(...all.map((part) => part.bottom));
    const ink = new Float32Array((right - left) * (bottom - top));
    for (let row = top; row < bottom; row++)
      for (let column = left; column < right; column++) {
        const at = row * width + column;
        if (labels[at] >= 0 && kept.has(parts[labels[at]]))
          ink[(row - top) * (right - left) + column - left] = strength[at];
      }
    let frame = placed(ink, right - left, bottom - top, framing);
    if (framing.transposed) frame = transposed(frame, SIDE, SIDE);
    return { pixels: Uint8Array.from(frame, roundEven), things };
  };
})();
