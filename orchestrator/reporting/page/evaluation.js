// The answers of one combination: confusion matrix, reliability diagram, and the classes that are recognised worst.
function drawEvaluation() {
  const shown = data.evaluations.find((e) => e.name === at("evaluated").value);
  at("evaluated-facts").textContent =
    `top-1 ${shown.top1.toFixed(2)} %, calibration error ${shown.ece.toFixed(2)} %, ${shown.num_images} answers over ${shown.seeds.length} seed${shown.seeds.length > 1 ? "s" : ""}`;
  drawConfusion(shown);
  drawReliability(shown);
  drawWorst(shown);
}

function drawConfusion({ classes, confusion, num_classes }) {
  if (!classes.length) {
    Plotly.purge("confusion");
    return empty(at("confusion"), `${num_classes} classes are too many for a picture; the worst ones are below.`);
  }
  const counts = classes.map(() => classes.map(() => 0));
  for (const [label, answer, images] of confusion) counts[label][answer] = images;
  const totals = counts.map((row) => row.reduce((a, b) => a + b, 0));
  const shares = counts.map((row, k) => row.map((n) => (totals[k] ? (100 * n) / totals[k] : null)));
  const few = classes.length <= 15;
  const text = counts.map((row) => row.map((n) => (n ? String(n) : "")));
  const ticks = { type: "category", tickmode: classes.length <= 40 ? "linear" : "auto", showgrid: false };
  return Plotly.react("confusion", [{
    type: "heatmap", x: classes, y: classes, z: shares, zmin: 0, zmax: 100,
    // Steep at the beginning: mistakes are a few percent, and they are what one looks for.
    colorscale: [[0, 0], [0.01, 0.08], [0.1, 0.35], [1, 1]].map(([at, share]) => [at, mixed("--ground", "--ink", share)]),
    colorbar: { title: { text: "% of class", side: "right" }, thickness: 12 }, customdata: counts, xgap: few ? 1 : 0, ygap: few ? 1 : 0,
    ...(few ? { text, texttemplate: "%{text}" } : {}),
    hovertemplate: "class %{y}, answered %{x}<br>%{customdata} images, %{z:.1f} %<extra></extra>",
  }], layout({
    title: { text: "Confusion", font: { size: 14 } }, margin: { l: 60, r: 10, t: 40, b: 55 },
    xaxis: { title: { text: "answer" }, ...ticks }, yaxis: { title: { text: "class" }, autorange: "reversed", ...ticks },
  }), CONFIG);
}

function drawReliability({ bins, num_images }) {
  const line = { x: [0, 100], y: [0, 100], mode: "lines", hoverinfo: "skip", name: "calibrated", line: { dash: "dot", width: 1.5, color: style("--quiet") } };
  const marks = {
    x: bins.map((b) => b.confidence), y: bins.map((b) => b.hits), mode: "lines+markers", name: "network",
    line: { color: markColour(0), width: 1.5 },
    marker: { symbol: "square", color: markColour(0), size: bins.map((b) => 5 + 22 * Math.sqrt(b.images / num_images)) },
    customdata: bins.map((b) => b.images), hovertemplate: "sure %{x:.1f} %, right %{y:.1f} %<br>%{customdata} images<extra></extra>",
  };
  Plotly.react("reliability", [line, marks], layout({
    title: { text: "Reliability", font: { size: 14 } }, margin: { l: 60, r: 10, t: 40, b: 55 },
    xaxis: { title: { text: "confidence %" }, range: [0, 104] }, yaxis: { title: { text: "right %" }, range: [0, 104] },
    legend: { x: 0.02, y: 0.98 },
  }), CONFIG);
}

function drawWorst({ worst }) {
  Plotly.react("worst", [{
    type: "bar", x: worst.map((w) => w.class), y: worst.map((w) => w.top1), hovertemplate: "class %{x}: %{y:.2f} %<extra></extra>",
    text: worst.map((w) => w.top1.toFixed(worst.length > 15 ? 0 : 1)), textposition: "outside", cliponaxis: false,
    marker: { color: markColour(0), pattern: { shape: "/", fillmode: "overlay", size: 6, solidity: 0.15 } },
  }], layout({ xaxis: { type: "category", title: { text: "class, worst first" } }, yaxis: { title: { text: "top-1 %" }, range: [0, 110], tickvals: [0, 25, 50, 75, 100] } }), CONFIG);
}

function setUpEvaluation() {
  options(at("evaluated"), data.evaluations.map((e) => [e.name, e.label]));
  at("evaluated").addEventListener("change", drawEvaluation);
}
