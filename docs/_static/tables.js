// On a narrow window a table that does not fit shows each row as a card: its first cell as the head, and every other
// cell beside the name of its column. A long table of marks (yes, no, refused) stays a table, in small print, and the
// names of its columns and rows break at underscores. Any other table that does not fit scrolls, and its first column stays in sight.
(() => {
  const MOST_COLUMNS = 16, MOST_ROWS_OF_MARKS = 40, LONGEST_MARK = 12;
  const narrow = window.matchMedia("(max-width: 46em)");

  function describe(table) {
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      [...row.cells].forEach((cell, column) => cell.setAttribute("data-label", names.length > 2 ? names[column] ?? "" : ""));
    }
    const isOfMarks = rows.every((row) => [...row.cells].slice(1).every((cell) => cell.textContent.length <= LONGEST_MARK));
    const isLongOfMarks = isOfMarks && rows.length > MOST_ROWS_OF_MARKS;
    if (isLongOfMarks) {
      table.classList.add("marks");
      for (const row of table.rows) breakAtUnderscores(row.cells[0]);
      for (const cell of table.tHead.rows[0].cells) breakAtUnderscores(cell);
    }
    return { table, mayStack: names.length <= MOST_COLUMNS && !isLongOfMarks };
  }

  function breakAtUnderscores(cell) {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    const texts = [];
    while (walker.nextNode()) texts.push(walker.currentNode);
    for (const text of texts) {
      const parts = text.data.split(/(?<=_)/);
      text.replaceWith(...parts.flatMap((part, at) => (at ? [document.createElement("wbr"), part] : [part])));
    }
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
