"use strict";
// Stores the decisions on suspects in the browser. Two buttons download them as exclude.csv and relabel.csv.
(() => {
  const main = document.querySelector("[data-suspects]");
  const store = "suspects-" + main.dataset.suspects;
  const cards = [...main.querySelectorAll("li[data-cell]")];
  const known = new Set([...main.querySelectorAll("#labels option")].map((option) => option.value));
  const status = main.querySelector("[role=status]");
  // Lines of rows that were corrected before and are not on this page
  const earlier = JSON.parse(main.dataset.earlier);

  const markOf = (card) => card.querySelector("input[type=radio]:checked").value;
  const labelOf = (card) => card.querySelector("input[type=text]").value.trim();
  const set = (card, mark) => { card.querySelector(`input[value=${mark}]`).checked = true; };

  // Writes a cell as pipeline/tables.py does: an apostrophe before text that a spreadsheet would run as a formula,
  // quotes where they are needed.
  function csvCell(text) {
    const runs = /^'*[=+\-@\t\r]/.test(text) && !/^[+-]?\d+(\.\d+)?([eE][+-]?\d+)?$/.test(text);
    const cell = runs ? "'" + text : text;
    return /[,"\r\n]/.test(cell) ? '"' + cell.replaceAll('"', '""') + '"' : cell;
  }

  // True if the new label is one that no row has: train.py would refuse it.
  function wrong(card) {
    return markOf(card) === "relabel" && main.hasAttribute("data-strict") && !known.has(labelOf(card));
  }

  function remember() {
    const marks = cards.map((card) => [card.dataset.cell, markOf(card), labelOf(card)]);
    try { localStorage.setItem(store, JSON.stringify(marks)); } catch { /* some browsers store nothing for a page opened from disk */ }
  }

  function recall() {
    let marks = [];
    try { marks = JSON.parse(localStorage.getItem(store) || "[]"); } catch { /* as in remember() */ }
    const byCell = new Map(marks.map(([cell, mark, label]) => [cell, [mark, label]]));
    for (const card of cards) {
      const found = byCell.get(card.dataset.cell);
      if (!found) continue;
      set(card, found[0]);
      card.querySelector("input[type=text]").value = found[1];
    }
  }

  function show() {
    const count = (mark) => cards.filter((card) => markOf(card) === mark).length;
    let bad = 0;
    for (const card of cards) {
      const input = card.querySelector("input[type=text]");
      const strange = wrong(card);
      bad += strange;
      input.setAttribute("aria-invalid", String(strange));
      input.title = strange ? "no row has this label" : "";
      card.dataset.mark = markOf(card);
    }
    const problem = bad ? ` ${bad} with a label that no row has: correct them first.` : "";
    status.textContent = `${count("exclude")} to leave out, ${count("relabel")} with another label, ${count("keep")} kept as they are.${problem}`;
    for (const button of main.querySelectorAll("[data-download]")) {
      const lines = count(button.dataset.download) + earlier[button.dataset.download].length;
      button.disabled = lines === 0 || (button.dataset.download === "relabel" && bad > 0);
    }
  }

  function download(mark) {
    const marked = cards.filter((card) => markOf(card) === mark);
    const lines = mark === "exclude" ? ["id"] : ["id,label"];
    for (const card of marked) lines.push(mark === "exclude" ? card.dataset.cell : `${card.dataset.cell},${csvCell(labelOf(card))}`);
    lines.push(...earlier[mark]);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
    link.download = mark + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  recall();
  for (const card of cards) {
    card.querySelector("fieldset").hidden = false;
    card.addEventListener("change", () => { remember(); show(); });
    card.querySelector("input[type=text]").addEventListener("input", () => { set(card, "relabel"); remember(); show(); });
  }
  for (const button of main.querySelectorAll("[data-all]")) {
    button.addEventListener("click", () => { for (const card of cards) set(card, button.dataset.all); remember(); show(); });
  }
  for (const button of main.querySelectorAll("[data-download]")) button.addEventListener("click", () => download(button.dataset.download));
  main.querySelector("[data-marks]").hidden = false;
  show();
})();
