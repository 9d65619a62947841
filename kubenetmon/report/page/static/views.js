// The seven views: each asks its questions and draws the answers.
import { stackedBars } from "./charts.js";
import { PATHS, bar, colorOf, duration, el, exact, matrix, moment, nameOf, number, pathLabel, scrolling, show, swatch, table } from "./tables.js";

const ORDER = Object.keys(PATHS);

let general = new Set(), footnotes = el("ul", { class: "notes" });

export function panel(title, { wide = "", help = "" } = {}) {
  const body = el("div", { class: "wait" }, "…");
  const links = el("span", { class: "links" });
  const node = el("section", { class: wide, "aria-label": title },
    el("header", {}, el("div", {}, el("h2", {}, title), help ? el("p", { class: "muted" }, help) : null), links), body);
  return { node, links, body };
}

// What holds for many answers is said once, at the end of the view.
function footnote(notes) {
  for (const note of notes) {
    if (general.has(note)) continue;
    general.add(note);
    footnotes.append(el("li", {}, note));
  }
}

function fill(one, answer, ...content) {
  one.body.classList.remove("wait");
  one.links.replaceChildren(
    el("a", { href: answer.link("csv") }, "CSV"),
    el("a", { href: answer.link("json") }, "JSON"),
    el("a", { href: answer.link("sql"), onclick: (event) => { event.preventDefault(); answer.open(""); } }, "query"));
  const said = answer.quiet ? [] : [...answer.notes];
  if (answer.cut && !answer.quiet) said.unshift(`The first ${answer.rows.length} rows; the CSV has up to 5,000.`);
  one.body.replaceChildren(...content, said.length ? el("ul", { class: "notes" }, ...said.map((note) => el("li", {}, note))) : "");
  footnote(answer.general);
}

const empty = () => el("p", { class: "muted" }, "Nothing was found in this span.");

async function put(one, asked, draw) {
  try {
    const answer = await asked;
    fill(one, answer, ...(answer.rows.length ? [draw(answer)].flat() : [empty()]));
  } catch (error) {
    if (error.name === "AbortError") return;
    one.body.classList.remove("wait");
    one.body.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
  }
}

function place(main, ...panels) {
  general = new Set();
  footnotes = el("ul", { class: "notes view" });
  main.replaceChildren(...panels.map((one) => one.node), footnotes);
}

const quiet = (answer) => ({ ...answer, quiet: true });

// ---- Overview

function seriesOf(answer, at = 2) {
  const slots = new Map();
  const step = answer.step, first = Math.floor(answer.since / step) * step;
  for (let time = first; time < answer.until; time += step) slots.set(time, { at: time, values: {} });
  const paths = new Set();
  for (const row of answer.rows) {
    const slot = slots.get(Number(row[0]));
    if (!slot) continue;
    slot.values[row[1]] = (slot.values[row[1]] || 0) + Number(row[at]);
    paths.add(row[1]);
  }
  const rank = (path) => (ORDER.indexOf(path) < 0 ? 99 : ORDER.indexOf(path));
  return { slots: [...slots.values()], paths: [...paths].sort((a, b) => rank(a) - rank(b)) };
}

const item = (label, value, note, color = "") => el("div", {}, el("dt", {}, color ? swatch(color) : null, label),
  el("dd", {}, value, el("small", {}, note)));

function figures(answer) {
  const sums = new Map();
  let all = 0;
  for (const row of answer.rows) {
    const amount = Number(row[2]);
    sums.set(row[1], (sums.get(row[1]) || 0) + amount);
    all += amount;
  }
  const shown = ["internet", "inter-region", "cross-zone", "region-service", "unknown-zone", "same-zone", "unknown"];
  const own = [...sums.keys()].filter((path) => !PATHS[path]).sort();
  return el("dl", { class: "figures" },
    item("All bytes", number(all, "bytes", answer, "all bytes"), `in ${duration(answer.until - answer.since)}`),
    ...[...shown, ...own].filter((path) => sums.has(path)).map((path) => item(nameOf(path),
      number(sums.get(path), "bytes", answer, nameOf(path)), `${((100 * sums.get(path)) / all).toFixed(1)} % of all`, colorOf(path))));
}

function costOf(answer) {
  const at = Object.fromEntries(answer.columns.map((column, index) => [column.name, index]));
  const sums = new Map();
  for (const row of answer.rows) sums.set(row[at.path], (sums.get(row[at.path]) || 0) + Number(row[at.cost] || 0));
  return sums;
}

function money(answer) {
  const sums = [...costOf(answer)].filter(([, amount]) => amount).sort((a, b) => b[1] - a[1]);
  const said = answer.summary || {};
  const dollars = (value, label) => number(value, "money", answer, label);
  return el("dl", { class: "figures" },
    item("Cost", dollars(said.total, "cost"), `in ${duration(answer.until - answer.since)}`),
    item("Month to date", dollars(said.month_to_date, "month to date"), "all traffic"),
    item("Projected", dollars(said.projected, "projected for the month"), "for the month, at the pace so far"),
    ...sums.map(([path, amount]) => item(nameOf(path), dollars(amount, path), "in this span", colorOf(path))));
}

// Each path's cost in the span, spread over time by its bytes.
function costSeries(series, costs) {
  const bytes = new Map();
  for (const slot of series.slots) {
    for (const path of series.paths) bytes.set(path, (bytes.get(path) || 0) + (slot.values[path] || 0));
  }
  const paths = series.paths.filter((path) => costs.get(path) && bytes.get(path));
  return { paths, slots: series.slots.map((slot) => ({ at: slot.at, values: Object.fromEntries(paths.map((path) =>
    [path, ((slot.values[path] || 0) * costs.get(path)) / bytes.get(path)])) })) };
}

function seriesTable(answer, series, kind) {
  const columns = [{ name: "time", title: "from (UTC)", kind: "time" },
    ...series.paths.map((path) => ({ name: path, title: nameOf(path), kind })), { name: "all", title: "all", kind }];
  const rows = series.slots.map((slot) => {
    const values = series.paths.map((path) => slot.values[path] || 0);
    return [slot.at, ...values, values.reduce((a, b) => a + b, 0)];
  });
  return el("details", {}, el("summary", {}, "As a table"), table(answer, { columns, rows }));
}

function overview(main, ask) {
  const sums = panel("Moved"), costs = panel("Cost"), time = panel("Bytes over time by path");
  const spent = panel("Dollars over time by path", { help: "Each path's cost, spread over the time by its bytes." });
  const top = panel("Largest transfers", { wide: "tall" }), classes = panel("By class of path", { wide: "half" });
  const missing = panel("Not attributed", { wide: "half" });
  const paths = ask("paths"), priced = ask("cost", { by: "path", limit: 1000 });
  place(main, sums, costs, time, spent, classes, missing, top);
  const drawn = (answer, series, kind, label) => [
    stackedBars({ ...series, step: answer.step, kind, label: `Stacked bars: ${label}` }),
    seriesTable(answer, series, kind)];
  return Promise.all([
    put(sums, paths.then(quiet), figures),
    put(costs, priced.then(quiet), money),
    put(time, paths, (answer) => drawn(answer, seriesOf(answer), "bytes", "bytes over time by path")),
    put(spent, Promise.all([paths, priced]).then(([bytes, cost]) => ({ ...quiet(cost), bytes })), (answer) =>
      drawn(answer, costSeries(seriesOf(answer.bytes), costOf(answer)), "money", "dollars over time by path")),
    put(classes, ask("classes"), (answer) => table(answer)),
    put(missing, ask("unattributed", { limit: 10 }), (answer) => table(answer, {
      columns: answer.columns.map((column, from) => ({ ...column, from })).filter((column) => column.name !== "example") })),
    put(top, ask("top", { limit: 15 }), (answer) => table(answer)),
  ]);
}

// ---- Cost

function cost(main, ask, _, scope) {
  const sums = panel("Cost"), entries = panel("By path and price", { wide: "tall" });
  const by = scope.by === "app" ? "workload" : scope.by;
  const who = panel(`By ${by}`, { wide: "tall" });
  place(main, sums, entries, who);
  const priced = ask("cost", { by: "path", limit: 1000 });
  const slim = (answer) => table(answer, { columns: answer.columns.map((column, from) => ({ ...column, from }))
    .filter((column) => column.name !== "date" && column.name !== "source") });
  return Promise.all([
    put(sums, priced.then(quiet), money), put(entries, priced, (answer) => table(answer)),
    put(who, ask("cost", { by, limit: 100 }).then((answer) => ({ ...answer, notes: [] })), slim),
  ]);
}

// ---- Who talks to whom

function talks(main, ask) {
  const zones = panel("Zone to zone", { help: "Bytes from the zone in the row to the zone in the column. Off the diagonal they cross zones, which some clouds charge for: see Cost." });
  const apps = panel("App to app", { help: "The apps that move most; empty: outside of the cluster, or without a name." });
  const crossing = panel("Across zones", { wide: "tall" }), all = panel("All pairs", { wide: "tall" });
  place(main, zones, apps, crossing, all);
  const cells = (answer) => answer.rows.map((row) => [row[0], row[1], row[4]]);
  const both = (answer, most) => [matrix(answer, cells(answer), { most }),
    el("details", {}, el("summary", {}, "As a table"), table(answer))];
  return Promise.all([
    put(zones, ask("top", { by: "zone", limit: 2000 }), (answer) => both(answer, 12)),
    put(apps, ask("top", { by: "app", limit: 2000 }), (answer) => both(answer, 14)),
    put(crossing, ask("cross-zone", { limit: 25 }), (answer) => table(answer)),
    put(all, ask("top", { limit: 25 }), (answer) => table(answer)),
  ]);
}

// ---- Cloud services

function services(main, ask) {
  const sums = panel("Bytes by service"), all = panel("Who uses which service", { wide: "tall" });
  place(main, sums, all);
  const asked = ask("s3", { service: "any", limit: 500 });
  return Promise.all([
    put(sums, asked.then(quiet), (answer) => {
      const found = new Map();
      for (const row of answer.rows) {
        const key = JSON.stringify([row[1], row[2], row[3], row[4]]);
        const before = found.get(key) || [row[1], row[2], row[3], row[4], 0, 0];
        before[4] += Number(row[5]);
        before[5] += Number(row[6]);
        found.set(key, before);
      }
      const rows = [...found.values()].sort((a, b) => b[4] + b[5] - a[4] - a[5]);
      return table(answer, { columns: answer.columns.slice(1).map((column, at) => ({ ...column, from: at })), rows });
    }),
    put(all, asked, (answer) => table(answer)),
  ]);
}

// ---- Balance

function balance(main, ask) {
  const one = panel("Are connections and bytes even over replicas?", {
    wide: "tall", help: "The mark is an even share. Odd ones are named.",
  });
  place(main, one);
  return put(one, ask("balance", { limit: 1000 }), (answer) => {
    const at = Object.fromEntries(answer.columns.map((column, index) => [column.name, index]));
    const groups = new Map();
    for (const row of answer.rows) {
      const key = JSON.stringify([row[at.client], row[at.server]]);
      groups.set(key, [...(groups.get(key) || []), row]);
    }
    const bodies = [...groups.values()].map((rows) => el("tbody", {},
      el("tr", { class: "group" }, el("th", { colspan: "6", scope: "rowgroup" },
        `${rows[0][at.client] || "outside"} → ${rows[0][at.server]}`, " ",
        el("span", { class: "muted" }, rows.length < rows[0][at.replicas]
          ? `${rows.length} of ${rows[0][at.replicas]} replicas` : `${rows.length} replicas`))),
      ...rows.map((row) => {
        const even = 1 / row[at.replicas], odd = row[at.odd];
        const share = (value) => [bar(value, { mark: even, hot: Boolean(odd) && odd !== "idle" }), number(value, "share", answer, "share")];
        return el("tr", {}, el("td", { class: "long", title: row[at.replica] }, row[at.replica]),
          el("td", { class: "number" }, number(row[at.connections], "count", answer, "connections")),
          el("td", { class: "number share" }, ...share(row[at.connections + 1])),
          el("td", { class: "number" }, number(row[at.connections + 2], "bytes", answer, "bytes")),
          el("td", { class: "number share" }, ...share(row[at.connections + 3])),
          el("td", {}, odd ? el("span", { class: `tag ${odd === "idle" ? "warn" : "bad"}` }, odd === "idle" ? "idle" : `odd: ${odd}`) : ""));
      })));
    const heads = ["replica", "connections", "share", "bytes", "share", ""].map((text, index) =>
      el("th", { scope: "col", class: index && index < 5 ? "number" : null }, text));
    return scrolling(el("table", {}, el("thead", {}, el("tr", {}, ...heads)), ...bodies), answer.title);
  });
}

// ---- Throughput

function throughput(main, ask) {
  const nodes = panel("Nodes, against what their type can move", { wide: "tall" }), pods = panel("Pods", { wide: "tall" });
  place(main, nodes, pods);
  const drawn = (answer) => table(answer, { columns: answer.columns.map((column, from) => {
    if (column.name === "use") {
      return { ...column, from, render: (value) => (value === null ? el("span", { class: "muted" }, "limit unknown")
        : el("span", {}, bar(value, { hot: value >= 0.8, mark: 0.8 }), number(value, "share", answer, "use"))) };
    }
    if (column.name === "warning") return { ...column, from, render: (value) => (value ? el("span", { class: "tag bad" }, value) : "") };
    return { ...column, from };
  }) });
  return Promise.all([
    put(nodes, ask("throughput", { by: "node", limit: 200 }), drawn),
    put(pods, ask("throughput", { by: "pod", limit: 50 }), drawn),
  ]);
}

// ---- Health

function health(main, ask, askHealth) {
  const state = panel("This server"), identity = panel("Is every byte accounted for?", {
    help: "received = committed + ignored + handed back + pending, since this process began.",
  });
  const nodes = panel("Reports by node", { wide: "tall" });
  place(main, identity, state, nodes);
  const server = async () => {
    try {
      const found = await askHealth();
      if (found.absent) {
        state.node.remove();
        identity.body.classList.remove("wait");
        identity.body.replaceChildren(el("p", { class: "muted" }, found.absent));
        return;
      }
      drawIdentity(identity, found);
      drawState(state, found);
    } catch (error) {
      if (error.name === "AbortError") return;
      for (const one of [state, identity]) {
        one.body.classList.remove("wait");
        one.body.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
      }
    }
  };
  return Promise.all([server(), put(nodes, ask("nodes", { limit: 1000 }), (answer) => {
    const late = (value) => answer.until - value > 300;
    return table(answer, { columns: answer.columns.map((column, from) => (column.name === "last_report"
      ? { ...column, from, title: "last report", render: (value) => el("span", {}, moment(value), " ",
        late(value) ? el("span", { class: "tag warn" }, `${duration(answer.until - value)} before the end`) : "") }
      : { ...column, from })) });
  })]);
}

// Links of a panel over this server's own numbers, and a number in it: value, kind, label and the metrics behind it.
function ownLinks(one, found, ...metrics) {
  one.links.replaceChildren(el("a", { href: found.link("csv") }, "CSV"), el("a", { href: found.link("json") }, "JSON"),
    el("a", { href: found.link("json"), onclick: (event) => { event.preventDefault(); found.open("", metrics.map((name) => found.metrics[name])); } }, "query"));
}

const own = (found) => (value, kind, label, ...metrics) => number(value, kind,
  { link: () => found.link("csv"), open: (text) => found.open(text, metrics) }, label);

function drawIdentity(one, found) {
  one.body.classList.remove("wait");
  const parts = ["received", "committed", "ignored", "handed_back", "pending"];
  ownLinks(one, found, ...parts);
  const shown = own(found);
  const rows = found.identity.map((part) => {
    const kind = part.unit === "bytes" ? "bytes" : "count";
    const ignored = Object.entries(part.ignored).filter(([, amount]) => amount);
    const amounts = { ...part, ignored: ignored.reduce((sum, [, amount]) => sum + amount, 0) };
    const metric = (name, more = "") => `sum(${found.metrics[name]}{unit="${part.unit}"${more}})`;
    const equation = `${metric("received")} - ${parts.slice(1).map((name) => metric(name)).join(" - ")}`;
    return el("tr", {}, el("th", { scope: "row" }, part.unit),
      ...parts.map((name) => el("td", { class: "number" },
        shown(amounts[name], kind, `${name.replace("_", " ")}, ${part.unit}`, metric(name)))),
      el("td", {}, el("span", { class: `tag ${part.unaccounted ? "bad" : "good"}` }, part.unaccounted
        ? shown(part.unaccounted, kind, "unaccounted for: a defect, please report it", equation) : "equal")),
      el("td", { class: "muted" }, ...ignored.flatMap(([reason, amount], place) => [place ? ", " : "", `${reason} `,
        shown(amount, kind, `ignored, ${reason}, ${part.unit}`, metric("ignored", `, reason="${reason}"`))])));
  });
  const heads = ["", "received", "committed", "ignored", "handed back", "pending", "", "ignored, by reason"].map((text, at) =>
    el("th", { scope: "col", class: at > 0 && at < 6 ? "number" : null }, text));
  one.body.replaceChildren(scrolling(el("table", {}, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows)), "Conservation of bytes"));
}

function drawState(one, found) {
  one.body.classList.remove("wait");
  ownLinks(one, found, "agents", "batches", "held_batches", "insert_errors", "insert_retries", "exactly_once");
  const shown = own(found), live = found.live;
  const lag = live.horizon ? Math.max(0, found.now - live.horizon) : null;
  const state = (label, value, note, kind, metric, bad = false) => {
    const link = shown(value, kind, label.toLowerCase(), ...(metric ? [found.metrics[metric]] : []));
    return item(label, bad ? el("span", { class: "error" }, link) : link, note);
  };
  const checks = Object.entries(found.checks).map(([name, check]) => el("tr", {}, el("th", { scope: "row" }, name),
    el("td", {}, el("span", { class: `tag ${check.ok ? "good" : "bad"}` }, check.ok ? "well" : "not well")), el("td", {}, check.detail)));
  one.body.replaceChildren(
    el("dl", { class: "figures" },
      state("Agents connected", found.agents, `${live.nodes} nodes reported of late`, "count", "agents"),
      state("Behind", lag === null ? "no report yet" : lag, live.interval ? `reports cover ${duration(live.interval)}` : "",
        lag === null ? "text" : "seconds", ""),
      state("Late nodes", live.late_nodes.length, live.late_nodes.slice(0, 3).join(", ") || "none", "count", "", live.late_nodes.length > 0),
      state("Batches committed", found.batches.committed, `${show(found.batches.retry_later, "count")} to be sent again`, "count", "batches"),
      state("Batches held", found.held_batches, found.held_batches ? "ClickHouse refuses them" : "none", "count", "held_batches", found.held_batches > 0),
      state("Failed inserts", found.insert_errors, `${show(found.insert_retries, "count")} retries`, "count", "insert_errors"),
      state("Exactly once", found.exactly_once ? "yes" : "no", found.exactly_once ? "the window covers repeats" : "the deduplication window is short",
        "text", "exactly_once", !found.exactly_once)),
    el("details", { open: true }, el("summary", {}, "Checks"), scrolling(el("table", {}, el("tbody", {}, ...checks)), "Checks")));
}

export const VIEWS = [
  ["overview", "Overview", overview], ["cost", "Cost", cost], ["talks", "Who talks to whom", talks], ["services", "Cloud services", services],
  ["balance", "Balance", balance], ["throughput", "Throughput", throughput], ["health", "Health", health],
];
