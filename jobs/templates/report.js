"use strict";
(() => {
  const STEP = 100;
  const SVG = "http://www.w3.org/2000/svg";
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const byId = (id) => document.getElementById(id);
  const order = new Intl.Collator("en", { numeric: true });
  const digits = new Intl.NumberFormat("en");
  const money = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const currencies = [...new Set(rows.filter((row) => row.risk !== null).map((row) => row.currency))];

  // Text only ever enters as a text node: names from records stay names.
  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const words = (text) => text.replaceAll("_", " ");
  const share = (value) => (value === null ? "" : value > 0.999 ? "> 99.9 %" : value < 0.001 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`);
  const name = (text) => element("bdi", text.length > 18 ? { class: "long" } : {}, text);
  const count = (value, top) => (value === null ? "" : top ? `${value}+` : String(value));
  const top = (row) => row.probabilities.length - 1;
  const set = (row) => (row.low === null ? "" : row.low === row.high ? count(row.low, row.low === top(row))
    : `${row.low}–${count(row.high, row.high === top(row))}`);

  const bars = (row) => {
    const values = row.probabilities;
    if (!values.length) return null;
    const width = 92, height = 24, step = width / values.length, highest = Math.max(...values);
    const record = Math.min(row.expected, values.length - 1);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", "bars");
    svg.setAttribute("viewBox", `0 0 ${width} 34`);
    svg.setAttribute("role", "img");
    const likely = values.map((p, k) => [p, k]).sort((a, b) => b[0] - a[0]).slice(0, 3)
      .map(([p, k]) => `${count(k, k === values.length - 1)}: ${share(p)}`).join(", ");
    svg.setAttribute("aria-label", `Camera ${likely}; record ${row.expected}`);
    values.forEach((p, k) => {
      const bar = document.createElementNS(SVG, "rect");
      const tall = Math.max(1, (height * p) / highest);
      for (const [name, value] of [["x", k * step + 1], ["y", height - tall], ["width", step - 2], ["height", tall]]) bar.setAttribute(name, value);
      const label = document.createElementNS(SVG, "text");
      label.setAttribute("x", (k + 0.5) * step);
      label.setAttribute("y", 33);
      label.textContent = count(k, k === values.length - 1);
      if (k === record) { bar.setAttribute("class", "record"); label.setAttribute("class", "record"); }
      svg.append(bar, label);
    });
    return svg;
  };

  const photo = (row) => {
    if (row.photo === null) return element("span", { class: "no-photo" }, row.problem ?? "no photo");
    const image = element("img", { src: row.photo, alt: "", loading: "lazy", decoding: "async" });
    const button = element("button", { type: "button", class: "thumb", "aria-label": `Open photo of bin ${row.bin}` }, image);
    button.addEventListener("click", () => open(row));
    return button;
  };

  const isSingle = (row) => row.lines.length === 1 && !row.moreLines;
  const code = (row) => (row.lines.length && (isSingle(row) || row.numSkus <= 1) ? row.lines[0][1] ?? row.sku : null);
  const sku = (row) => {
    if (!row.lines.length) return [element("span", { class: "name" }, "no lines")];
    if (isSingle(row)) return [element("bdi", {}, code(row) ?? "–"), element("bdi", { class: "name" }, row.lines[0][2] ?? "")];
    const list = row.lines.map(([pieces, line, text]) => `${pieces} × ${line ?? "?"} ${text ?? ""}`).join("; ");
    const more = row.moreLines ? `; and ${row.moreLines} more` : "";
    const title = row.numSkus > 1 ? `mixed, ${row.numSkus} SKUs` : `${code(row) ?? "–"}, ${row.lines.length + row.moreLines} lines`;
    return [element("bdi", {}, title), element("bdi", { class: "name" }, list + more)];
  };

  // name, label, value to sort by, first direction, cell
  const COLUMNS = [
    { name: "rank", label: "Rank", value: (row) => row.rank, cell: (row) => [row.rank === null ? "" : String(row.rank)] },
    { name: "photo", label: "Photo", cell: (row) => [photo(row)] },
    { name: "bin", label: "Bin", text: true, value: (row) => row.bin, cell: (row) => [name(row.bin)] },
    { name: "zone", label: "Zone", text: true, value: (row) => row.zone, cell: (row) => (row.zone === null ? [] : [name(row.zone)]) },
    { name: "abc", label: "Class", text: true, value: (row) => row.abc, cell: (row) => [row.abc ?? ""] },
    { name: "sku", label: "SKU", text: true, value: code, cell: sku },
    { name: "expected", label: "Expected", value: (row) => row.expected, cell: (row) => [String(row.expected)] },
    { name: "camera", label: "Camera", value: (row) => row.camera, down: true,
      cell: (row) => (row.camera === null ? [] : [count(row.camera, row.cameraTop), element("span", { class: "set" }, `90 %: ${set(row)}`)]) },
    { name: "chart", label: "Counts", cell: (row) => [bars(row)] },
    { name: "wrong", label: "Wrong", value: (row) => row.wrong, down: true, cell: (row) => [share(row.wrong)] },
    { name: "direction", label: "Direction", text: true, value: (row) => row.direction,
      cell: (row) => (row.direction === null ? [] : [element("span", { class: row.direction }, `${row.direction === "short" ? "▼" : "▲"} ${row.direction}`)]) },
    { name: "risk", label: currencies.length === 1 && currencies[0] ? `At risk, ${currencies[0]}` : "At risk", value: (row) => row.risk, down: true,
      cell: (row) => (row.risk === null ? [] : [currencies.length === 1 ? money.format(row.risk) : `${row.currency ?? ""} ${money.format(row.risk)}`.trim()]) },
    { name: "verdict", label: "Verdict", text: true, value: (row) => row.verdict, cell: (row) => [
      element("span", { class: `badge ${row.verdict}` }, words(row.verdict)),
      row.recount === null ? null : element("span", { class: "badge", title: "a person is sent" }, row.recount),
      row.reason === null ? null : element("span", { class: "set" }, words(row.reason))] },
  ];

  const head = document.querySelector("#bins thead tr"), body = document.querySelector("#bins tbody");
  let sorting = { name: null, down: false }, found = rows, limit = STEP;

  for (const column of COLUMNS) {
    const cell = element("th", { scope: "col", role: "columnheader", class: column.text ? "text" : "" });
    if (column.value) {
      const button = element("button", { type: "button" }, column.label);
      button.addEventListener("click", () => sortBy(column));
      cell.append(button);
      for (const down of [false, true]) byId("sort").append(element("option", { value: `${column.name} ${down}` }, `${column.label} ${down ? "▼" : "▲"}`));
    } else cell.append(element("span", {}, column.label));
    cell.dataset.name = column.name;
    cell.dataset.label = column.label;
    head.append(cell);
  }
  byId("sort").prepend(element("option", { value: "", selected: "" }, "list order"));

  const FILTERS = ["zone", "abc", "direction", "verdict", "recount"];
  for (const name of FILTERS) {
    const values = [...new Set(rows.map((row) => row[name]).filter((value) => value))].sort(order.compare);
    const label = name === "verdict" ? words : (value) => value;
    for (const value of values) byId(`filter-${name}`).append(element("option", { value }, label(value)));
  }
  const haystacks = new Map(rows.map((row) => {
    const lines = row.lines.flatMap(([, code, name]) => [code, name]);
    const skus = [row.sku, ...lines, row.search].filter((text) => text !== null).join("\n").toLowerCase();
    return [row, { skus, all: `${row.bin}\n${row.zone ?? ""}\n${skus}`.toLowerCase() }];
  }));

  const sortBy = (column) => {
    const again = sorting.name === column.name;
    sorting = { name: column.name, down: again ? !sorting.down : Boolean(column.down) };
    update();
  };

  const update = () => {
    const search = byId("search").value.trim().toLowerCase(), skuText = byId("filter-sku").value.trim().toLowerCase();
    const wanted = FILTERS.map((name) => [name, byId(`filter-${name}`).value]).filter(([, value]) => value !== "");
    found = rows.filter((row) => wanted.every(([name, value]) => row[name] === value)
      && haystacks.get(row).all.includes(search) && haystacks.get(row).skus.includes(skuText));
    const column = COLUMNS.find((candidate) => candidate.name === sorting.name);
    if (column) {
      const sign = sorting.down ? -1 : 1;
      const compare = (a, b) => (typeof a === "string" ? order.compare(a, b) : a - b);
      const keyed = found.map((row) => [column.value(row), row]);
      // a missing value stays last in both directions
      keyed.sort(([a], [b]) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * compare(a, b)));
      found = keyed.map(([, row]) => row);
    }
    for (const cell of head.children) {
      if (cell.dataset.name === sorting.name) cell.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    byId("sort").value = sorting.name === null ? "" : `${sorting.name} ${sorting.down}`;
    limit = STEP;
    draw(true);
  };

  const draw = (anew) => {
    if (anew) body.replaceChildren();
    const fragment = document.createDocumentFragment();
    for (const row of found.slice(body.children.length, limit)) {
      const line = element("tr", { role: "row" });
      for (const column of COLUMNS) {
        const cell = element("td", { role: "cell", class: `${column.name}${column.text ? " text" : ""}`, "data-label": column.label });
        cell.append(...column.cell(row).filter((part) => part !== null && part !== ""));
        line.append(cell);
      }
      fragment.append(line);
    }
    body.append(fragment);
    const drawn = body.children.length;
    byId("shown").textContent = found.length === 0 ? "No bin fits the filters."
      : `${digits.format(found.length)} of ${digits.format(rows.length)} bins${drawn < found.length ? `, the first ${digits.format(drawn)} shown` : ""}`;
    byId("more").hidden = byId("all").hidden = drawn >= found.length;
  };

  for (const id of ["search", "filter-sku", ...FILTERS.map((name) => `filter-${name}`)]) byId(id).addEventListener("input", update);
  byId("sort").addEventListener("input", (event) => {
    const [name, down] = event.target.value.split(" ");
    sorting = { name: name || null, down: down === "true" };
    update();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => { sorting = { name: null, down: false }; setTimeout(update); });
  byId("more").addEventListener("click", () => { limit += STEP; draw(false); });
  byId("all").addEventListener("click", () => { limit = rows.length; draw(false); });
  // paper shows no more on demand: the whole plan goes there, wherever it is sorted to
  window.addEventListener("beforeprint", () => {
    limit = Math.max(limit, found.findLastIndex((row) => row.recount !== null) + 1);
    draw(false);
  });

  const dialog = byId("photo");
  let opened = null;
  const open = (row) => {
    opened = row;
    byId("photo-title").replaceChildren("Bin ", element("bdi", {}, row.bin));
    byId("photo-image").replaceChildren(row.photo === null ? element("p", { class: "empty" }, row.problem ?? "no photo")
      : element("img", { src: row.photo, alt: `Photo of bin ${row.bin}` }));
    const facts = [
      ["Rank", row.rank], ["Zone", row.zone], ["Expected", row.expected],
      ["Camera", row.camera === null ? null : `${count(row.camera, row.cameraTop)} (90 %: ${set(row)}${row.high - row.low > 1 ? "; counts between may be left out" : ""})`],
      ["Else likely", row.likely === null ? null : count(row.likely, row.likely === top(row))],
      ["Wrong", row.wrong === null ? null : `${share(row.wrong)} (short ${share(row.short)}, over ${share(row.over)})`],
      ["At risk", row.risk === null ? null : `${row.currency ?? ""} ${money.format(row.risk)}`.trim()],
      ["Verdict", words(row.verdict) + (row.reason === null ? "" : `: ${words(row.reason)}`)],
      ["Certified at", row.certifiedAt], ["Last counted", row.counted],
    ];
    const list = byId("photo-facts");
    list.replaceChildren();
    for (const [name, value] of facts) if (value !== null) list.append(element("dt", {}, name), element("dd", {}, element("bdi", {}, String(value))));
    list.append(element("dt", {}, "Record"), element("dd", {}, ...row.lines.map(([pieces, code, name]) => element("div", {}, `${pieces} × `, element("bdi", {}, `${code ?? "?"} ${name ?? ""}`))), row.moreLines ? element("div", {}, `and ${row.moreLines} more lines`) : null));
    const chart = bars(row);
    if (chart) list.append(element("dt", {}, "Counts"), element("dd", {}, chart));
    list.append(element("dt", {}, "Photo"), element("dd", {}, row.uri));
    // disabled itself, a button would lose the focus, and with it the dialog its keys
    byId("photo-previous").ariaDisabled = String(found.indexOf(row) <= 0);
    byId("photo-next").ariaDisabled = String(found.indexOf(row) >= found.length - 1);
    if (!dialog.open) dialog.showModal();
  };
  const turn = (step) => { const next = found[found.indexOf(opened) + step]; if (next) open(next); };
  byId("photo-close").addEventListener("click", () => dialog.close());
  byId("photo-previous").addEventListener("click", () => turn(-1));
  byId("photo-next").addEventListener("click", () => turn(1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => { if (event.key === "ArrowLeft") turn(-1); if (event.key === "ArrowRight") turn(1); });

  const button = byId("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.style.colorScheme || (prefersDark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => { document.documentElement.style.colorScheme = isDark() ? "light" : "dark"; showTheme(); });
  prefersDark.addEventListener("change", showTheme);
  showTheme();

  update();
  document.documentElement.dataset.ready = "true";
})();
