"use strict";
// The table is the data: rows are read once, and then sorted, filtered and plotted in place.
(() => {
  const $ = (id) => document.getElementById(id);
  const table = $("cases"), body = table.tBodies[0], head = table.tHead.rows[0];
  const heads = [...head.cells].slice(0, -1);
  const numeric = heads.map((cell) => cell.classList.contains("n"));
  const number = (text) => (text === "" ? NaN : Number(text.replaceAll(",", "").split(" ")[0]));
  const rows = [...body.rows].map((element) => {
    const texts = heads.map((_, i) => element.cells[i].textContent);
    return {
      element, texts, measured: element.dataset.m === "1", on: false,
      values: texts.map((text, i) => (numeric[i] ? number(text) : text)),
      search: texts.join(" ").toLowerCase(),
    };
  });
  const column = (start) => heads.findIndex((cell) => cell.dataset.name.startsWith(start));

  // Sorting: a button in each header; the same button again turns the order round.
  const filters = heads.map(() => null);
  const filterRow = table.tHead.insertRow();
  heads.forEach((cell, i) => {
    cell.dataset.name = cell.textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = cell.textContent;
    cell.textContent = "";
    cell.append(button);
    button.addEventListener("click", () => sort(i, cell.getAttribute("aria-sort") === "ascending"));
    const place = document.createElement("td");
    const input = document.createElement("input");
    input.setAttribute("aria-label", "filter " + cell.dataset.name);
    input.size = 1;
    input.placeholder = numeric[i] ? "<9" : "text";
    input.title = numeric[i] ? "<9, >=9, =9, 3-9, or how it begins" : "part of the text";
    input.addEventListener("input", () => { filters[i] = test(input.value, i); show(); });
    place.append(input);
    filterRow.append(place);
    if (numeric[i]) rows.forEach((row) => row.element.cells[i].classList.add("n"));
  });
  filterRow.append(document.createElement("td"));

  function sort(index, down) {
    heads.forEach((cell) => cell.removeAttribute("aria-sort"));
    heads[index].setAttribute("aria-sort", down ? "descending" : "ascending");
    const sign = down ? -1 : 1;
    rows.sort((a, b) => {
      const x = a.values[index], y = b.values[index];
      if (!numeric[index]) return sign * x.localeCompare(y);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // empty last
      return sign * (x - y);
    });
    body.append(...rows.map((row) => row.element));
    show();
  }

  function test(text, index) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return null;
    if (!numeric[index]) return (row) => row.texts[index].toLowerCase().includes(wanted);
    const bound = /^(<=|>=|<|>|=)\s*([\d.,]+)$/.exec(wanted);
    const range = /^([\d.,]+)\s*-\s*([\d.,]+)$/.exec(wanted);
    if (range) {
      const low = number(range[1]), high = number(range[2]);
      return (row) => row.values[index] >= low && row.values[index] <= high;
    }
    if (bound) {
      const limit = number(bound[2]);
      const holds = { "<": (v) => v < limit, ">": (v) => v > limit, "<=": (v) => v <= limit,
        ">=": (v) => v >= limit, "=": (v) => v === limit }[bound[1]];
      return (row) => holds(row.values[index]);
    }
    return (row) => row.texts[index].startsWith(wanted);
  }

  // A table of thousands of rows is slow to lay out: so many are shown until all are asked for.
  let most = 200;
  function showAll() { most = Infinity; show(); }

  function show() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const onlyMeasured = $("measured") && $("measured").checked;
    const onlyChosen = $("chosen").checked;
    const active = filters.filter(Boolean);
    let fitting = 0;
    for (const row of rows) {
      const fits = (!onlyMeasured || row.measured) && (!onlyChosen || row.on) &&
        words.every((word) => row.search.includes(word)) && active.every((holds) => holds(row));
      fitting += fits;
      row.element.hidden = !fits || fitting > most;
    }
    const chosen = rows.filter((row) => row.on).length;
    const cut = fitting > most;
    $("count").textContent = `${fitting.toLocaleString("en")} of ${rows.length.toLocaleString("en")} cases` +
      (cut ? `, the first ${most} shown` : "") + (chosen ? `, ${chosen} selected` : "");
    $("all").hidden = !cut;
  }

  function choose(row, on) {
    row.on = on;
    row.element.classList.toggle("on", on);
    if (row.point) row.point.setAttribute("aria-pressed", String(on));
    show();
  }

  // The plot: both axes logarithmic, a shape and a colour for each precision.
  const colours = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c8c"];
  const shapes = [
    (x, y) => `M${x - 5},${y}a5,5 0 1,0 10,0a5,5 0 1,0 -10,0`,
    (x, y) => `M${x - 4.5},${y - 4.5}h9v9h-9z`,
    (x, y) => `M${x},${y - 5.5}l5.5,10h-11z`,
    (x, y) => `M${x},${y - 6}l6,6l-6,6l-6,-6z`,
    (x, y) => `M${x},${y + 5.5}l5.5,-10h-11z`,
    (x, y) => `M${x - 5},${y - 2}h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z`,
  ];
  const svgElement = (name, attributes, parent) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  };

  function plot() {
    const svg = document.querySelector("#plot > svg");
    if (!svg) return;
    svg.replaceChildren();
    $("legend").replaceChildren();
    const time = column("step time"), peak = column("peak allocated");
    const model = column("model"), precision = column("precision"), scenario = column("scenario");
    rows.forEach((row) => { row.point = null; });
    const shown = rows.filter((row) => row.texts[model] === $("model").value &&
      row.values[time] > 0 && row.values[peak] > 0);
    if (!shown.length) return;
    const box = { left: 70, right: 740, top: 14, bottom: 370 };
    const scale = (index, low, high) => {
      const logs = shown.map((row) => Math.log(row.values[index]));
      const pad = Math.max(0.05, (Math.max(...logs) - Math.min(...logs)) * 0.06);
      const first = Math.min(...logs) - pad, last = Math.max(...logs) + pad;
      return { at: (v) => low + ((Math.log(v) - first) / (last - first)) * (high - low),
        from: Math.exp(first), to: Math.exp(last) };
    };
    const x = scale(time, box.left, box.right), y = scale(peak, box.bottom, box.top);
    const ticks = ({ from, to }) => {
      let found = [];
      for (const steps of [[1], [1, 2, 5], [1, 1.5, 2, 3, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]]) {
        found = [];
        for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power++)
          for (const step of steps) {
            const value = Number((step * 10 ** power).toPrecision(3));
            if (value >= from && value <= to) found.push(value);
          }
        if (found.length >= 4) break;
      }
      return found;
    };
    for (const value of ticks(x)) {
      svgElement("path", { d: `M${x.at(value)},${box.top}V${box.bottom}`, class: "grid" }, svg);
      svgElement("text", { x: x.at(value), y: box.bottom + 16, "text-anchor": "middle" }, svg).textContent = value;
    }
    for (const value of ticks(y)) {
      svgElement("path", { d: `M${box.left},${y.at(value)}H${box.right}`, class: "grid" }, svg);
      svgElement("text", { x: box.left - 6, y: y.at(value) + 4, "text-anchor": "end" }, svg).textContent = value;
    }
    svgElement("path", { d: `M${box.left},${box.top}V${box.bottom}H${box.right}`, class: "axis" }, svg);
    svgElement("text", { x: (box.left + box.right) / 2, y: 405, "text-anchor": "middle" }, svg).textContent = heads[time].dataset.name;
    svgElement("text", { transform: `translate(16,${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, svg).textContent = heads[peak].dataset.name;
    [...new Set(shown.map((row) => row.texts[precision]))].forEach((name, i) => {
      const colour = colours[i % colours.length], shape = shapes[i % shapes.length];
      const mine = shown.filter((row) => row.texts[precision] === name);
      const sign = svgElement("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" }, $("legend"));
      svgElement("path", { d: shape(7, 7), stroke: colour, fill: "none", "stroke-width": 2 }, sign);
      $("legend").append(name);
      const front = mine.filter((row) => row.element.dataset.f).sort((a, b) => a.values[time] - b.values[time]);
      if (front.length > 1) {
        const path = front.map((row, k) => (k ? `H${x.at(row.values[time])}V${y.at(row.values[peak])}`
          : `M${x.at(row.values[time])},${y.at(row.values[peak])}`)).join("");
        svgElement("path", { d: path, stroke: colour, fill: "none", "stroke-dasharray": i ? `${2 + 3 * i} 3` : "none" }, svg);
      }
      for (const row of mine) {
        const point = svgElement("g", { role: "button", tabindex: 0, "aria-pressed": String(row.on), color: colour }, svg);
        const said = `${row.texts[scenario]} ${name}: ${row.texts[peak]}, ${row.texts[time]}`;
        point.setAttribute("aria-label", said);
        svgElement("title", {}, point).textContent = said;
        svgElement("path", { d: shape(x.at(row.values[time]), y.at(row.values[peak])), stroke: colour, class: "point" }, point);
        const toggle = () => choose(row, !row.on);
        point.addEventListener("click", toggle);
        point.addEventListener("keydown", (event) => {
          if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); }
        });
        row.point = point;
      }
    });
    $("plot").hidden = false;
  }

  body.addEventListener("click", (event) => {
    if (event.target.closest("a")) return;
    const row = rows.find((one) => one.element === event.target.closest("tr"));
    if (row) choose(row, !row.on);
  });
  $("all").addEventListener("click", showAll);
  addEventListener("beforeprint", showAll);
  $("search").addEventListener("input", show);
  $("chosen").addEventListener("change", show);
  if ($("measured")) $("measured").addEventListener("change", show);
  if ($("model")) $("model").addEventListener("change", plot);
  $("clear").addEventListener("click", () => {
    $("search").value = "";
    $("chosen").checked = false;
    filterRow.querySelectorAll("input").forEach((input) => { input.value = ""; });
    filters.fill(null);
    rows.forEach((row) => { row.on = false; row.element.classList.remove("on"); });
    plot();
    show();
  });
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // A permanent link shows its row, whatever the filters say.
  function follow() {
    const name = decodeURIComponent(location.hash.slice(1));
    const row = rows.find((one) => one.element.id === name);
    if (!row) return;
    if (!row.measured && $("measured")) { $("measured").checked = false; show(); }
    row.element.hidden = false;
    row.element.scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", follow);
  $("controls").hidden = false;
  plot();
  show();
  follow();
})();
