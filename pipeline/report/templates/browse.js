"use strict";
// Filters and sorts the images of a page. The page holds all facts as attributes of each image:
// tokens to filter by (data-t-NAME) and numbers to sort by (data-n-NAME).
(() => {
  const STEP = 60; // images shown at once

  // The number NAME of an image. "0.9" is one number; "3:0.9 7:0.2" has one for each label, and key selects the label.
  // null if the image has no such number.
  function numberOf(item, name, key) {
    const text = item.getAttribute("data-n-" + name);
    if (!text) return null;
    if (!text.includes(":")) return Number(text);
    const part = text.split(" ").find((one) => one.startsWith(key + ":"));
    return part ? Number(part.slice(key.length + 1)) : null;
  }

  // Returns a function for Array.sort: "loss" puts the largest number first, "-loss" the smallest,
  // "|error" ignores the sign. Images without the number come last.
  function compare(order, key) {
    const ascending = order.startsWith("-");
    const plain = order.replace(/^-/, "");
    const size = plain.startsWith("|");
    const name = plain.replace(/^\|/, "");
    return (one, other) => {
      let [a, b] = [one, other].map((item) => numberOf(item, name, key));
      if (a === null || b === null) return (a === null) - (b === null);
      if (size) [a, b] = [Math.abs(a), Math.abs(b)];
      return ascending ? a - b : b - a;
    };
  }

  function start(box) {
    const list = box.querySelector("[data-items]");
    const items = [...list.children];
    const filters = [...box.querySelectorAll("select[data-filter]")];
    const sort = box.querySelector("select[data-sort]");
    const status = box.querySelector("[role=status]");
    const more = box.querySelector("[data-more]");
    let limit = STEP;
    let total = ""; // after a click on a cell: its number of images in the run (the page may hold fewer)

    function show() {
      const wanted = new Map(); // name -> the token that an image must have: the joined values of the selects of this name
      for (const filter of filters) wanted.set(filter.dataset.filter, (wanted.get(filter.dataset.filter) || "") + filter.value);
      const matches = (item) =>
        [...wanted].every(([name, token]) => !token || (item.getAttribute("data-t-" + name) || "").split(" ").includes(token));
      const key = (filters.find((filter) => filter.hasAttribute("data-key")) || { value: "" }).value;
      const found = items.filter(matches).sort(compare(sort.value, key));
      for (const item of items) item.hidden = true;
      found.forEach((item, place) => { item.hidden = place >= limit; });
      list.append(...found);
      more.hidden = found.length <= limit;
      more.textContent = `Show ${Math.min(STEP, found.length - limit)} more`;
      const chosen = filters.filter((filter) => filter.value).map((filter) => `${filter.dataset.words}: ${filter.selectedOptions[0].text}`);
      const count = `${found.length.toLocaleString("en")} ${box.dataset.noun}${found.length === 1 ? "" : "s"}`;
      const of = total && Number(total) !== found.length ? ` of ${total}` : "";
      status.textContent = `${count}${of} on this page${chosen.length ? " (" + chosen.join("; ") + ")" : ""}, sorted by ${sort.selectedOptions[0].text}. ` +
        (found.length > limit ? `The first ${limit} are shown.` : "");
    }

    function choose(cell) {
      const values = Object.fromEntries(cell.dataset.set.split(" ").map((pair) => pair.split("=")));
      for (const filter of filters) filter.value = values[filter.dataset.filter] || "";
      total = cell.dataset.count;
      limit = STEP;
      show();
      status.focus({ preventScroll: true });
      box.querySelector("[data-controls]").scrollIntoView({ block: "start" });
    }

    for (const cell of box.querySelectorAll("[data-set]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      button.setAttribute("aria-label", cell.dataset.words);
      button.addEventListener("click", () => choose(cell));
      cell.append(button);
    }
    for (const select of [...filters, sort]) {
      select.addEventListener("change", () => { total = ""; limit = STEP; show(); });
    }
    more.addEventListener("click", () => {
      const next = [...list.children].find((item) => item.hidden);
      limit += STEP;
      show();
      if (next) { next.tabIndex = -1; next.focus(); } // keep the keyboard focus: the button may now be hidden
    });
    const folded = box.querySelector("[data-folded]");
    folded.replaceWith(...[...folded.children].filter((child) => child.tagName !== "SUMMARY"));
    box.querySelector("[data-controls]").hidden = false;
    const outcome = filters.find((filter) => filter.dataset.filter === "is");
    if (outcome && items.some((item) => item.getAttribute("data-t-is") === "wrong")) outcome.value = "wrong";
    show();
  }

  document.querySelectorAll("[data-browse]").forEach(start);
})();
