// The heat map: experts by prompts, or by the mean over each task's prompts.
function heatMap(data) {
  const place = document.getElementById("heat");
  const view = document.getElementById("heat-view");
  const filter = document.getElementById("heat-filter");
  const byColumn = document.getElementById("by-task");
  const all = [];
  for (const task of data.tasks) {
    for (const prompt of task.prompts) all.push({ task: task.name, prompt, at: [all.length] });
  }
  const seen = new Set(data.seen.map(String));
  const chosen = new Map(data.chosen.map(([expert, column, first, text]) => [`${expert},${column}`, { first, text }]));
  let sorting = null;

  view.append(make("option", { value: "tasks" }, "tasks, each the mean of its prompts"));
  if (all.length <= 60) view.append(make("option", { value: "prompts" }, "all prompts"));
  data.tasks.forEach((task, number) => view.append(make("option", { value: String(number) }, `prompts of ${task.name}`)));
  view.value = all.length <= 24 ? "prompts" : "tasks";

  function columnsOf() {
    if (view.value === "prompts") return all;
    if (view.value !== "tasks") return all.filter((column) => column.task === data.tasks[Number(view.value)].name);
    return data.tasks.map((task) => {
      const at = all.filter((column) => column.task === task.name).flatMap((column) => column.at);
      return { task: task.name, prompt: null, at };
    });
  }

  // One cell in thousandths, with what is to be said of it.
  function cellOf(expert, column) {
    const found = column.at.filter((at) => data.accuracy[expert][at] !== null);
    if (!found.length) return null;
    const values = found.map((at) => data.accuracy[expert][at]);
    const picks = found.map((at) => chosen.get(`${expert},${at}`)).filter(Boolean);
    return {
      value: values.reduce((sum, value) => sum + value, 0) / values.length,
      ends: found.length === 1 ? [data.low[expert][found[0]], data.high[expert][found[0]]] : [Math.min(...values), Math.max(...values)],
      prompts: found.length,
      seen: found.some((at) => seen.has(`${expert},${at}`)),
      first: picks.some((pick) => pick.first),
      picks: picks.map((pick) => pick.text),
    };
  }

  const inside = (value, [low, high]) => (high > low ? (value - low) / (high - low) : 0.5);
  const percent = (value) => (value / 10).toFixed(1);

  function told(expert, column, cell) {
    const where = column.prompt === null ? column.task : `${column.task}/${column.prompt}`;
    const ends = `${percent(cell.ends[0])}–${percent(cell.ends[1])}`;
    const sure = cell.prompts > 1 ? `over ${cell.prompts} prompts, ${ends}` : `95 % interval ${ends}, ${data.rows[column.at[0]].toLocaleString("en")} rows`;
    const picked = cell.picks.length > 3 ? `${cell.picks.length} times` : cell.picks.join("; ");
    return `${data.experts[expert][0]} on ${where}: ${percent(cell.value)} %, ${sure}`
      + (cell.seen ? " · ‡ trained on this dataset" : "") + (picked ? ` · chosen: ${picked}` : "");
  }

  function draw() {
    const columns = columnsOf();
    const words = wordsOf(filter);
    const lines = data.experts.map(([name, family], expert) => ({ name, family, expert, cells: columns.map((column) => cellOf(expert, column)) }));
    const fair = columns.map((_, at) => lines.map((line) => line.cells[at]).filter((cell) => cell && !cell.seen).map((cell) => cell.value));
    const reach = columns.map((_, at) => {
      const values = lines.map((line) => line.cells[at]).filter(Boolean).map((cell) => cell.value);
      return [Math.min(...values), Math.max(...values)];
    });
    const whole = [Math.min(...reach.map((one) => one[0])), Math.max(...reach.map((one) => one[1]))];
    const best = fair.map((values) => (new Set(values).size > 1 ? Math.max(...values) : null));
    const shown = lines.filter((line) => words.every((word) => `${line.name} ${line.family}`.toLowerCase().includes(word)));

    const headers = columns.map((column) => make("th", { scope: "col", class: column.prompt === null ? "prompt task" : "prompt", title: column.prompt === null ? column.task : `${column.task}/${column.prompt}` },
      make("button", { type: "button" }, make("span", {}, column.prompt ?? column.task))));
    const top = make("tr", {}, make("th", { class: "corner", scope: "col", rowspan: view.value === "tasks" ? 1 : 2 }, "expert"));
    const head = make("thead", {}, top);
    if (view.value === "tasks") {
      top.append(...headers);
    } else {
      for (const task of new Set(columns.map((column) => column.task))) {
        const span = columns.filter((column) => column.task === task).length;
        top.append(make("th", { class: "task", colspan: span, scope: "colgroup", title: task }, make("span", {}, task)));
      }
      head.append(make("tr", {}, ...headers));
    }
    const table = make("table", { class: byColumn.checked ? "map by-task" : "map" },
      make("caption", {}, "Accuracy of every expert, in percent"), head);

    const row = (line) => make("tr", {},
      make("th", { scope: "row", title: line.name }, make("span", {}, line.name)),
      ...line.cells.map((cell, at) => {
        if (!cell) return make("td", { title: `${line.name}: not scored` }, "–");
        const [v, c] = [inside(cell.value, whole), inside(cell.value, reach[at])];
        const names = ["heat", cell.first ? "chosen" : cell.picks.length ? "merged" : "", !cell.seen && cell.value === best[at] ? "top" : "",
          v > 0.62 ? "deep" : "", c > 0.62 ? "deep-task" : ""].filter(Boolean).join(" ");
        return make("td", { class: names, style: `--v:${v.toFixed(3)};--c:${c.toFixed(3)}`, title: told(line.expert, columns[at], cell) },
          Math.round(cell.value / 10) + (cell.seen ? "‡" : ""));
      }));

    if (sorting === null) {
      for (const family of new Set(shown.map((line) => line.family))) {
        const own = shown.filter((line) => line.family === family);
        table.append(make("tbody", {}, make("tr", { class: "family" }, make("th", { scope: "rowgroup" }, family), make("td", { colspan: columns.length })), ...own.map(row)));
      }
    } else {
      const header = headers[sorting.column];
      header.setAttribute("aria-sort", sorting.sign < 0 ? "descending" : "ascending");
      const value = (line) => line.cells[sorting.column]?.value ?? "";
      table.append(make("tbody", {}, ...sorted(shown, value, sorting.sign).map(row)));
    }
    headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
      // The third turn goes back to the families.
      const before = sorting?.column === column ? sorting.sign : 0;
      sorting = before === 1 ? null : { column, sign: before === 0 ? -1 : 1 };
      draw();
      document.querySelectorAll("#heat .prompt button")[column].focus();
    }));
    const across = place.scrollLeft;
    place.replaceChildren(table);
    place.scrollLeft = across;
    document.getElementById("heat-low").textContent = byColumn.checked ? "lowest of the column" : `${percent(whole[0])} %`;
    document.getElementById("heat-high").textContent = byColumn.checked ? "highest" : `${percent(whole[1])} %`;
    document.getElementById("heat-count").textContent = words.length ? `${shown.length} of ${lines.length} experts` : `${lines.length} experts`;
  }

  view.addEventListener("change", () => { sorting = null; draw(); });
  filter.addEventListener("input", draw);
  byColumn.addEventListener("change", draw);
  draw();
}

if (document.getElementById("heat-data")) heatMap(JSON.parse(document.getElementById("heat-data").textContent));
