"use strict";
// The page of feedax show: it asks the server again and again, and changes what has changed.
// All text comes from folders that may be anybody's, so it is only ever set as text.
(() => {
  const { only, most_ticked: MOST_TICKED, most_bytes: MOST_BYTES } = feedax.data();
  const MOST_PICTURES = 20, MOST_READINGS = 60, BARS = 10;
  const DASHES = feedax.dashes;
  const STATES = { running: "● running", ended: "✓ ended", stopped: "■ stopped", torn: "▲ torn" };
  const get = (id) => document.getElementById(id);
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const setText = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)} %`;

  const known = new Map(); // name -> {version, offset, rows, config} of every ticked run
  const slots = []; // the key of the line that each colour belongs to
  let runs = [], isFirst = true, chosenSet = null;

  // ---- the list

  const tableBody = get("runs").tBodies[0], rowsOfRuns = new Map();

  const swatch = (slot) => feedax.swatch(`var(--series-${slot + 1})`, DASHES[slot]);

  const newRow = (name) => {
    const box = make("input", { type: "checkbox" });
    box.addEventListener("change", () => {
      if (box.checked) known.set(name, { version: "", offset: 0, rows: [], config: {} });
      else known.delete(name);
      ask();
    });
    const row = make("tr", {}, make("td", {}, make("label", {}, box, make("span", { textContent: name }))));
    const cells = ["state", "data set", "accuracy", "loss", "epochs", "seconds", "started", "report"];
    for (const label of cells) {
      const cell = make("td", { className: ["accuracy", "loss", "epochs", "seconds"].includes(label) ? "number" : "text" });
      if (!["state", "report"].includes(label)) cell.dataset.label = label;
      row.append(cell);
    }
    return { row, box, cells: [...row.cells].slice(1), note: make("div", { className: "note small wrong" }) };
  };

  const showList = (leftOut) => {
    const names = new Set(runs.map((run) => run.name));
    for (const [name, { row }] of rowsOfRuns) if (!names.has(name)) { row.remove(); rowsOfRuns.delete(name); }
    for (const name of known.keys()) if (!names.has(name)) known.delete(name);
    runs.forEach((run, i) => {
      if (!rowsOfRuns.has(run.name)) rowsOfRuns.set(run.name, newRow(run.name));
      const { row, box, cells, note } = rowsOfRuns.get(run.name);
      const [state, dataset, accuracy, loss, epochs, seconds, started, report] = cells;
      setText(state, STATES[run.state]);
      state.className = `text state ${run.state}`;
      setText(note, run.note || "");
      if (run.note && !note.parentNode) row.cells[0].append(note);
      if (!run.note) note.remove();
      box.checked = known.has(run.name);
      const isTorn = run.done === undefined; // nothing of it can be read
      box.disabled = isTorn || (!box.checked && known.size >= MOST_TICKED);
      if (!isTorn) {
        setText(dataset, run.dataset || "");
        setText(accuracy, run.accuracy === null ? "" : percent(run.accuracy));
        setText(loss, run.loss === null || run.loss === undefined ? "" : feedax.number(run.loss));
        const planned = run.planned === null ? "" : ` / ${run.planned}`;
        setText(epochs, `${run.done}${planned}${run.kind === "sweep" ? " networks" : ""}`);
        epochs.dataset.label = run.kind === "sweep" ? "sweep" : "epochs";
        setText(seconds, run.seconds.toFixed(1));
        setText(started, new Date(1000 * run.started).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }));
        if (run.has_report && !report.firstChild) {
          report.append(make("a", { href: `/runs/${encodeURIComponent(run.name)}/report`, textContent: "report", target: "_blank", rel: "noopener" }));
        } else if (!run.has_report) report.replaceChildren();
      }
      if (tableBody.rows[i] !== row) tableBody.insertBefore(row, tableBody.rows[i] || null);
    });
    const empty = only === null ? "There are no runs in this folder yet. Train one with: feedax train" : "The run is not there any more.";
    setText(get("said"), runs.length === 0 ? empty : leftOut ? `${leftOut} older folders are not listed.` : "");
    get("runs").hidden = runs.length === 0;
  };

  // ---- curves

  const setsOf = (rows) => {
    const sets = new Set();
    for (const row of rows) for (const name of Object.keys(row)) if (name.endsWith("_loss")) sets.add(name.slice(0, -5));
    return sets.size ? sets : new Set([""]);
  };
  const setName = (set) => (set === "" ? "examples as they were trained on" : `${set === "train" ? "training" : set} set`);

  const mean = (networks) => {
    // The rows of several networks as one, epoch by epoch.
    const found = new Map();
    for (const { rows } of networks) for (const row of rows) {
      const sums = found.get(row.epoch) || {};
      for (const [name, value] of Object.entries(row)) if (value !== null) {
        const [sum, count] = sums[name] || [0, 0];
        sums[name] = [sum + value, count + 1];
      }
      found.set(row.epoch, sums);
    }
    return [...found].sort(([a], [b]) => a - b).map(([, sums]) =>
      Object.fromEntries(Object.entries(sums).map(([name, [sum, count]]) => [name, sum / count])));
  };

  // What is drawn: {key, label, rows} of each ticked run, and of each setting of a ticked sweep.
  const lines = () => [...known].flatMap(([name, { rows }]) => {
    const run = runs.find((one) => one.name === name);
    if (!run || run.kind === "run") return [{ key: name, label: name, rows }];
    const settings = new Map();
    for (const network of rows) {
      const key = Object.entries(network.setting).map(([flag, value]) => `${flag.replaceAll("_", " ")} ${value}`).join(", ");
      settings.set(key, [...(settings.get(key) || []), network]);
    }
    return [...settings].map(([setting, networks]) => ({
      key: `${name} ${setting}`, rows: mean(networks),
      label: `${name}: ${setting || "every network"}, mean of ${networks.length}`,
    }));
  });

  const slotOf = (key) => {
    if (!slots.includes(key)) {
      const free = slots.indexOf(null);
      slots[free === -1 ? slots.length : free] = key;
    }
    return slots.indexOf(key);
  };

  const updates = {};
  let drawn = "";

  const showCurves = () => {
    const every = lines(), drawable = every.slice(0, MOST_TICKED);
    const keys = drawable.map((line) => line.key);
    slots.forEach((key, i) => { if (!keys.includes(key)) slots[i] = null; });
    for (const line of drawable) line.slot = slotOf(line.key);
    for (const [name, { row, box }] of rowsOfRuns) {
      const slot = slots.indexOf(name), before = row.querySelector(".swatch");
      if (slot === -1) before?.remove();
      else if (before?.dataset.slot !== String(slot)) {
        before?.remove();
        const mark = swatch(slot);
        mark.dataset.slot = slot;
        box.after(mark);
      }
    }
    const sets = [...new Set(drawable.flatMap((line) => [...setsOf(line.rows)]))];
    const isOne = drawable.length === 1;
    if (!sets.includes(chosenSet)) chosenSet = ["test", "validation"].find((set) => sets.includes(set)) ?? sets[0];
    get("set").hidden = isOne || sets.length < 2;
    const select = get("set").querySelector("select");
    if (JSON.stringify([...select.options].map((one) => one.value)) !== JSON.stringify(sets)) {
      select.replaceChildren(...sets.map((set) => make("option", { value: set, textContent: setName(set) })));
    }
    select.value = chosenSet;

    const x = [...new Set(drawable.flatMap((line) => line.rows.map((row) => row.epoch)))].sort((a, b) => a - b);
    const state = JSON.stringify([drawable.map((line) => [line.label, line.rows.length]), chosenSet, x.length]);
    get("curves").hidden = x.length === 0;
    if (state === drawn || x.length === 0) return;
    drawn = state;
    for (const measure of ["loss", "accuracy"]) {
      const columnOf = (set) => (set ? `${set}_${measure}` : measure);
      const values = (line, set) => {
        const byEpoch = new Map(line.rows.map((row) => [row.epoch, row[columnOf(set)] ?? null]));
        return x.map((epoch) => byEpoch.get(epoch) ?? null);
      };
      const series = isOne
        ? sets.map((set, i) => ({ label: setName(set), values: values(drawable[0], set), colour: i + 1, dash: DASHES[i % 8] }))
        : drawable.map((line) => ({ label: line.label, values: values(line, chosenSet), colour: line.slot + 1, dash: DASHES[line.slot] }));
      const element = get(measure);
      element.hidden = !series.some((one) => one.values.some((value) => value !== null));
      if (element.hidden) continue;
      const title = isOne ? measure : `${measure} of the ${setName(chosenSet)}`;
      if (updates[measure]) updates[measure]({ x, series });
      else updates[measure] = feedax.lines(element, { title, xLabel: "epoch", log: measure === "loss", x, series });
      element.querySelector("strong").textContent = title;
    }
    setText(get("curves-note"), every.length > drawable.length ? `${every.length - drawable.length} more settings are not drawn.` : "");
  };
  get("set").querySelector("select").addEventListener("change", (event) => { chosenSet = event.target.value; showCurves(); });

  // ---- what differs

  let compared = "";

  const showDifferences = () => {
    const names = [...known.keys()].filter((name) => known.get(name).version);
    get("compare").hidden = names.length < 2;
    const entries = [...new Set(names.flatMap((name) => Object.keys(known.get(name).config)))];
    const differing = entries.filter((entry) => new Set(names.map((name) => known.get(name).config[entry])).size > 1);
    const cells = differing.map((entry) => names.map((name) => known.get(name).config[entry] ?? "–"));
    const state = JSON.stringify([names, slots, differing, cells]);
    if (state === compared) return;
    compared = state;
    const head = make("tr", {}, make("th", { textContent: "" }), ...names.map((name) => {
      const slot = slots.indexOf(name);
      return make("th", {}, ...(slot === -1 ? [] : [swatch(slot)]), name);
    }));
    get("compare").querySelector("table").replaceChildren(head, ...differing.map((entry, i) =>
      make("tr", {}, make("td", { textContent: entry.replaceAll("-", " ") }),
        ...cells[i].map((text) => make("td", { textContent: text })))));
    get("compare").querySelector("table").hidden = differing.length === 0;
    setText(get("compare").querySelector("p"), differing.length === 0 ? "Nothing: their configurations are the same." : "");
  };

  // ---- pictures

  const reader = get("pictures").querySelector("select");

  const showReaders = () => {
    const names = runs.filter((run) => run.sees_pictures).map((run) => run.name);
    get("pictures").hidden = names.length === 0;
    if (JSON.stringify([...reader.options].map((one) => one.value)) === JSON.stringify(names)) return;
    const chosen = reader.value;
    reader.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
    if (names.includes(chosen)) reader.value = chosen;
    else reader.value = names.find((name) => known.has(name)) ?? names[0];
  };

  const askReader = async (options = {}) => {
    const response = await fetch(`/api/runs/${encodeURIComponent(reader.value)}`, options);
    const answer = await response.json();
    if (answer.error) throw new Error(answer.error);
    return answer;
  };

  // What the network of the chosen run sees in a picture.
  const read = async (blob) => {
    if (blob.size > MOST_BYTES) throw new Error(`The picture has more than ${feedax.number(MOST_BYTES)} bytes; make it smaller.`);
    const answer = await askReader({
      method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" },
    });
    answer.pixels = Uint8Array.from(atob(answer.pixels), (letter) => letter.charCodeAt(0));
    return answer;
  };

  const picture = ({ pixels, transposed, shape: [height, width, channels = 1] }) => {
    const canvas = make("canvas", { width, height }), image = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      // Upright, also where the data set has rows and columns exchanged.
      const from = channels * (transposed ? (i % width) * height + Math.floor(i / width) : i);
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[from + (channels < 3 ? 0 : c)];
      image.data[4 * i + 3] = channels === 4 ? pixels[from + 3] : 255;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  };

  const bars = ({ probabilities, names }) => {
    const order = probabilities.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
    const element = make("div", { className: "shares" });
    for (const i of order.slice(0, BARS).sort((a, b) => a - b)) {
      const more = i === order[0] ? " likeliest" : "", bar = make("div");
      bar.style.width = percent(probabilities[i]).replace(" ", "");
      element.append(make("div", { className: `name${more}`, textContent: names[i] }),
        make("div", { className: "bar" }, bar),
        make("div", { className: `share${more}`, textContent: percent(probabilities[i], 1) }));
    }
    return element;
  };

  const readFiles = async (files) => {
    const taken = [...files].slice(0, MOST_PICTURES);
    setText(get("pictures-note"), files.length > taken.length ? `Of ${files.length} pictures the first ${taken.length} are read.` : "");
    const cards = taken.map((file) => {
      const said = make("p", { className: "small faint", textContent: "is being read …" });
      const card = make("article", { className: "reading" }, make("h3", { textContent: file.name }), said);
      return { file, card, said };
    });
    get("readings").prepend(...cards.map(({ card }) => card));
    while (get("readings").children.length > MOST_READINGS) get("readings").lastChild.remove();
    for (const { file, card, said } of cards) {
      const name = reader.value;
      try {
        const answer = await read(file);
        const shown = make("img", { alt: "", src: URL.createObjectURL(file) });
        const original = make("figure", {}, shown, "the picture");
        shown.addEventListener("load", () => URL.revokeObjectURL(shown.src));
        shown.addEventListener("error", () => original.remove()); // of a format that browsers do not read
        const left = make("div", {}, original, make("figure", {}, picture(answer), "what the network saw"));
        said.replaceWith(make("div", { className: "seen" }, left, bars(answer)));
        card.append(make("ul", {}, ...answer.notes.map((note) => make("li", { textContent: note }))),
          make("p", { className: "small faint", textContent: `read by ${name}` }));
        card.answer = answer;
      } catch (error) {
        said.className = "small wrong";
        setText(said, error.message);
      }
    }
  };

  // The network is loaded when it is asked for, and not with the page.
  const write = async () => {
    const place = make("div");
    setText(get("pictures-note"), "");
    try {
      feedax.canvas(place, { ...await askReader(), prepare: async (blob) => {
        const answer = await read(blob);
        const doubts = answer.notes.filter((note) => note.startsWith("perhaps"));
        return { ...answer, note: doubts.length ? `It is ${doubts.join("; ")}.` : "" };
      } });
      get("canvas").replaceChildren(place);
    } catch (error) {
      setText(get("pictures-note"), error.message);
    }
  };
  get("canvas").querySelector("button").addEventListener("click", write);
  reader.addEventListener("change", () => { if (get("canvas").querySelector(".canvas")) write(); });

  const drop = get("drop"), input = drop.querySelector("input");
  input.addEventListener("change", async () => { await readFiles(input.files); input.value = ""; });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    readFiles(event.dataTransfer.files);
  });
  // A picture that misses the place must not replace the page.
  for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());

  // ---- asking

  let timer = null, isAsking = false, again = false;

  let wait = 3000;

  const take = (answer) => {
    runs = answer.runs;
    let hasMore = false;
    for (const [name, news] of Object.entries(answer.ticked)) {
      const run = known.get(name);
      if (!run) continue; // unticked meanwhile
      if (news.version !== run.version) Object.assign(run, { version: news.version, config: news.config, rows: [] });
      run.rows = run.rows.concat(news.rows);
      run.offset = news.offset;
      hasMore ||= news.rows.length > 0;
    }
    const newest = isFirst && runs.find((run) => run.done !== undefined);
    if (newest) {
      isFirst = false;
      known.set(newest.name, { version: "", offset: 0, rows: [], config: {} });
      again = true;
    }
    const isStill = runs.length > 0 && !hasMore && runs.every((run) => run.state !== "running");
    wait = isStill ? 3000 : 1000;
    showList(answer.left_out);
    showCurves();
    showDifferences();
    showReaders();
  };

  const ask = async () => {
    if (isAsking) { again = true; return; }
    clearTimeout(timer);
    isAsking = true;
    const ticked = [...known].map(([name, { version, offset }]) => [name, version, offset]);
    let answer = null;
    try {
      const response = await fetch(`/api/runs?ticked=${encodeURIComponent(JSON.stringify(ticked))}`);
      if (response.ok) answer = await response.json();
    } catch { /* it has ended, or is being started again */ }
    if (answer === null) setText(get("said"), "The server does not answer; has feedax show ended?");
    else take(answer);
    isAsking = false;
    if (again) { again = false; ask(); }
    else timer = setTimeout(ask, document.hidden ? 10000 : wait);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  ask();
})();
