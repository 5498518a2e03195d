// What each stage took: training, the part of it in which a teacher answered, and measurement, told apart by pattern.
const MOST_STAGES = 40;

function drawCosts() {
  const hours = at("cost-unit").value === "device-hours";
  const whole = (s) => (hours ? s.device_hours : s.seconds) ?? 0;
  const teacher = (s) => (s.seconds ? (whole(s) * Math.min(s.teacher_seconds ?? 0, s.seconds)) / s.seconds : 0);
  const sorted = data.stages.filter((s) => whole(s) > 0).sort((a, b) => whole(b) - whole(a));
  const [shown, rest] = [sorted.slice(0, MOST_STAGES), sorted.slice(MOST_STAGES)];
  const bars = shown.map((s, k) => ({
    id: String(k), label: s.label,
    parts: s.kind === "measure" ? [0, 0, whole(s)] : [whole(s) - teacher(s), teacher(s), 0],
  }));
  if (rest.length) {
    const sum = (part) => rest.reduce((total, s) => total + part(s), 0);
    bars.push({ id: "rest", label: `${rest.length} smaller stages`, parts: [
      sum((s) => (s.kind === "measure" ? 0 : whole(s) - teacher(s))), sum((s) => (s.kind === "measure" ? 0 : teacher(s))), sum((s) => (s.kind === "measure" ? whole(s) : 0)),
    ] });
  }
  const unit = hours ? "device-hours" : "seconds";
  const kinds = [["training", "", markColour(0)], ["of it, a teacher answering", "x", markColour(1)], ["measurement", "/", markColour(7)]];
  const traces = kinds.map(([name, shape, colour], part) => ({
    type: "bar", orientation: "h", name, y: bars.map((b) => b.id), x: bars.map((b) => b.parts[part]),
    customdata: bars.map((b) => b.label), hovertemplate: `%{customdata}<br>${name}: %{x:.4g} ${unit}<extra></extra>`,
    marker: { color: colour, line: { width: 1, color: style("--ground") }, pattern: { shape, fillmode: "replace", size: 6, solidity: 0.5, bgcolor: style("--ground") } },
  })).filter((trace) => trace.x.some((v) => v > 0));
  at("costs").style.height = `${Math.max(200, 110 + 22 * bars.length)}px`;
  const cut = (text) => (text.length > 48 ? `${text.slice(0, 46)}…` : text);
  Plotly.react("costs", traces, layout({
    barmode: "stack", bargap: 0.3, xaxis: { title: { text: unit } },
    yaxis: { type: "category", autorange: "reversed", tickmode: "array", tickvals: bars.map((b) => b.id), ticktext: bars.map((b) => cut(b.label)), tickfont: { size: 11 } },
    legend: { orientation: "h", y: 1.01, yanchor: "bottom", traceorder: "normal" }, margin: { l: 60, r: 20, t: 70, b: 55 },
  }), CONFIG);
}

function setUpCosts() {
  const units = [["seconds", "seconds"], ["device-hours", "device-hours"]];
  options(at("cost-unit"), data.stages.some((s) => s.device_hours) ? units : units.slice(0, 1));
  at("cost-unit").addEventListener("change", drawCosts);
}
