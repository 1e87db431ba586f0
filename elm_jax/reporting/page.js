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

// What is missing comes last, whichever way a column is sorted.
function sorted(rows, value, sign) {
  const missing = rows.filter((row) => value(row) === "");
  const there = rows.filter((row) => value(row) !== "");
  return [...there.sort((a, b) => sign * compare(value(a), value(b))), ...missing];
}

// Numbers are read from the top down, so they start with the highest.
function turned(header, headers, numeric) {
  const current = header.getAttribute("aria-sort");
  const order = current === null ? (numeric ? "descending" : "ascending")
    : current === "ascending" ? "descending" : "ascending";
  headers.forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", order);
  return order === "ascending" ? 1 : -1;
}

function wordsOf(input) {
  return input.value.toLowerCase().split(/\s+/).filter(Boolean);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  headers.forEach((header, column) => {
    header.querySelector("button")?.addEventListener("click", () => {
      const value = (row) => valueOf(row, column);
      const bodies = [...table.tBodies].map((body) => [body, [...body.rows].filter((row) => row.className !== "block")]);
      const values = bodies.flatMap(([, rows]) => rows.map(value)).filter((one) => one !== "");
      const sign = turned(header, headers, values.every((one) => typeof one === "number"));
      for (const [body, rows] of bodies) body.append(...sorted(rows, value, sign));
    });
  });
}

for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = document.getElementById(input.dataset.filters).tBodies[0].rows;
  const count = input.parentElement.querySelector("output");
  input.addEventListener("input", () => {
    const words = wordsOf(input);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = words.length ? `${shown} of ${rows.length} shown` : "";
  });
}

// Makes an element with attributes and children; text stays text, whatever is in it.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
