// The browser of rows: those that a method got right or wrong, a page at a time.
function rowBrowser(data) {
  const AT_ONCE = 10;
  const LONG = 700;
  const [method, task, right, search] = ["method", "task", "right", "search"].map((name) => document.getElementById(`rows-${name}`));
  const [back, on, list, count] = ["back", "on", "list", "count"].map((name) => document.getElementById(`rows-${name}`));
  let page = 0;

  method.append(make("option", { value: "" }, "any method"), ...data.methods.map((name) => make("option", { value: name }, name)));
  task.append(make("option", { value: "" }, "all tasks"), ...data.tasks.map((name) => make("option", { value: name }, name)));
  const texts = data.rows.map((row) => [row.task, row.prompt, row.row, row.input, row.target, ...row.choices,
    ...Object.values(row.answers).map((answer) => answer.prediction)].join("\n").toLowerCase());

  function wanted(row, number, words) {
    const names = method.value ? [method.value] : data.methods;
    const answers = names.map((name) => row.answers[name]).filter(Boolean);
    return (!task.value || row.task === task.value)
      && answers.some((answer) => !right.value || answer.right === (right.value === "right"))
      && words.every((word) => texts[number].includes(word));
  }

  function text(value) {
    if (value.length <= LONG) return make("p", { class: "text" }, value);
    return make("details", { class: "text" }, make("summary", {}, make("span", {}, value.slice(0, LONG)), " … ", make("b", {}, "more")), value.slice(LONG));
  }

  const sign = (answer) => make("span", { class: answer.right ? "right-mark" : "wrong-mark" }, answer.right ? "✓ right" : "✗ wrong");

  function ranked(row, names) {
    const head = make("tr", {}, make("th", { scope: "col" }, "choice"),
      ...names.map((name) => make("th", { scope: "col", class: "right" }, name, make("br", {}), sign(row.answers[name]))));
    const lines = row.choices.map((choice, at) => make("tr", { class: choice === row.target ? "target" : null },
      make("th", { scope: "row" }, choice, choice === row.target ? make("span", { class: "quiet" }, " — right") : null),
      ...names.map((name) => {
        const { prediction, scores } = row.answers[name];
        const picked = prediction === choice;
        return make("td", { class: picked ? "right picked" : "right" }, scores ? scores[at].toFixed(2) : "", picked ? " ◂" : "");
      })));
    return make("div", { class: "scroll" }, make("table", { class: "answers" }, make("caption", {}, "Choices, and what each method scored them"), make("thead", {}, head), make("tbody", {}, ...lines)));
  }

  function written(row, names) {
    const line = (name, value, mark) => make("div", {}, make("dt", {}, name, " ", mark), make("dd", {}, value));
    return make("dl", { class: "written" }, line("target", row.target, null), ...names.map((name) => line(name, row.answers[name].prediction, sign(row.answers[name]))));
  }

  function card(row) {
    const answered = data.methods.filter((name) => row.answers[name]);
    const names = method.value && row.answers[method.value] ? [method.value, ...answered.filter((name) => name !== method.value)] : answered;
    return make("article", { class: "row" }, make("h3", {}, `${row.task} `, make("span", { class: "quiet" }, `${row.prompt} · row ${row.row}`)),
      text(row.input), row.choices.length ? ranked(row, names) : written(row, names));
  }

  function draw() {
    const words = wordsOf(search);
    const found = data.rows.filter((row, number) => wanted(row, number, words));
    const pages = Math.max(1, Math.ceil(found.length / AT_ONCE));
    page = Math.min(Math.max(page, 0), pages - 1);
    list.replaceChildren(...found.slice(page * AT_ONCE, (page + 1) * AT_ONCE).map(card));
    count.textContent = `${found.length} of ${data.rows.length} rows, page ${page + 1} of ${pages}`;
    back.disabled = page === 0;
    on.disabled = page === pages - 1;
  }

  for (const control of [method, task, right, search]) control.addEventListener("input", () => { page = 0; draw(); });
  back.addEventListener("click", () => { page -= 1; draw(); });
  on.addEventListener("click", () => { page += 1; draw(); });
  draw();
}

if (document.getElementById("rows-data")) rowBrowser(JSON.parse(document.getElementById("rows-data").textContent));
