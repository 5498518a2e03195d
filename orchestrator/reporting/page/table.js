// Tables that sort by a press on a heading, and the filter of the table of combinations.
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

function filterRows() {
  const words = at("row-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...at("combinations").tBodies[0].rows];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word)) || (at("optimal-only").checked && !row.classList.contains("pareto"));
  }
  const left = rows.filter((row) => !row.hidden).length;
  at("row-count").textContent = left === rows.length ? `all ${left} shown` : `${left} of ${rows.length} shown`;
}

function setUpTables() {
  document.querySelectorAll("table.sortable").forEach(sortable);
  at("row-filter").addEventListener("input", filterRows);
  at("optimal-only").addEventListener("change", filterRows);
  filterRows();
}
