// Stacked bars over time, as SVG.
import { colorOf, duration, el, moment, nameOf, show, swatch } from "./tables.js";

const NS = "http://www.w3.org/2000/svg";

function svg(name, attributes, ...children) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") made.style.cssText = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const color = (path) => `var(--${colorOf(path)})`;

// Round steps for an axis: binary for bytes, decimal else.
function ticks(most, kind) {
  const base = kind === "bytes" ? 1024 : 1000;
  let unit = kind === "money" ? 10 ** Math.floor(Math.log10(most)) : 1;
  while (most / unit >= base) unit *= base;
  const steps = [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500].flatMap((one) => [one / 100, one / 10, one]);
  const step = steps.sort((a, b) => a - b).find((one) => most / (one * unit) <= 4.2) || 500;
  return Array.from({ length: Math.floor(most / (step * unit)) + 1 }, (_, at) => at * step * unit);
}

function axisLabel(value, kind) {
  if (!value) return "0";
  if (kind === "money" && value < 10) return `$${Number(value.toPrecision(2))}`;
  return show(value, kind).replace(/\.?0+ /, " ").replace(/\.00$/, "");
}

// `slots`: [{at, values: {path: amount}}] in order; `paths`: from the bottom up. Drawn anew where there is more or
// less room, so that its text stays as large as it is elsewhere.
export function stackedBars(chart) {
  const figure = el("figure", {});
  const legend = el("div", { class: "legend" }, ...[...chart.paths].reverse().map((path) =>
    el("span", {}, swatch(colorOf(path)), nameOf(path))));
  let drawn = 0;
  const draw = () => {
    const width = Math.max(320, Math.min(1180, figure.clientWidth || 1180));
    if (Math.abs(width - drawn) < 16) return;
    drawn = width;
    figure.replaceChildren(picture(chart, width), legend);
  };
  draw();
  new ResizeObserver(draw).observe(figure);
  return figure;
}

function picture({ slots, paths, step, kind, label }, width, height = 230) {
  const left = 66, bottom = 22, top = 8, inner = width - left - 4, tall = height - bottom - top;
  const totals = slots.map((slot) => paths.reduce((sum, path) => sum + (slot.values[path] || 0), 0));
  const most = Math.max(...totals, 1e-9);
  const y = (value) => top + tall - (tall * value) / most;
  const each = inner / Math.max(slots.length, 1), gap = Math.min(4, each * 0.2);
  const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of ticks(most, kind)) {
    made.append(
      svg("line", { class: "rule", x1: left, x2: width - 4, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, axisLabel(value, kind)));
  }
  const every = Math.ceil((slots.length * 96) / inner);
  slots.forEach((slot, at) => {
    const x = left + at * each;
    const lines = paths.filter((path) => slot.values[path]).reverse()
      .map((path) => `${nameOf(path)}: ${show(slot.values[path], kind)}`);
    const group = svg("g", { class: "slot" },
      svg("title", {}, [`${moment(slot.at)} UTC, ${duration(step)}: ${show(totals[at], kind)}`, ...lines].join("\n")),
      svg("rect", { class: "slot", x, y: top, width: each, height: tall }));
    let below = 0;
    for (const path of paths) {
      const amount = slot.values[path] || 0;
      if (!amount) continue;
      group.append(svg("rect", { x: x + gap / 2, width: Math.max(each - gap, 0.5), y: y(below + amount),
        height: Math.max(y(below) - y(below + amount), 0.2), style: `fill: ${color(path)}` }));
      below += amount;
    }
    made.append(group);
    if (at % every === 0 && x + 62 < width) {
      const text = moment(slot.at);
      made.append(svg("text", { x: x + gap / 2, y: height - 5 }, step >= 86400 ? text.slice(5, 10) : slots.length * step > 86400
        ? `${text.slice(5, 10)} ${text.slice(11)}` : text.slice(11)));
    }
  });
  return made;
}
