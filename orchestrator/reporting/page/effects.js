// Main effects and interactions of one metric: dots with their errors around the line of no effect.
function drawEffects() {
  const key = at("effect-metric").value;
  const shown = data.effects.filter((e) => e.column === key);
  const kinds = [[false, "main effect", "circle", markColour(0)], [true, "interaction", "diamond-open", markColour(1)]];
  const traces = kinds.map(([interaction, name, symbol, colour]) => {
    const members = shown.filter((e) => e.interaction === interaction);
    return {
      x: members.map((e) => e.value), y: members.map((e) => e.label), mode: "markers", name,
      error_x: errors(members.map((e) => (e.error === null ? null : [e.error, e.error])), colour),
      marker: { symbol, size: 10, color: colour, line: { width: 2, color: colour } },
      customdata: members.map((e) => e.hover), hovertemplate: "%{customdata}<extra></extra>",
    };
  }).filter((trace) => trace.x.length);
  const better = { higher: "better →", lower: "← better", none: "" }[columns[key].direction];
  at("effect").style.height = `${Math.max(220, 110 + 30 * shown.length)}px`;
  Plotly.react("effect", traces, layout({
    xaxis: { title: { text: `difference in ${columns[key].title}${better ? `   (${better})` : ""}` }, zeroline: true, zerolinewidth: 2, zerolinecolor: style("--quiet") },
    yaxis: { categoryorder: "array", categoryarray: shown.map((e) => e.label).reverse(), type: "category" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 60, r: 20, t: 70, b: 55 },
  }), CONFIG);
}

function setUpEffects() {
  const taken = new Set(data.effects.map((e) => e.column));
  options(at("effect-metric"), data.columns.filter((c) => taken.has(c.key)).map((c) => [c.key, c.title]), data.quality);
  at("effect-metric").addEventListener("change", drawEffects);
}
