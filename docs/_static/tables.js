// On a narrow window a table that does not fit shows each row as a card: its first cell as the head, and every other
// cell beside the name of its column. Any other table that does not fit scrolls, and its first column stays in sight.
(() => {
  const MOST_COLUMNS = 12, MOST_ROWS_OF_MARKS = 40, LONGEST_MARK = 12;
  const narrow = window.matchMedia("(max-width: 46em)");

  function describe(table) {
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      [...row.cells].forEach((cell, column) => cell.setAttribute("data-label", names.length > 2 ? names[column] ?? "" : ""));
    }
    const isOfMarks = rows.every((row) => [...row.cells].slice(1).every((cell) => cell.textContent.length <= LONGEST_MARK));
    return { table, mayStack: names.length <= MOST_COLUMNS && !(isOfMarks && rows.length > MOST_ROWS_OF_MARKS) };
  }

  function arrange({ table, mayStack }) {
    table.classList.remove("stacked", "scrolls");
    const isWide = table.scrollWidth > table.parentElement.clientWidth + 1;
    if (isWide) table.classList.add(narrow.matches && mayStack ? "stacked" : "scrolls");
  }

  function begin() {
    const tables = [...document.querySelectorAll(".content table.docutils")].filter((one) => one.tHead && one.tBodies[0]);
    const described = tables.map(describe);
    const all = () => described.forEach(arrange);
    all();
    window.addEventListener("resize", all);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
