// Puts the page together: which figures there are, what their controls offer, and when they are drawn again.
const goals = data.columns.filter((c) => c.direction !== "none").map((c) => [c.key, c.title]);

const FIGURES = [
  { id: "scatter", there: goals.length > 1, draw: drawScatter, setUp: setUpScatter, gap: "Nothing is measured yet." },
  { id: "effect", there: data.effects.length > 0, draw: drawEffects, setUp: setUpEffects },
  { id: "operating-figure", there: data.operating.length > 0, draw: drawOperating, setUp: setUpOperating },
  { id: "confusion", there: data.evaluations.length > 0, draw: drawEvaluation, setUp: setUpEvaluation },
  { id: "training", there: data.training.length > 0, draw: drawTraining, setUp: setUpTraining, gap: "No stage has been trained for an epoch yet." },
  { id: "costs", there: data.stages.length > 0, draw: drawCosts, setUp: setUpCosts, gap: "No stage is finished yet." },
];

function setUpScatter() {
  options(at("x"), goals, data.cost);
  options(at("y"), goals, data.quality);
  options(at("by"), [...data.axes.map((a) => [a, a]), ["", "nothing"]], data.axes[0]);
  at("log").checked = spansDecades();
  ["x", "y", "by", "log", "with-curves", "with-published"].forEach((id) => at(id).addEventListener("change", drawScatter));
}

// Others' networks may be a thousand times larger; on a linear axis one's own would be one spot.
function spansDecades() {
  const values = data.published.map((p) => p.values[columns[data.cost]?.metric]).concat(data.rows.map((r) => r.values[data.cost]));
  const known = values.filter((v) => v > 0);
  return data.published.length > 0 && known.length > 1 && Math.max(...known) > 30 * Math.min(...known);
}

// One figure that fails does not take the others with it.
function attempt(step) {
  try { step(); } catch (error) { trouble(error.message); }
}

function drawAll() {
  for (const figure of FIGURES) if (figure.there) attempt(figure.draw);
}

for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
setUpTables();
for (const figure of FIGURES) {
  if (figure.there) attempt(figure.setUp);
  else if (figure.gap) empty(at(figure.id), figure.gap);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
// Paper is white whatever the screen is.
window.addEventListener("beforeprint", () => { document.documentElement.classList.add("paper"); drawAll(); });
window.addEventListener("afterprint", () => { document.documentElement.classList.remove("paper"); drawAll(); });
drawAll();
document.documentElement.dataset.drawn = "yes";
