"use strict";
// Charts by uPlot, in the page's colours. Each keeps what it shows in `element.chart`.
const feedax = {};

feedax.data = () => JSON.parse(document.getElementById("data").textContent);

feedax.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

feedax.number = (value, digits = 4) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 0.001 && size < 1e6 ? String(Number(value.toPrecision(digits))) : value.toExponential(2);
};

// The patterns of lines, for those who see few colours and for grey print.
feedax.dashes = [[], [10, 5], [2, 4], [12, 4, 2, 4], [6, 3], [16, 4], [2, 2, 8, 2], [4, 8]];

// A piece of a line, as a legend has it.
feedax.swatch = (colour, dash) => {
  const [svg, line] = ["svg", "line"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
  svg.setAttribute("class", "swatch");
  svg.setAttribute("viewBox", "0 0 32 10");
  svg.setAttribute("aria-hidden", "true");
  for (const [name, value] of Object.entries({ x1: 0, x2: 32, y1: 5, y2: 5 })) line.setAttribute(name, value);
  line.setAttribute("stroke-dasharray", (dash || []).join(" "));
  line.style.stroke = colour;
  svg.append(line);
  return svg;
};

// Draw lines over a common x.
//   title, xLabel: text.  x: numbers.  log: whether a button switches to a logarithmic axis.
//   series: [{label, values (null where there is none), colour (1-8), dash, points: only points,
//             band: index of the series that a band ends at}]
// Returns a function that draws another {x, series} in the same chart.
feedax.lines = (element, spec) => {
  const title = document.createElement("div");
  title.className = "title";
  const heading = document.createElement("strong");
  heading.textContent = spec.title || "";
  title.append(heading);
  const place = document.createElement("div");
  element.classList.add("chart");
  element.replaceChildren(title, place);
  let plot = null, isLog = false;

  if (spec.log) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "log scale";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      isLog = !isLog;
      button.setAttribute("aria-pressed", String(isLog));
      draw();
    });
    title.append(button);
  }

  const height = () => Math.round(Math.max(180, Math.min(280, element.clientWidth * 0.55)));

  const columns = () => {
    const positive = (value) => (isLog && !(value > 0) ? null : value);
    return [spec.x, ...spec.series.map((one) => one.values.map(positive))];
  };

  // Where nobody points at the chart, the legend has the last value of each line.
  const showLast = () => {
    const last = (values) => values.findLastIndex((value) => value !== null && value !== undefined);
    plot.setLegend({ idxs: [spec.x.length - 1, ...spec.series.map((one) => Math.max(0, last(one.values)))] });
  };

  const draw = () => {
    if (plot) plot.destroy();
    const ink = feedax.colour("--faint"), line = feedax.colour("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const integers = spec.x.every(Number.isInteger);
    plot = new uPlot({
      width: Math.max(200, element.clientWidth), height: height(),
      scales: {
        x: {
          time: false,
          ...(spec.xLog ? { distr: 3, range: (self, low, high) => [low / 1.2, high * 1.2] }
            : { range: (self, low, high) => (spec.x.length === 1 ? [low - 0.5, low + 0.5] : [low, high]) }),
        },
        y: isLog ? { distr: 3 } : {},
      },
      axes: [
        {
          ...axis, label: spec.xLabel, labelSize: 24, size: 34,
          ...(integers ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] } : {}),
          // On a logarithmic axis, 1, 2 and 5 of each power of ten.
          ...(spec.xLog ? { filter: (self, ticks) => ticks.map((tick) => ("125".includes(tick.toExponential()[0]) ? tick : null)) } : {}),
          values: (self, ticks) => ticks.map((tick) => (tick === null ? "" : String(Number(tick.toPrecision(6))))),
        },
        {
          ...axis, size: (self, texts) => 24 + 7 * Math.max(4, ...(texts || []).map((text) => text.length)),
          // As many digits as tell ticks apart that lie so close.
          values: (self, ticks, i, space, step) => ticks.map((tick) => (tick === null ? ""
            : feedax.number(tick, isLog || !tick ? 3 : Math.max(1, Math.ceil(Math.log10(Math.abs(tick) / step)) + 1)))),
        },
      ],
      cursor: { y: false, drag: { x: false, y: false } },
      legend: { live: true },
      series: [
        { label: spec.xLabel, value: (self, value) => (value === null ? "–" : feedax.number(value)) },
        ...spec.series.map((one, i) => {
          const colour = feedax.colour(`--series-${one.colour || (i % 8) + 1}`);
          return {
            label: one.label, stroke: colour, width: one.points ? 0 : one.width === undefined ? 2 : one.width,
            dash: one.dash, spanGaps: true,
            points: { show: one.points || spec.x.length < 40, size: one.points ? 8 : 5, fill: colour, stroke: colour },
            ...(one.points ? { paths: () => null } : {}),
            value: (self, value) => feedax.number(value),
          };
        }),
      ],
      bands: spec.series.flatMap((one, i) => one.band === undefined ? [] : [{
        series: [i + 1, one.band + 1],
        fill: feedax.colour(`--series-${one.colour || (i % 8) + 1}`) + "33",
      }]),
    }, columns(), place);
    plot.over.addEventListener("mouseleave", () => setTimeout(showLast));
    setTimeout(showLast); // uPlot draws a moment later
    // The edges of a band need no line in the legend.
    const rows = place.querySelectorAll(".u-legend .u-series");
    spec.series.forEach((one, i) => { if (one.width === 0) rows[i + 1].hidden = true; });
    spec.series.forEach((one, i) => {
      const marker = place.querySelectorAll(".u-series")[i + 1].querySelector(".u-marker");
      if (!one.points) marker.replaceWith(feedax.swatch(`var(--series-${one.colour || (i % 8) + 1})`, one.dash));
    });
  };

  draw();
  new ResizeObserver(() => plot.setSize({ width: Math.max(200, element.clientWidth), height: height() })).observe(element);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  element.chart = spec;
  return (changed) => {
    const areFew = (x) => x.length < 40; // then each value is a point
    const isSame = areFew(changed.x) === areFew(spec.x) && changed.series.length === spec.series.length &&
      changed.series.every((one, i) => one.label === spec.series[i].label);
    Object.assign(spec, changed);
    if (isSame) {
      plot.setData(columns());
      if (plot.cursor.left < 0) showLast();
    } else draw();
  };
};
