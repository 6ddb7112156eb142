"use strict";
// A canvas to draw on with mouse, finger or pen, and what the network reads.
//   data: what feedax.predicting.canvas_data gives.
//   data.prepare: in place of data.program, where a server knows the network: an async function from
//     a PNG of the drawing, a Blob, to {pixels, probabilities, note}. What it throws is shown.
// `element.result` holds the last {pixels, probabilities}, null of a blank canvas.
feedax.canvas = (element, data) => {
  const SIDE = 336, PEN = 26, MARGIN = 12; // pixels; no ink enters the margin, as drawing.js asks
  const { classNames, framing, shape, unsure } = data;
  const network = data.program ? feedax.network(data.program) : null;
  const strokes = [];
  let current = null; // the stroke that is being drawn, and its pointer

  const make = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const help = make("p", "faint small", "Draw with the mouse, a finger or a pen. After every " +
    "movement, the drawing is brought to the form of the network’s training examples, and the network reads it.");
  const paper = make("canvas", "paper");
  paper.width = paper.height = SIDE;
  paper.setAttribute("role", "img");
  paper.setAttribute("aria-label", "Drawing area");
  const undo = make("button", "", "Undo"), clear = make("button", "", "Clear");
  undo.type = clear.type = "button";
  const buttons = make("div", "buttons");
  buttons.append(undo, clear);
  const left = make("div");
  left.append(paper, buttons);
  const seen = make("canvas"), figure = make("figure");
  [seen.height, seen.width] = shape;
  seen.setAttribute("role", "img");
  seen.setAttribute("aria-label", "The image that the network sees");
  figure.append(seen, make("figcaption", "faint", `What the network sees: ${shape[1]}\u00a0x\u00a0${shape[0]}\u00a0pixels`));
  const said = make("p", "said");
  said.setAttribute("role", "status");
  const answer = make("div", "answer"), bars = make("ol", "bars");
  const rows = Array.from({ length: Math.min(10, classNames.length) }, () => {
    const row = make("li"), track = make("div", "track");
    const parts = { row, name: make("span"), bar: make("div", "bar"), share: make("span", "number faint") };
    track.append(parts.bar);
    row.append(parts.name, track, parts.share);
    bars.append(row);
    return parts;
  });
  answer.append(figure, bars, said);
  element.classList.add("canvas");
  element.replaceChildren(help, left, answer);

  const context = (canvas) => canvas.getContext("2d", { willReadFrequently: true });
  const ink = context(paper);

  const draw = () => {
    ink.fillStyle = "#fff";
    ink.fillRect(0, 0, SIDE, SIDE);
    ink.strokeStyle = "#000";
    ink.lineWidth = data.pen || PEN;
    ink.lineCap = ink.lineJoin = "round";
    for (const points of strokes) {
      ink.beginPath();
      const [x, y] = points[0];
      ink.moveTo(x, y);
      ink.lineTo(x + 0.01, y); // a dot; a line without any length is not drawn
      for (const point of points) ink.lineTo(...point);
      ink.stroke();
    }
    undo.disabled = clear.disabled = !strokes.length;
    read();
  };

  const showPixels = (pixels) => {
    const [height, width, channels = 1] = shape, image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      // Upright, also where the data set has rows and columns exchanged.
      const from = framing.transposed ? (i % width) * height + Math.floor(i / width) : i;
      for (let k = 0; k < 3; k++) image.data[4 * i + k] = pixels ? pixels[from * channels + (channels > 2 ? k : 0)] : 0;
      image.data[4 * i + 3] = pixels && channels === 4 ? pixels[from * channels + 3] : 255;
    }
    context(seen).putImageData(image, 0, 0);
  };

  const percent = (share) => (100 * share).toFixed(share < 0.9995 ? 1 : 0) + " %";

  const show = (result, note = "") => {
    element.result = result;
    showPixels(result && result.pixels);
    const shares = result ? Array.from(result.probabilities) : classNames.map(() => 0);
    let order = shares.map((_, label) => label);
    if (order.length > rows.length) order.sort((a, b) => shares[b] - shares[a]);
    const best = shares.indexOf(Math.max(...shares));
    rows.forEach(({ row, name, bar, share }, i) => {
      const label = order[i];
      name.textContent = classNames[label];
      bar.style.width = `${100 * shares[label]}%`;
      share.textContent = result ? percent(shares[label]) : "";
      row.classList.toggle("likeliest", Boolean(result) && label === best);
    });
    const doubt = result && shares[best] < unsure ? " It is not sure." : "";
    said.textContent = result
      ? `The network reads “${classNames[best]}” with a probability of ${percent(shares[best])}.${doubt}${note && ` ${note}`}`
      : note || "The bars move as soon as you draw.";
  };

  const readHere = () => {
    const drawing = feedax.prepareDrawing(ink.getImageData(0, 0, SIDE, SIDE), framing);
    if (!drawing) return show(null);
    const { pixels, things } = drawing;
    const note = things > 1
      ? `It reads one thing only: of the ${things} that are far apart, the largest.` : "";
    const example = Float32Array.from(pixels, (pixel) => pixel * data.white / 255);
    show({ pixels, probabilities: feedax.softmax(network(example)) }, note);
  };

  const readThere = async () => {
    if (!strokes.length) return show(null);
    try {
      const result = await data.prepare(await new Promise((done) => paper.toBlob(done, "image/png")));
      if (strokes.length) show(result, result.note);
    } catch (error) {
      show(null, error.message);
    }
  };

  // Once a frame at most, and one request at a time; the last drawing is always read.
  let isWaiting = false, isReading = false;
  const read = () => {
    if (isWaiting) return;
    isWaiting = true;
    requestAnimationFrame(async () => {
      if (isReading) return;
      isReading = true;
      while (isWaiting) {
        isWaiting = false;
        if (network) readHere();
        else await readThere();
      }
      isReading = false;
    });
  };

  const place = (event) => {
    const { left, top, width } = paper.getBoundingClientRect();
    const least = MARGIN + (data.pen || PEN) / 2;
    const inside = (at) => Math.min(Math.max(at * SIDE / width, least), SIDE - least);
    return [inside(event.clientX - left), inside(event.clientY - top)];
  };
  paper.addEventListener("pointerdown", (event) => {
    if (current || event.button) return;
    event.preventDefault();
    paper.setPointerCapture(event.pointerId); // a stroke may leave the paper and come back
    current = { pointer: event.pointerId, points: [place(event)] };
    strokes.push(current.points);
    draw();
  });
  paper.addEventListener("pointermove", (event) => {
    if (!current || event.pointerId !== current.pointer) return;
    const moves = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const move of moves.length ? moves : [event]) current.points.push(place(move));
    draw();
  });
  for (const end of ["pointerup", "pointercancel"])
    paper.addEventListener(end, (event) => {
      if (current && event.pointerId === current.pointer) current = null;
    });
  undo.addEventListener("click", () => { strokes.pop(); draw(); });
  clear.addEventListener("click", () => { strokes.length = 0; draw(); });
  draw();
};
