"use strict";
// What moves on a report: its charts, its sortable table, the confusion matrix, the canvas.
(() => {
  const data = feedax.data();

  for (const element of document.querySelectorAll("[data-chart]"))
    feedax.lines(element, data.charts[element.dataset.chart]);

  const shares = document.getElementById("shares");
  if (shares) shares.addEventListener("click", () => {
    const isOn = shares.getAttribute("aria-pressed") !== "true";
    shares.setAttribute("aria-pressed", String(isOn));
    for (const cell of document.querySelectorAll(".confusion td"))
      cell.textContent = isOn ? cell.dataset.share : cell.dataset.count;
  });

  for (const table of document.querySelectorAll("table.sortable"))
    table.querySelectorAll("thead button").forEach((button, column) =>
      button.addEventListener("click", () => {
        const isDown = button.parentElement.getAttribute("aria-sort") === "ascending";
        for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
        button.parentElement.setAttribute("aria-sort", isDown ? "descending" : "ascending");
        const key = (row) => row.children[column].dataset.value;
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === "" || y === "") return x === y ? 0 : x === "" ? 1 : -1; // what is missing comes last
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return isDown ? -order : order;
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
      }));

  const drawing = document.getElementById("drawing");
  if (drawing) feedax.canvas(drawing, data.canvas);
})();
