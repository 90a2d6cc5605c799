"use strict";
// Sorts and filters the table of variants. Without this the page says the same, in its own order.
(() => {
  const table = document.getElementById("all");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const shown = document.getElementById("shown");
  const filter = document.getElementById("filter");

  const value = (row, column) => row.cells[column].dataset.sort;

  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en") : x - y;
  };

  // What was not measured comes last, whichever way the others are sorted.
  const sort = (column, sign) => {
    const ordered = [...rows].sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return sign * compare(x, y);
    });
    body.append(...ordered);
  };

  const press = (column) => {
    const ascending = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
    sort(column, ascending ? 1 : -1);
    const title = heads[column].textContent.trim();
    shown.textContent = `Sorted by ${title}, ${ascending ? "ascending" : "descending"}.`;
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => press(column));
    head.replaceChildren(button);
  });

  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/[\s,]+/).filter(Boolean);
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
    const count = rows.filter((row) => !row.hidden).length;
    shown.textContent = `${count} of ${rows.length} shown.`;
  });

  document.getElementById("tools").hidden = false;
  document.getElementById("sorting").hidden = false;
})();
