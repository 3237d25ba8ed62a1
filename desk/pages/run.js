// A whole run: success by round and group with standard errors (the paper's Figure 2), prompt tokens, losses, hints.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), agents = data.agents;
const where = document.getElementById("charts"), LEFT = 44, BOTTOM = 34;

function make(tag, content, className) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  e.append(...[content].flat());
  return e;
}

function svg(tag, attributes, text) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const k in attributes) e.setAttribute(k, attributes[k]);
  if (text !== undefined) e.textContent = text;
  return e;
}

const short = v => v.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
const cut = (text, n) => text.length > n ? text.slice(0, n - 1) + "…" : text;

function stepFor(top) {                                             // of about four lines: 1, 2 or 5 times 10^n
  const power = 10 ** Math.floor(Math.log10(top / 3));
  return power * [5, 2, 1].find(k => k * power <= top / 3);
}

function chart(title, width, height, top, unit, fill) {              // an empty chart with a scale from 0 to top
  const box = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const y = v => height - BOTTOM - v / top * (height - 54), by = unit ? 25 : stepFor(top);
  for (let i = 0; i * by <= top; i++) {
    const v = i * by;
    box.append(svg("line", { x1: LEFT, x2: width, y1: y(v), y2: y(v), class: "axis" }));
    box.append(svg("text", { x: LEFT - 4, y: y(v) + 4, "text-anchor": "end" }, short(v) + unit));
  }
  fill(box, y);
  return make("figure", [make("figcaption", title), box]);
}

function columns(title, values, top, unit, points) {                 // values: [number, error] for each agent
  const wide = Math.max(50, 300 / agents.length), lines = agents.length > 1 ? 2 : 1, x = i => LEFT + wide * (i + .5);
  return chart(title, LEFT + 6 + wide * agents.length, 220, top, unit, (box, y) => {
    if (points) {                                                   // a line joins the rounds: agents without hints
      const joined = values.map((v, i) => [v, i]).filter(([v, i]) => v && !agents[i].hinted);
      const d = joined.map(([v, i], n) => `${n ? "L" : "M"}${x(i)} ${y(v[0])}`).join("");
      box.append(svg("path", { class: "line", d }));
    }
    values.forEach((v, i) => {
      const at = { x: x(i), y: 204 + 12 * (i % lines), "text-anchor": "middle" };
      const name = svg("text", at, cut(agents[i].name, Math.floor(lines * wide / 7)));
      name.append(svg("title", {}, agents[i].name));
      box.append(name);
      if (!v) return;
      const [value, error] = v, number = value.toLocaleString("en", { maximumFractionDigits: 1 });
      const mark = points
        ? svg("circle", { cx: x(i), cy: y(value), r: 2.5, class: "point" + (agents[i].hinted ? " hinted" : "") })
        : svg("rect", { x: x(i) - 12, width: 24, y: y(value), height: y(0) - y(value), class: "column" });
      mark.append(svg("title", {}, `${agents[i].name}: ${number}${unit}` + (error ? ` ± ${error.toFixed(1)}` : "")));
      const high = y(Math.min(top, value + error)), low = y(Math.max(0, value - error));
      const bar = `M${x(i)} ${high}V${low}M${x(i) - 5} ${high}h10M${x(i) - 5} ${low}h10`;
      if (error) box.append(svg("path", { class: "line", d: bar }));
      const above = { x: x(i), y: Math.min(high, y(value) - 4) - 4, "text-anchor": "middle", class: "value" };
      box.append(mark, svg("text", above, points ? Math.round(value) : short(value)));
    });
  });
}

function curve(title, losses) {                                     // each update faintly, and the running mean
  const n = losses.length, top = Math.max(...losses) || 1, x = i => LEFT + 290 * i / Math.max(n - 1, 1), mean = [];
  losses.forEach((v, i) => mean.push(i ? mean[i - 1] + (v - mean[i - 1]) / Math.min(i + 1, Math.max(n / 30, 1)) : v));
  return chart(title, 340, 210, top, "", (box, y) => {
    const line = values => values.map((v, i) => `${i ? "L" : "M"}${x(i)} ${y(v)}`).join("");
    const summary = `${n.toLocaleString("en")} updates, at the end ${short(mean[n - 1])}`;
    box.append(svg("text", { x: 340, y: 200, "text-anchor": "end" }, summary));
    box.append(svg("path", { class: "line faint", d: line(losses) }), svg("path", { class: "line", d: line(mean) }));
  });
}

function success() {
  const names = [...new Set(agents.flatMap(a => Object.keys(a.rates)))];
  names.sort((a, b) => (b === "all") - (a === "all") || (a < b ? -1 : 1));
  const groups = names.length === 2 ? names.slice(1) : names;       // of a single group, not the same again as "all"
  const circles = agents.some(a => a.hinted) ? "Open circles: agents with hints in the prompt. " : "";
  const bars = agents.some(a => a.rates.all[1]) ? "Bars: the standard error over the trials." : "";
  const charts = groups.map(g => columns(g, agents.map(a => a.rates[g]), 100, " %", true));
  where.append(make("h2", "Success on the evaluated tasks, %"), make("p", circles + bars, "soft"));
  where.append(make("div", charts, "charts"));
}

function tokens() {
  const values = agents.map(a => [a.tokens, 0]), top = Math.max(1, ...agents.map(a => a.tokens));
  where.append(make("h2", "Input tokens per task"));
  where.append(make("div", columns("summed over a task's prompts", values, top, "", false), "charts"));
}

function training() {
  const trained = data.adapters.filter(a => a.losses.length), lost = data.adapters.filter(a => !a.losses.length);
  if (trained.length) {
    where.append(make("h2", "Loss of each distillation, by update"));
    where.append(make("div", trained.map(a => curve(a.name, a.losses)), "charts"));
  }
  for (const a of trained) {
    where.append(make("h2", `The hints of ${a.name}`));
    const counts = `${a.hints.length} new ones; ${a.earlier} more are from earlier rounds`;
    if (a.earlier) where.append(make("p", counts, "soft"));
    for (const [name, text] of a.hints) where.append(make("details", [make("summary", name), make("pre", text)]));
    if (!a.hints.length && !a.earlier)
      where.append(make("p", "none in its data, or the data are no longer there", "soft"));
  }
  if (lost.length) where.append(make("p", `No log of the training in ${lost.map(a => a.name).join(", ")}.`, "soft"));
}

success();
tokens();
training();
