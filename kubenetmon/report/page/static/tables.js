// Cells, tables and matrices. Data only ever becomes text, never markup.

export const PATHS = {
  "same-zone": "same zone", "unknown-zone": "zone unknown", "cross-zone": "cross zone", "region-service": "in the region",
  "inter-region": "other region", internet: "internet", unknown: "unknown",
};

const CLASSES = {
  INTRA_VPC: ["in the VPC", "unknown-zone"], INTRA_REGION: ["in the region", "region-service"],
  INTER_REGION: ["other region", "inter-region"], PUBLIC_INTERNET: ["internet", "internet"], UNKNOWN: ["unknown", "unknown"],
};

export const nameOf = (path) => PATHS[path] || path.replace(/^class:/, "");

export const colorOf = (path) => (PATHS[path] ? path : "other");

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (key === "style") made.style.cssText = value ?? "";
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

function scaled(value, step, units, digits) {
  let amount = Number(value), at = 0;
  while (Math.abs(amount) >= step && at < units.length - 1) { amount /= step; at += 1; }
  return `${at ? amount.toFixed(digits) : Math.round(amount)} ${units[at]}`;
}

const SHOW = {
  bytes: (value) => scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], 2),
  rate: (value) => scaled(value, 1000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"], 1),
  count: (value) => Number(value).toLocaleString("en-US"),
  seconds: (value) => (value ? duration(value) : "none"),
  share: (value) => `${(100 * value).toFixed(1)} %`,
  ratio: (value) => Number(value).toFixed(2),
  time: (value) => (value ? moment(value) : ""),
  money: (value) => dollars(value),
  price: (value) => (value ? `$${value}` : ""),
};

export function dollars(value) {
  const amount = Number(value);
  if (amount && Math.abs(amount) < 0.005) return "<$0.01";
  return `$${amount.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
}

export function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const found = parts.map(([size, unit], at) => {
    const rest = at ? seconds % parts[at - 1][0] : seconds;
    return [Math.floor(rest / size), unit];
  }).filter(([amount]) => amount);
  return found.length ? found.slice(0, 2).map(([amount, unit]) => `${amount} ${unit}`).join(" ") : "0 s";
}

export function moment(at, seconds = false) {
  return new Date(at * 1000).toISOString().slice(0, seconds ? 19 : 16).replace("T", " ");
}

export const show = (value, kind) =>
  value === null || value === undefined ? "" : (SHOW[kind] ? SHOW[kind](value) : String(value));

// The exact value in words, for the dialog behind a number.
export function exact(value, kind) {
  const unit = { bytes: "bytes", rate: "bit/s", seconds: "s", money: "US dollars" }[kind] || "";
  const text = typeof value === "number" ? value.toLocaleString("en-US", { maximumFractionDigits: 6 }) : String(value);
  return `${text} ${unit}`.trim();
}

export const isNumber = (kind) => kind !== "text" && kind !== "time";

export function pathLabel(path) {
  const [name, color] = CLASSES[path] || [nameOf(path), colorOf(path)];
  return el("span", { class: "path" }, swatch(color), name);
}

export const swatch = (color) => el("span", { class: "swatch", style: `background: var(--${color})`, "aria-hidden": "true" });

export function bar(share, { mark = null, hot = false } = {}) {
  const made = el("span", { class: hot ? "bar hot" : "bar", "aria-hidden": "true" },
    el("i", { style: `width: ${Math.min(100, 100 * share).toFixed(1)}%` }));
  if (mark !== null) made.append(el("b", { style: `left: ${Math.min(100, 100 * mark).toFixed(1)}%` }));
  return made;
}

// A number that leads to its query: a link for the mouse, kept out of the tab order (the panel's links are in it).
export function number(value, kind, answer, label) {
  return el("a", {
    href: answer.link("sql"), tabindex: "-1", title: exact(value, kind),
    onclick: (event) => { event.preventDefault(); answer.open(`${label}: ${exact(value, kind)}`); },
  }, show(value, kind));
}

function cell(value, column, row, answer) {
  if (column.render) return el("td", { class: isNumber(column.kind) ? "number" : null }, column.render(value, row));
  if (isNumber(column.kind)) {
    const shown = value === null ? "" : number(value, column.kind, answer, column.title);
    if (column.kind === "share" && value !== null) return el("td", { class: "number share" }, bar(value), shown);
    return el("td", { class: "number" }, shown);
  }
  if (column.name === "class" || column.name === "path") return el("td", {}, pathLabel(value));
  const text = show(value, column.kind);
  if (/^https:\/\//.test(text)) return el("td", {}, el("a", { href: text, rel: "noreferrer" }, new URL(text).hostname));
  return el("td", { class: "long", title: text.length > 34 ? text : null }, text || "–");
}

// A table that sorts by a click or Enter on a head.
export function table(answer, { columns = answer.columns, rows = answer.rows, caption = "" } = {}) {
  const body = el("tbody");
  let sorted = { at: -1, down: true };
  const fill = () => {
    const order = [...rows];
    if (sorted.at >= 0) {
      const numeric = isNumber(columns[sorted.at].kind) || columns[sorted.at].kind === "time";
      const key = (row) => (numeric ? Number(row[columns[sorted.at].from] ?? -Infinity) : String(row[columns[sorted.at].from]));
      order.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (sorted.down ? -1 : 1));
    }
    body.replaceChildren(...order.map((row) =>
      el("tr", {}, ...columns.map((column) => cell(row[column.from], column, row, answer)))));
  };
  columns = columns.map((column, at) => ({ from: at, ...column }));
  const heads = columns.map((column, at) => {
    const head = el("th", { scope: "col", class: isNumber(column.kind) ? "number" : null },
      el("button", { type: "button", onclick: () => {
        sorted = { at, down: sorted.at === at ? !sorted.down : isNumber(column.kind) || column.kind === "time" };
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
        fill();
      } }, column.title));
    return head;
  });
  fill();
  const made = el("table", {}, caption ? el("caption", {}, caption) : null, el("thead", {}, el("tr", {}, ...heads)), body);
  return scrolling(made, answer.title);
}

export const scrolling = (made, label) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, made);

// From × to. `cells`: [from, to, value]; what does not fit into `most` lines is summed under "others".
export function matrix(answer, cells, { most = 16, corner = "from \\ to", kind = "bytes" } = {}) {
  const sums = new Map(), either = new Map();
  for (const [from, to, value] of cells) {
    const amount = Number(value);
    for (const end of new Set([from, to])) either.set(end, (either.get(end) || 0) + amount);
  }
  const ranked = [...either].sort((a, b) => b[1] - a[1]).map(([name]) => name);
  const kept = new Set(ranked.slice(0, ranked.length > most ? most - 1 : most));
  const name = (end) => (kept.has(end) ? end : "others");
  let largest = 0;
  for (const [from, to, value] of cells) {
    const key = `${name(from)}\u0000${name(to)}`;
    sums.set(key, (sums.get(key) || 0) + Number(value));
    largest = Math.max(largest, sums.get(key));
  }
  const ends = ranked.filter((end) => kept.has(end)).sort((a, b) => (a === "" ? 1 : b === "" ? -1 : a < b ? -1 : 1));
  if (ranked.length > kept.size) ends.push("others");
  const said = (end) => end || "outside";
  const sum = (from, to) => ends.filter((end) => true).reduce((all, end) =>
    all + (sums.get(from === null ? `${end}\u0000${to}` : `${from}\u0000${end}`) || 0), 0);
  const value = (amount, label) => (amount ? number(amount, kind, answer, label) : "");
  const rows = ends.map((from) => el("tr", {}, el("th", { scope: "row" }, said(from)),
    ...ends.map((to) => {
      const amount = sums.get(`${from}\u0000${to}`) || 0;
      const heat = amount ? 0.06 + 0.5 * Math.sqrt(amount / largest) : 0;
      return el("td", { class: "cell", style: heat ? `background: rgba(var(--heat), ${heat.toFixed(3)})` : null },
        value(amount, `${said(from)} to ${said(to)}`));
    }),
    el("td", { class: "cell total" }, value(sum(from, null), `all from ${said(from)}`))));
  const foot = el("tr", {}, el("th", { scope: "row", class: "total" }, "all"),
    ...ends.map((to) => el("td", { class: "cell total" }, value(sum(null, to), `all to ${said(to)}`))), el("td", {}));
  return scrolling(el("table", { class: "matrix" },
    el("thead", {}, el("tr", {}, el("th", {}, corner), ...ends.map((to) => el("th", { scope: "col", title: said(to) }, said(to))),
      el("th", { scope: "col", class: "total" }, "all"))),
    el("tbody", {}, ...rows, foot)), `${answer.title}, matrix`);
}
