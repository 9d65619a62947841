// State in the address, questions to the server, keys.
import { VIEWS } from "./views.js";
import { duration, el, moment } from "./tables.js";

const form = document.getElementById("scope"), main = document.getElementById("main");
const DEFAULTS = { since: "24h", until: "now", by: "app", namespace: "", app: "", node: "", zone: "" };
const FIELDS = Object.keys(DEFAULTS);
let running = new AbortController();

function state() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const given = new URLSearchParams(query);
  const scope = Object.fromEntries(FIELDS.map((name) => [name, given.get(name) || DEFAULTS[name]]));
  return { view: VIEWS.some(([name]) => name === path) ? path : VIEWS[0][0], scope };
}

function address(view, scope) {
  const changed = FIELDS.filter((name) => scope[name] && scope[name] !== DEFAULTS[name]);
  const query = new URLSearchParams(changed.map((name) => [name, scope[name]])).toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}

async function fetchJson(url) {
  let response;
  try {
    response = await fetch(url, { signal: running.signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
  let document;
  try {
    document = await response.json();
  } catch {
    throw new Error(`The server answers ${response.status} without a reason.`);
  }
  if (!response.ok) throw new Error(document.error || `The server answers ${response.status}.`);
  return document;
}

function asker(scope) {
  return async (question, more = {}) => {
    const parameters = { question, ...scope, ...more };
    const query = (format) => new URLSearchParams(
      Object.entries({ ...parameters, format }).filter(([name, value]) => value !== "" && !(name === "limit" && format === "csv")));
    const link = (format) => `api/ask?${query(format)}${format === "csv" ? "&limit=5000" : ""}`;
    const answer = await fetchJson(link("json"));
    document.getElementById("span").textContent =
      `${moment(answer.since)} to ${moment(answer.until)} UTC (${duration(answer.until - answer.since)})`;
    return { ...answer, link, open: (value) => openQuery({ ...answer, link }, value) };
  };
}

// This server's own numbers come from its metrics: those are their queries, in Prometheus.
async function health() {
  const found = await fetchJson("api/health");
  const link = (format) => `api/health?format=${format}`;
  const open = (value, metrics = []) => openQuery({
    title: "Health of the metering", link, forms: ["csv", "json"], command: "curl SERVER:8883/metrics",
    sql: metrics.length ? metrics.join("\n") : "No metric has it; the CSV does.",
  }, value);
  return { ...found, link, open };
}

function openQuery(answer, value) {
  const at = (id) => document.getElementById(id);
  at("query-title").textContent = answer.title;
  at("query-value").textContent = value;
  const names = { csv: "CSV", json: "JSON", sql: "query as text" };
  at("query-links").replaceChildren(...(answer.forms || Object.keys(names)).flatMap((form, place) =>
    [place ? " · " : "", el("a", { href: answer.link(form) }, names[form])]));
  at("query-command").textContent = answer.command || "Only this page asks it.";
  at("query-sql").textContent = answer.sql;
  at("query").showModal();
}

async function draw() {
  running.abort();
  running = new AbortController();
  const { view, scope } = state();
  for (const name of FIELDS) form.elements[name].value = scope[name];
  for (const link of document.querySelectorAll("#views a")) {
    link.href = address(link.dataset.view, scope);
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const [, title, show] = VIEWS.find(([name]) => name === view);
  document.title = `${title} · kubenetmon`;
  main.dataset.state = "asking";
  const mine = running;
  await show(main, asker(scope), health, scope);
  if (mine === running) main.dataset.state = "done";
}

function theme(next) {
  const order = ["auto", "light", "dark"];
  let now = localStorage.getItem("theme") || "auto";
  if (next) now = order[(order.indexOf(now) + 1) % order.length];
  localStorage.setItem("theme", now);
  if (now === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = now;
  document.getElementById("theme").textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[now];
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const scope = Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value.trim()]));
  const next = address(state().view, scope);
  if (next === location.hash) draw();
  else location.hash = next;
});
form.elements.by.addEventListener("change", () => form.requestSubmit());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the view: #main would throw it away
  main.focus();
});
document.getElementById("clear").addEventListener("click", () => { location.hash = address(state().view, DEFAULTS); });
document.getElementById("theme").addEventListener("click", () => theme(true));
window.addEventListener("hashchange", draw);
window.addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach((one) => { one.open = true; }));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, dialog")) return;
  const number = Number(event.key);
  if (number >= 1 && number <= VIEWS.length) location.hash = address(VIEWS[number - 1][0], state().scope);
  else if (event.key === "r") draw();
  else if (event.key === "/") { event.preventDefault(); form.elements.namespace.focus(); }
});

async function begin() {
  theme(false);
  const views = document.getElementById("views");
  VIEWS.forEach(([name, title], at) => views.append(el("a", { href: `#/${name}`, "data-view": name, "aria-keyshortcuts": String(at + 1) }, title)));
  try {
    const found = await fetchJson("api/about");
    document.getElementById("about").textContent = Object.values(found.about).filter(Boolean).join(" · ");
    document.getElementById("version").textContent = `kubenetmon ${found.version}`;
    form.elements.by.append(...found.keys.map((key) => el("option", { value: key }, key)));
  } catch (error) {
    main.replaceChildren(el("p", { class: "error", role: "alert" }, error.message));
    return;
  }
  await draw();
}

begin();
