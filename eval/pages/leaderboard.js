"use strict";
// Sorts, filters and hides columns of every table.board; the table without it is whole.
for (const table of document.querySelectorAll("table.board")) {
  const heads = [...table.tHead.rows[0].cells];
  const entries = [...table.tBodies].filter((body) => body.classList.contains("entry"));
  const rowsOf = () => [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => row.cells.length === heads.length);
  const make = (tag, more, ...inside) => { const it = Object.assign(document.createElement(tag), more); it.append(...inside); return it; };
  const words = (head) => head.firstChild ? head.firstChild.textContent : "";

  const sortable = heads.filter((head) => head.dataset.key);
  const select = make("select", { ariaLabel: "Sort by" }, ...sortable.map((head) => make("option", { value: head.dataset.key }, words(head))));
  const flip = make("button", { type: "button", title: "Reverse the order", ariaLabel: "Reverse the order" }, "↑↓");

  function sort(head, falling) {
    const column = heads.indexOf(head);
    const value = (body) => {
      const text = body.rows[0].cells[column].dataset.v;
      return text === undefined || text === "" ? null : Number.isNaN(Number(text)) ? text : Number(text);
    };
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // without a number: last
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return falling ? -order : order;
    };
    const apart = (body) => body.classList.contains("published"); // never among the measured ones
    entries.sort((a, b) => apart(a) - apart(b) || compare(a, b));
    table.append(...entries);
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    select.value = head.dataset.key;
  }

  const better = (head) => "high" in head.dataset;
  const byHead = (head) => sort(head, head.hasAttribute("aria-sort") ? head.ariaSort === "ascending" : better(head));
  for (const head of sortable) {
    const button = make("button", { type: "button", title: "Sort by this column" });
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => byHead(head);
  }
  const chosen = () => sortable.find((head) => head.dataset.key === select.value);
  select.onchange = () => sort(chosen(), better(chosen()));
  flip.onclick = () => sort(chosen(), chosen().ariaSort !== "descending");

  const filter = make("input", { type: "search", placeholder: "Filter rows", ariaLabel: "Filter rows" });
  const count = make("span", { className: "count" });
  filter.oninput = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const body of entries) {
      const text = body.querySelector(".name").textContent.toLowerCase();
      body.hidden = !wanted.every((word) => text.includes(word));
      shown += !body.hidden;
    }
    count.textContent = wanted.length ? `${shown} of ${entries.length} rows` : "";
  };

  const chooser = make("details", { className: "chooser" }, make("summary", {}, "Columns"));
  const boxes = make("div", {});
  heads.forEach((head, column) => {
    if (head.dataset.key === "rank" || head.dataset.key === "method") return;
    const box = make("input", { type: "checkbox", checked: true });
    box.onchange = () => [head, ...rowsOf().map((row) => row.cells[column])].forEach((cell) => { cell.hidden = !box.checked; });
    boxes.append(make("label", {}, box, words(head.firstElementChild?.tagName === "BUTTON" ? head.firstElementChild : head)));
  });
  chooser.append(boxes);

  const sorter = make("label", { className: "sorter" }, "Sort by ", select, flip);
  table.parentElement.before(make("div", { className: "tools" }, filter, count, sorter, chooser));
}
