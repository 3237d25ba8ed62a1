// A whole run: success by round and group with standard errors (the paper's Figure 2), prompt tokens, losses, and what the hints were.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), agents = data.agents;
const where = document.getElementById("charts");

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

function chart(title, width, height, top, unit, fill) {              // an empty chart with a scale from 0 to top
  const box = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }), y = v => height - 34 - v / top * (height - 50);
  for (let i = 0; i <= 4; i++) {
    const v = top * i / 4;
    box.append(svg("line", { x1: 44, x2: width, y1: y(v), y2: y(v), class: "axis" }), svg("text", { x: 40, y: y(v) + 4, "text-anchor": "end" }, (v < 10 && top < 10 ? v.toPrecision(2) : Math.round(v).toLocaleString()) + unit));
  }
  fill(box, y);
  return make("figure", [make("figcaption", title), box]);
}

function columns(title, values, top, unit, points) {                 // values: [number, error] for each agent
  const wide = Math.max(52, 300 / agents.length), x = i => 44 + wide * (i + .5);
  return chart(title, 50 + wide * agents.length, 210, top, unit, (box, y) => {
    const line = svg("path", { class: "line", d: values.map((v, i) => v && `${i && values[i - 1] ? "L" : "M"}${x(i)} ${y(v[0])}`).filter(Boolean).join("") });
    if (points) box.append(line);
    values.forEach((v, i) => {
      box.append(svg("text", { x: x(i), y: 194 + 12 * (i % 2), "text-anchor": "middle" }, agents[i].name));
      if (!v) return;
      const mark = points ? svg("circle", { cx: x(i), cy: y(v[0]), r: 3.5, class: "point" }) : svg("rect", { x: x(i) - 12, width: 24, y: y(v[0]), height: y(0) - y(v[0]), class: "column" });
      mark.append(svg("title", {}, `${agents[i].name}: ${v[0].toLocaleString(undefined, { maximumFractionDigits: 1 })}${unit}` + (v[1] ? ` ± ${v[1].toFixed(1)}` : "")));
      if (v[1]) box.append(svg("line", { x1: x(i), x2: x(i), y1: y(Math.min(top, v[0] + v[1])), y2: y(Math.max(0, v[0] - v[1])), class: "line" }));
      box.append(mark);
    });
  });
}

const groups = [...new Set(agents.flatMap(a => Object.keys(a.rates)))].sort((a, b) => (b === "all") - (a === "all") || (a < b ? -1 : 1));
where.append(make("h2", "Success on the evaluated tasks, with standard errors over the trials"),
  make("div", groups.map(g => columns(g, agents.map(a => a.rates[g]), 100, " %", true)), "charts"));
const most = Math.max(...agents.map(a => a.tokens));
where.append(make("h2", "Input tokens per task"), make("div", columns("summed over a task's prompts", agents.map(a => [a.tokens]), most, "", false), "charts"));

if (data.adapters.length) where.append(make("h2", "Loss of each distillation, by update"), make("div", data.adapters.map(a => {
  const top = Math.max(...a.losses), n = a.losses.length;
  return chart(a.name, 340, 210, top, "", (box, y) => box.append(svg("text", { x: 340, y: 200, "text-anchor": "end" }, `${n} updates`),
    svg("path", { class: "line", d: a.losses.map((v, i) => `${i ? "L" : "M"}${44 + 290 * i / Math.max(n - 1, 1)} ${y(v)}`).join("") })));
}), "charts"));
for (const a of data.adapters) {
  where.append(make("h2", `The hints of ${a.name}`));
  for (const [name, text] of Object.entries(a.hints)) {
    const d = make("details", [make("summary", name), make("pre", text)]);
    where.append(d);
  }
}
