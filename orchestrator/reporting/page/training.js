// Training curves by epoch.
function drawTraining() {
  const [name, filter] = [at("curve").value, at("filter").value.toLowerCase()];
  const shown = data.training.filter((c) => c.values[name] && c.label.toLowerCase().includes(filter));
  const last = Math.max(1, ...shown.map((c) => c.values[name].at(-1)[0]));
  const traces = shown.map((c, k) => ({
    x: c.values[name].map((p) => p[0]), y: c.values[name].map((p) => p[1]), name: c.label, mode: c.values[name].length > 40 ? "lines" : "lines+markers",
    line: { color: markColour(k), dash: DASHES[Math.floor(k / NUM_COLOURS) % DASHES.length], width: 1.5 },
    marker: { symbol: nth(SYMBOLS, k), size: 6 }, hovertemplate: "%{fullData.name}<br>epoch %{x}: %{y}<extra></extra>",
  }));
  Plotly.react("training", traces, layout({
    xaxis: { title: { text: "epoch" }, dtick: Math.max(1, Math.ceil(last / 12)) }, yaxis: { title: { text: name } }, showlegend: shown.length <= 16,
  }), CONFIG);
}

function setUpTraining() {
  const curves = [...new Set(data.training.flatMap((c) => Object.keys(c.values)))];
  options(at("curve"), curves.map((c) => [c, c]), ["val_top1", "loss"].find((c) => curves.includes(c)));
  at("curve").addEventListener("change", drawTraining);
  at("filter").addEventListener("input", drawTraining);
}
