// One trained network is one line through the settings of its knob.
const SETTING = "(setting)";

function drawOperating() {
  const [knob, x, y] = [at("knob").value, at("operating-x").value, at("operating-y").value];
  const across = (p) => (x === SETTING ? p.setting : p.values[x]);
  const shown = data.operating.filter((c) => c.knob === knob).map((c) => ({
    ...c, points: c.points.filter((p) => across(p) !== undefined && p.values[y] !== undefined),
  })).filter((c) => c.points.length);
  const traces = shown.map((c, k) => ({
    x: c.points.map(across), y: c.points.map((p) => p.values[y]), mode: "lines+markers", name: c.label,
    error_y: errors(c.points.map((p) => p.bars[y]), markColour(k)),
    line: { color: markColour(k), dash: nth(DASHES, k), width: 1.5 },
    marker: { size: 9, color: markColour(k), symbol: c.points.map((p) => nth(SYMBOLS, k) + (p.trained ? "" : "-open")), line: { width: 2, color: markColour(k) } },
    customdata: c.points.map((p) => p.hover), hovertemplate: "%{customdata}<extra></extra>",
  }));
  Plotly.react("operating-figure", traces, layout({
    xaxis: { title: { text: x === SETTING ? knob : columns[x].title } }, yaxis: { title: { text: columns[y].title } },
    showlegend: shown.length <= 12,
  }), CONFIG);
}

function setUpOperating() {
  const taken = new Set(data.operating.flatMap((c) => c.points.flatMap((p) => Object.keys(p.values))));
  const metrics = data.columns.filter((c) => taken.has(c.key)).map((c) => [c.key, c.title]);
  const knobs = [...new Set(data.operating.map((c) => c.knob))];
  options(at("knob"), knobs.map((k) => [k, k]));
  options(at("operating-y"), metrics, data.quality);
  options(at("operating-x"), [[SETTING, "the setting itself"], ...metrics], taken.has(data.cost) ? data.cost : SETTING);
  ["knob", "operating-x", "operating-y"].forEach((id) => at(id).addEventListener("change", drawOperating));
}
