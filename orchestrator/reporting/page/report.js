"use strict";
// Draws the two figures and sorts the table. All numbers, fronts included, are computed before; nothing is here.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon", "triangle-down", "hexagram"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
// Okabe and Ito's colours, which people with colour-vision deficiencies can tell apart.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a6d00", "#7f7f7f"];
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(extra) {
  const axis = { gridcolor: style("--line"), zeroline: false, linecolor: style("--line"), automargin: true };
  const narrow = window.innerWidth < 700;
  return {
    paper_bgcolor: style("--ground"), plot_bgcolor: style("--ground"),
    font: { color: style("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
    margin: { l: 60, r: 20, t: 30, b: 55 }, hovermode: "closest",
    hoverlabel: { align: "left", bgcolor: style("--raised"), bordercolor: style("--line"), font: { color: style("--ink") } },
    legend: narrow ? { orientation: "h", y: -0.25 } : { y: 1 },
    ...extra,
    xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
  };
}

function options(select, entries, chosen) {
  for (const [value, label] of entries) select.add(new Option(label, value, false, value === chosen));
}

function empty(figure, message) {
  figure.classList.add("empty");
  figure.textContent = message;
}

function drawScatter() {
  const [x, y, by] = [at("x").value, at("y").value, at("by").value];
  const column = Object.fromEntries(data.columns.map((c) => [c.key, c]));
  const points = data.rows.filter((r) => r.values[x] !== undefined && r.values[y] !== undefined);
  const front = new Set(data.fronts[`${y}|${x}`] ?? data.fronts[`${x}|${y}`] ?? []);
  const kinds = [...new Set(points.map((r) => r.labels[by] ?? ""))];
  const traces = [];
  const groups = new Map();
  for (const r of points.filter((r) => front.has(r.name))) {
    const key = `${r.groups[x]}${r.groups[y]}`;
    groups.set(key, [...(groups.get(key) ?? []), r]);
  }
  for (const members of groups.values()) {
    members.sort((a, b) => a.values[x] - b.values[x]);
    traces.push({
      x: members.map((r) => r.values[x]), y: members.map((r) => r.values[y]), mode: "lines", hoverinfo: "skip",
      line: { shape: column[x].direction === "higher" ? "vh" : "hv", dash: "dot", width: 1.5, color: style("--quiet") },
      name: groups.size > 1 ? `front (conditions ${members[0].groups[x]})` : "front", showlegend: true,
    });
  }
  kinds.forEach((kind, k) => {
    const members = points.filter((r) => (r.labels[by] ?? "") === kind);
    const colour = COLOURS[k % COLOURS.length];
    const bars = (axis) => ({
      type: "data", array: members.map((r) => r.spreads[axis] ?? 0), visible: true, thickness: 1, width: 3, color: colour,
    });
    const symbol = SYMBOLS[k % SYMBOLS.length];
    traces.push({
      x: members.map((r) => r.values[x]), y: members.map((r) => r.values[y]), error_x: bars(x), error_y: bars(y),
      mode: "markers", name: by ? `${by}=${kind}` : "combinations", showlegend: Boolean(by),
      marker: { size: 11, color: colour, symbol: members.map((r) => symbol + (front.has(r.name) ? "" : "-open")), line: { width: 2, color: colour } },
      text: members.map((r) => r.hover), hovertemplate: "%{text}<extra></extra>",
    });
  });
  Plotly.react("scatter", traces, layout({
    xaxis: { title: { text: column[x].title }, type: at("log").checked ? "log" : "linear" },
    yaxis: { title: { text: column[y].title } },
  }), CONFIG);
}

function drawCurves() {
  const [name, filter] = [at("curve").value, at("filter").value.toLowerCase()];
  const shown = data.curves.filter((c) => c.values[name] && c.label.toLowerCase().includes(filter));
  const last = Math.max(1, ...shown.map((c) => c.values[name].at(-1)[0]));
  const traces = shown.map((c, k) => ({
    x: c.values[name].map((p) => p[0]), y: c.values[name].map((p) => p[1]), name: c.label, mode: c.values[name].length > 40 ? "lines" : "lines+markers",
    line: { color: COLOURS[k % COLOURS.length], dash: DASHES[Math.floor(k / COLOURS.length) % DASHES.length], width: 1.5 },
    marker: { symbol: SYMBOLS[k % SYMBOLS.length], size: 6 }, hovertemplate: "%{fullData.name}<br>epoch %{x}: %{y}<extra></extra>",
  }));
  Plotly.react("training", traces, layout({
    xaxis: { title: { text: "epoch" }, dtick: Math.max(1, Math.ceil(last / 12)) }, yaxis: { title: { text: name } }, showlegend: shown.length <= 16,
  }), CONFIG);
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, k) => head.querySelector("button")?.addEventListener("click", () => {
    const first = head.dataset.first ?? "ascending";
    const turned = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? turned : first;
    heads.forEach((h) => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const key = (row) => row.cells[k].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [u, v] = [key(a), key(b)];
      if (u === "" || v === "") return (u === "") - (v === ""); // missing values stay at the end
      const difference = Number.isNaN(Number(u)) ? u.localeCompare(v, "en", { numeric: true }) : u - v;
      return order === "ascending" ? difference : -difference;
    });
    table.tBodies[0].append(...rows);
  }));
}

function draw() {
  if (at("x").options.length > 1) drawScatter();
  if (data.curves.length) drawCurves();
}

document.querySelectorAll("table.sortable").forEach(sortable);
const goals = data.columns.filter((c) => c.direction !== "none").map((c) => [c.key, c.title]);
options(at("x"), goals, data.cost);
options(at("y"), goals, data.quality);
options(at("by"), [...data.axes.map((a) => [a, a]), ["", "nothing"]], data.axes[0]);
const curves = [...new Set(data.curves.flatMap((c) => Object.keys(c.values)))];
options(at("curve"), curves.map((c) => [c, c]), ["val_top1", "loss"].find((c) => curves.includes(c)));
if (goals.length < 2) empty(at("scatter"), "Nothing is measured yet.");
if (!data.curves.length) empty(at("training"), "No stage has been trained for an epoch yet.");
["x", "y", "by", "log"].forEach((id) => at(id).addEventListener("change", drawScatter));
at("curve").addEventListener("change", drawCurves);
at("filter").addEventListener("input", drawCurves);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
draw();
