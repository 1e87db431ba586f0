"use strict";
// A cell sorts by its data-value where it has one (numbers as numbers), by its text otherwise.
function valueOf(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.value ?? cell.textContent.trim();
  const number = Number(value);
  return value !== "" && !Number.isNaN(number) ? number : value;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button")?.addEventListener("click", () => {
      // Numbers are read from the top down, so they start with the highest.
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const numeric = rows.every((row) => typeof valueOf(row, column) === "number");
      const current = header.getAttribute("aria-sort");
      const order = current === null ? (numeric ? "descending" : "ascending")
        : current === "ascending" ? "descending" : "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column)));
      body.append(...rows);
    });
  });
}

for (const input of document.querySelectorAll("input.filter")) {
  const rows = document.getElementById(input.dataset.filters).tBodies[0].rows;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

document.getElementById("by-task")?.addEventListener("change", (event) => {
  document.querySelector(".map").classList.toggle("by-task", event.target.checked);
});
