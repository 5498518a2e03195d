// The Pareto figure: combinations, their front, operating points, and others' points apart from them.
function drawScatter() {
  const [x, y, by] = [at("x").value, at("y").value, at("by").value];
  const points = data.rows.filter((r) => r.values[x] !== undefined && r.values[y] !== undefined);
  const front = new Set(data.fronts[`${y}|${x}`] ?? data.fronts[`${x}|${y}`] ?? []);
  const weighed = new Set([x, y]).size === 2 && [x, y].every((key) => key === data.quality || key === data.cost);
  const kinds = [...new Set(data.rows.map((r) => r.labels[by] ?? ""))];
  const traces = [
    ...(at("with-published").checked ? publishedTraces(x, y) : []),
    ...frontTraces(points.filter((r) => front.has(r.name)), x, y),
    ...(at("with-curves").checked ? curveTraces(x, y, colourBy(kinds, by)) : []),
    ...combinationTraces(points, front, weighed, x, y, by, kinds),
    ...unreliableTraces(points, x, y),
  ];
  const reference = columns[x].baseline;
  Plotly.react("scatter", traces, layout({
    ...(reference === null ? {} : baselineMark(reference, points.map((r) => r.values[x]), at("log").checked)),
    xaxis: { title: { text: columns[x].title }, type: at("log").checked ? "log" : "linear" },
    yaxis: { title: { text: columns[y].title } },
  }), CONFIG);
}

// Of the baseline only its cost was measured: a line across, not a point. Where it would squeeze everything else, an arrow.
function baselineMark(value, own, logarithmic) {
  const [low, high] = [Math.min(...own), Math.max(...own)];
  const room = 0.5 * (high - low || high);
  const text = { showarrow: false, font: { size: 11, color: style("--quiet") } };
  if (!logarithmic && (value < low - room || value > high + room)) {
    const right = value > high;
    const said = `baseline at ${short(value)}`;
    return { annotations: [{ ...text, xref: "paper", x: right ? 1 : 0, xanchor: right ? "right" : "left", yref: "paper", y: 1, yanchor: "bottom", text: right ? `${said} →` : `← ${said}` }] };
  }
  return {
    shapes: [{ type: "line", x0: value, x1: value, yref: "paper", y0: 0, y1: 1, layer: "below", line: { dash: "longdash", width: 1, color: style("--quiet") } }],
    annotations: [{ ...text, x: logarithmic ? Math.log10(value) : value, yref: "paper", y: 1, yanchor: "bottom", text: "baseline" }],
  };
}

function frontTraces(members, x, y) {
  const groups = new Map();
  for (const r of members) {
    const key = `${r.groups[x]}/${r.groups[y]}`;
    groups.set(key, [...(groups.get(key) ?? []), r]);
  }
  return [...groups].map(([group, rows]) => {
    const sorted = [...rows].sort((a, b) => a.values[x] - b.values[x] || a.values[y] - b.values[y]);
    return {
      x: sorted.map((r) => r.values[x]), y: sorted.map((r) => r.values[y]), mode: "lines", hoverinfo: "skip",
      line: { shape: columns[x].direction === "higher" ? "vh" : "hv", dash: "dot", width: 1.5, color: style("--quiet") },
      name: groups.size > 1 ? `front (conditions ${group})` : "front", showlegend: true,
    };
  });
}

function combinationTraces(points, front, weighed, x, y, by, kinds) {
  const likely = (r) => weighed && r.probability !== null && r.probability >= 0.05;
  return kinds.map((kind, k) => {
    const members = points.filter((r) => (r.labels[by] ?? "") === kind);
    const colour = markColour(k);
    return {
      x: members.map((r) => r.values[x]), y: members.map((r) => r.values[y]),
      error_x: errors(members.map((r) => r.bars[x]), colour), error_y: errors(members.map((r) => r.bars[y]), colour),
      mode: "markers+text", name: by ? `${by}=${kind}` : "combinations", showlegend: Boolean(by),
      text: members.map((r) => (likely(r) ? r.probability.toFixed(2) : "")),
      textposition: "top left", textfont: { size: 11, color: style("--quiet") },
      marker: {
        size: members.map((r) => (weighed && r.probability !== null ? 8 + 6 * r.probability : 11)), color: colour,
        symbol: members.map((r) => nth(SYMBOLS, k) + (front.has(r.name) ? "" : "-open")), line: { width: 2, color: colour },
      },
      customdata: members.map((r) => r.hover), hovertemplate: "%{customdata}<extra></extra>",
    };
  });
}

function unreliableTraces(points, x, y) {
  const members = points.filter((r) => r.unreliable[x] || r.unreliable[y]);
  if (!members.length) return [];
  return [{
    x: members.map((r) => r.values[x]), y: members.map((r) => r.values[y]), mode: "markers", name: "unreliable",
    marker: { symbol: UNRELIABLE, size: 20, color: style("--ink"), line: { width: 2, color: style("--ink") } },
    customdata: members.map((r) => `${r.hover}<br><b>unreliable: ${r.unreliable[x] ?? r.unreliable[y]}</b>`),
    hovertemplate: "%{customdata}<extra></extra>",
  }];
}

// Combination → colour of its kind, so that a curve and the network it belongs to look alike.
function colourBy(kinds, by) {
  const kind = Object.fromEntries(data.rows.map((r) => [r.name, kinds.indexOf(r.labels[by] ?? "")]));
  return (name) => markColour(Math.max(0, kind[name] ?? 0));
}

function curveTraces(x, y, colour) {
  const shown = data.operating.map((c) => ({ ...c, points: c.points.filter((p) => p.values[x] !== undefined && p.values[y] !== undefined) }));
  return shown.filter((c) => c.points.length > 1).map((c, k) => ({
    x: c.points.map((p) => p.values[x]), y: c.points.map((p) => p.values[y]), mode: "lines+markers",
    name: "operating points", legendgroup: "operating", showlegend: k === 0,
    line: { dash: "dash", width: 1, color: colour(c.combination) },
    marker: { symbol: "line-ns-open", size: 7, color: colour(c.combination), line: { width: 1.5, color: colour(c.combination) } },
    customdata: c.points.map((p) => p.hover), hovertemplate: "%{customdata}<extra></extra>",
  }));
}

// Others' points: hollow and grey, a symbol of their own, and each group's own front as a thin line.
function publishedTraces(x, y) {
  const [mx, my] = [columns[x].metric, columns[y].metric];
  const seen = new Set();
  const points = data.published.filter((p) => {
    if (p.values[mx] === undefined || p.values[my] === undefined) return false;
    const key = [p.name, p.values[mx], p.values[my]].join("|");
    return !seen.has(key) && seen.add(key);
  });
  if (!points.length) return [];
  const turned = data.published_fronts[`${my}|${mx}`] === undefined;
  const fronts = Object.entries(data.published_fronts[turned ? `${mx}|${my}` : `${my}|${mx}`] ?? {});
  const lines = fronts.map(([group, pairs]) => {
    const [upright, along] = turned ? [1, 0] : [0, 1];
    return {
      x: pairs.map((p) => p[along]), y: pairs.map((p) => p[upright]), mode: "lines", hoverinfo: "skip",
      line: { shape: columns[x].direction === "higher" ? "vh" : "hv", width: 1, color: style("--other") },
      name: group ? `their front (${group})` : "their front", legendgroup: "published",
    };
  });
  return [{
    x: points.map((p) => p.values[mx]), y: points.map((p) => p.values[my]), mode: "markers", opacity: 0.8,
    name: data.meaning.replace(" under", "<br>under"), legendgroup: "published",
    marker: { symbol: PUBLISHED, size: 7, color: style("--other"), line: { width: 1, color: style("--other") } },
    customdata: points.map((p) => p.hover), hovertemplate: "%{customdata}<extra></extra>",
  }, ...lines];
}
