"use strict";
// What all figures share: the data, the page's colours as plotly wants them, and small helpers.
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const columns = Object.fromEntries(data.columns.map((c) => [c.key, c]));
const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d"] };

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(extra) {
  const axis = { gridcolor: style("--line"), zeroline: false, linecolor: style("--line"), automargin: true, exponentformat: "SI" };
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

// A colour between two of the page's, `share` of the way from the first.
function mixed(from, to, share) {
  const parts = (name) => [1, 3, 5].map((k) => parseInt(style(name).slice(k, k + 2), 16));
  const [a, b] = [parts(from), parts(to)];
  return `rgb(${a.map((v, k) => Math.round(v + share * (b[k] - v))).join(",")})`;
}

// A number of four digits with k, M or G.
function short(value) {
  const [factor, prefix] = [[1e9, " G"], [1e6, " M"], [1e3, " k"]].find(([size]) => Math.abs(value) >= size) ?? [1, ""];
  return Number((value / factor).toPrecision(4)) + prefix;
}

// Error bars of some points; `null` where there is none, so that no cap is drawn on the mark.
function errors(bars, colour) {
  return {
    type: "data", symmetric: false, array: bars.map((b) => b?.[1] ?? null), arrayminus: bars.map((b) => b?.[0] ?? null),
    visible: bars.some(Boolean), thickness: 1, width: 3, color: colour,
  };
}

function options(select, entries, chosen) {
  for (const [value, label] of entries) {
    const option = new Option("", value, false, value === chosen);
    option.innerHTML = label; // escaped where it was made
    select.add(option);
  }
}

function empty(figure, message) {
  figure.classList.add("empty");
  figure.textContent = message;
}

// What is wrong is said where everybody sees it; the tables do not need the script.
function trouble(message) {
  at("trouble").hidden = false;
  at("trouble").textContent = `A figure could not be drawn (${message}). The tables hold all numbers.`;
}
window.addEventListener("error", (event) => trouble(event.message));
window.addEventListener("unhandledrejection", (event) => trouble(event.reason));
