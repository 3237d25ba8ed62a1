// The coach's desk: what went wrong, where, how often. Every text of an agent is set as text, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), all = data.trajectories;
const byId = new Map(all.map((t, n) => [t.id, n]));
const $ = id => document.getElementById(id);
const FILTERS = ["group", "template", "outcome", "mistake", "cluster", "search"];
const state = { ...Object.fromEntries(FILTERS.map(k => [k, ""])), chosen: -1, templates: false };
const trail = [];                                                   // what was read before, for the key b
const ROW = 28;                                                     // pixels, as in review.css
let shown = [];
const narrow = matchMedia("(max-width: 900px)");

function make(tag, content, className, more) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  for (const c of [content].flat()) if (c !== "" && c != null) e.append(c);
  return Object.assign(e, more);
}

const KEYWORDS = `and as assert break class continue def del elif else except finally for from if import in is lambda
  None not or pass raise return True False try while with yield`.split(/\s+/);
const TOKEN = new RegExp([
  /(#[^\n]*)/,
  /("""[\s\S]*?"""|'''[\s\S]*?'''|[rbf]?"(?:\\.|[^"\\\n])*"|[rbf]?'(?:\\.|[^'\\\n])*')/,
  RegExp(`\\b(${KEYWORDS.join("|")})\\b`),
  /\b(\d[\d_.]*)\b/].map(pattern => pattern.source).join("|"), "g");
const ERROR = /^([\w.]*(?:Error|Exception|Iteration)\b.*)$/gm;

function coloured(text, pattern, names, className) {                // a <pre>; names: a class for each group
  const pre = make("pre", "", className);
  let end = 0;
  for (const m of text.matchAll(pattern)) {
    pre.append(text.slice(end, m.index), make("span", m[0], names[m.slice(1).findIndex(x => x !== undefined)]));
    end = m.index + m[0].length;
  }
  pre.append(text.slice(end));
  return pre;
}

// ---- filters

function fits(t) {
  return (!state.group || t.group === state.group) && (!state.template || t.template === state.template)
    && (state.cluster === "" || t.cluster === +state.cluster)
    && (!state.outcome || t.success === (state.outcome === "right"))
    && (!state.search || t.text.includes(state.search))
    && fitsMistake(t);
}

function fitsMistake(t) {
  if (!state.mistake) return true;
  if (state.mistake === "-") return !t.flags.length;
  return t.flags.some(f => state.mistake === "+" ? f.corrected.length : f.name === state.mistake);
}

function filterName(k) {
  if (k === "cluster") return data.clusters[+state.cluster].what;
  if (k === "mistake") return $("mistake").querySelector(`[value="${CSS.escape(state.mistake)}"]`).textContent;
  return state[k];
}

function refresh() {
  shown = [];
  all.forEach((t, n) => { if (fits(t)) shown.push(n); });
  $("count").textContent = `${shown.length.toLocaleString()} of ${all.length.toLocaleString()} trajectories`;
  const on = FILTERS.filter(k => state[k] !== "").map(filterName);
  $("clear").textContent = on.length ? "× " + on.join(" · ") : "";
  for (const e of document.querySelectorAll("[data-filter]"))
    e.classList.toggle("chosen", isOn(JSON.parse(e.dataset.filter)));
  for (const e of document.querySelectorAll("[data-within]")) {
    const within = e.dataset.within;
    const open = within === "group:" + state.group || within === "cluster:" + state.cluster;
    e.hidden = !(open || state.templates && within.startsWith("group:"));
  }
  $("outcome").value = state.outcome; $("mistake").value = state.mistake;
  $("list").scrollTop = 0;
  draw();
}

const isOn = changes => Object.entries(changes).every(([k, v]) => state[k] === v);

function filter(e, changes) {                                       // a button that sets these filters, or clears them
  e.dataset.filter = JSON.stringify(changes);
  e.onclick = () => {
    const on = isOn(changes);
    for (const k in changes) state[k] = on ? "" : changes[k];
    refresh();
    if (narrow.matches) $("list").scrollIntoView();
  };
  return e;
}

function draw() {                                                   // only the rows that can be seen exist
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
  const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 10);
  const rows = shown.slice(first, last).map((n, i) => {
    const row = listRow(all[n], n);
    row.style.top = (first + i) * ROW + "px";
    return row;
  });
  const height = make("div", "", "", { style: `height:${shown.length * ROW}px` });
  list.replaceChildren(shown.length ? height : make("p", "No trajectory fits.", "soft"), ...rows);
}

function listRow(t, n) {
  const mark = c => !c.stop ? "tried" : c.success ? "✓" : "✗";
  const tried = f => f.corrected.length ? "→ " + f.corrected.map(mark).join(" ") : "";
  const what = t.success || t.flags.length ? "" : t.cluster < 0 ? t.stop : data.clusters[t.cluster].what;
  return make("button", [
    make("span", t.success ? "✓" : "✗", t.success ? "right" : "wrong"),
    make("span", t.id),
    ...t.flags.flatMap(f => [make("span", f.name, "mark long"), make("span", tried(f), "mark")]),
    make("span", what, "soft long"),
  ], "row" + (n === state.chosen ? " chosen" : ""), { onclick: () => choose(n), tabIndex: -1 });
}

// ---- a trajectory

const link = n => "#id=" + encodeURIComponent(all[n].id);

function choose(n) {
  if (state.chosen >= 0 && n !== state.chosen) trail.push(state.chosen);
  location.hash = link(n);
}

function action(a) {
  return [make("p", a.monologue), coloured(a.code, TOKEN, ["comment", "string", "keyword", "number"], "code"),
    a.observation ? coloured(a.observation, ERROR, ["wrong"], "observation") : make("p", "no output", "soft")];
}

const outcome = success => make("span", success ? "right" : "wrong", success ? "right" : "wrong");
const STOPS = {
  max_steps: "all steps used", length: "cut off: too long", invalid: "a response without code", "": "not played on",
  refused: "refused by a content filter", empty: "an empty response",
};

function read(n) {
  const t = all[n];
  state.chosen = n;
  $("reading").replaceChildren(heading(t, n), make("p", t.question), answers(t), hintSections(t),
    ...t.steps.map((s, i) => stepRead(s, i, t.flags.filter(f => f.step === i))));
  $("reading").scrollTop = 0;
  const top = shown.indexOf(n) * ROW, list = $("list");
  const visible = top >= list.scrollTop && top + ROW <= list.scrollTop + list.clientHeight;
  if (top >= 0 && !visible) list.scrollTop = top - list.clientHeight / 2;
  draw();
}

function heading(t, n) {
  return make("div", [
    make("h2", [make("a", t.id, "", { href: link(n) }), " ", outcome(t.success)]),
    make("button", "‹", "", { onclick: () => move(-1, true), title: "previous failure" }),
    make("button", "›", "", { onclick: () => move(1, true), title: "next failure" }),
  ], "head");
}

function answers(t) {
  const line = (name, content, className) => [make("dt", name, "soft"), make("dd", content, className)];
  return make("dl", [
    ...line("answer", t.answer === "" ? make("span", "none", "soft") : t.answer, t.success ? "right" : "wrong"),
    ...(t.success ? [] : line("right", t.expected)),
    ...(t.stop in STOPS ? line("end", STOPS[t.stop]) : []),
  ], "answers");
}

function hintSections(t) {
  if (!t.hints.length) return make("p", "no hints in the prompt", "soft");
  const sections = t.hints.flatMap(h => [make("h3", data.hints[h][0]), make("pre", data.hints[h][1])]);
  return make("details", [make("summary", `hint sections in the prompt: ${t.hints.length}`), ...sections]);
}

function stepRead(s, i, flags) {                                    // a step, and what the agent does with a hint
  const marks = flags.map(f => make("span", "flagged: " + f.name + " ", "mark"));
  const step = make("div", make("h3", [`Step ${i + 1} `, ...marks]), "step" + (flags.length ? " flagged" : ""));
  if (s.hint) step.append(make("p", "corrective hint: " + s.hint.name, "mark"), make("pre", s.hint.text));
  if (!flags.some(f => f.corrected.length)) step.append(...action(s));
  for (const f of flags) {
    const summary = `the hint ${f.name}` + (f.corrected.length ? ", and what the agent does with it" : "");
    const text = data.mistakes.find(m => m.name === f.name).text;
    step.append(make("details", [make("summary", summary), make("pre", text)], "", { open: true }));
    if (!f.corrected.length) continue;
    const before = make("div", [make("h3", "as it was"), ...action(s)]);
    const after = make("div", f.corrected.flatMap(c =>
      [make("h3", ["with the hint", ...(c.stop ? [" → ", outcome(c.success)] : [])]), ...action(c)]));
    step.append(make("div", [before, after], "pair"));
  }
  return step;
}

function follow() {
  const id = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B")).get("id");
  if (id === null) return;
  if (byId.has(id)) read(byId.get(id));
  else $("reading").replaceChildren(make("p", `There is no trajectory ${id} here.`, "wrong"));
  if (narrow.matches) $("reading").scrollIntoView();
}

function move(by, failuresOnly) {
  const at = shown.indexOf(state.chosen);
  for (let i = at < 0 ? (by > 0 ? 0 : shown.length - 1) : at + by; i >= 0 && i < shown.length; i += by)
    if (!failuresOnly || !all[shown[i]].success) return choose(shown[i]);
}

// ---- the overview

function grouped(ts, key) {
  const groups = new Map();
  for (const t of ts) groups.has(t[key]) ? groups.get(t[key]).push(t) : groups.set(t[key], [t]);
  return [...groups].sort((a, b) => a[0] < b[0] ? -1 : 1);
}

const share = ts => 100 * ts.filter(t => t.success).length / ts.length;

function bar(label, ts, changes) {
  const fill = make("b");
  fill.style.width = share(ts) + "%";
  const figure = make("span", `${Math.round(share(ts))} % of ${ts.length.toLocaleString()}`);
  return filter(make("button", [make("span", label), make("i", fill), figure], "bar", { title: label }), changes);
}

function inner(within, buttons) {                                   // shown once that group or cluster is chosen
  const e = make("div", buttons, "inner");
  e.dataset.within = within;
  return e;
}

function success() {
  const box = make("input", "", "", { type: "checkbox" }), parts = [], groups = grouped(all, "group");
  box.onchange = () => { state.templates = box.checked; box.blur(); refresh(); };
  let templates = 0;
  for (const [group, ts] of groups) {
    const own = grouped(ts, "template").sort((a, b) => share(a[1]) - share(b[1]));       // the worst first
    const bars = own.map(([template, its]) => bar(template, its, { group, template }));
    templates += own.length;
    parts.push(bar(group, ts, { group, template: "" }), inner("group:" + group, bars));
  }
  state.templates = box.checked = templates <= 12;
  const title = make("h2", ["Success by group and template", make("label", [box, " all templates"])]);
  return [title, groups.length > 1 ? bar("all", all, { group: "", template: "" }) : "", ...parts];
}

function mistakes() {
  if (!data.mistakes.length) return [];
  const columns = ["states", "in successes", "right before"];
  if (data.control) columns.push("without hint");
  if (data.verified) columns.push("with hint");
  const cell = content => {                                         // "80 % (49 to 94, n = 10)" in three lines
    const parts = String(content ?? "").split(/ \(|, |\)/).filter(Boolean);
    return make("td", parts.map((part, n) => n ? make("small", part) : part));
  };
  const row = (name, changes, title, cells, useless) => {
    const button = filter(make("button", name, "", { title }), changes);
    const remark = useless ? make("span", " does not help", "wrong") : "";
    return [make("tr", make("th", [button, remark], "", { colSpan: columns.length })),
      make("tr", columns.map((_, i) => cell(cells[i])))];
  };
  const missed = all.filter(t => !t.success && !t.flags.length).length;
  const table = make("table", [
    make("tr", columns.map(c => make("th", c))),
    ...(data.mistakes.length > 1 ? row("all of them", { mistake: "", outcome: "" }, "", data.total) : []),
    ...data.mistakes.flatMap(m => row(m.name, { mistake: m.name, outcome: "" }, m.text, m.cells, m.useless)),
    ...row("failures without a flag", { mistake: "-", outcome: "wrong" }, "", [missed]),
  ]);
  return [make("h2", "Mistakes"), make("div", table, "scroll")];
}

function clusters() {
  if (!data.clusters.length) return [make("p", "No failures.", "soft")];
  const line = (count, what, changes) =>
    filter(make("button", [make("span", `${count.toLocaleString()} ×`), make("span", what)], "cluster"), changes);
  const parts = data.clusters.flatMap((c, n) => {
    const cluster = String(n), places = c.templates.length, [group, template] = c.templates[0];
    const place = make("small", places > 1 ? ` in ${places} templates` : ` ${group} · ${template}`);
    const whole = line(c.count, [make("code", c.what), place], { cluster, group: "", template: "" });
    if (places === 1) return [whole];
    return [whole, inner("cluster:" + n, c.templates.map(([group, template, count]) =>
      line(count, `${group} · ${template}`, { cluster, group, template })))];
  });
  const rest = all.filter(t => !t.success && t.cluster < 0).length;
  const rare = rest ? make("p", `${rest.toLocaleString()} more, of rarer kinds`, "soft") : "";
  return [make("h2", "Failures that look alike"), ...parts, rare];
}

// ---- the page

for (const t of all) t.text = [                                     // what the search looks through
  t.id, t.group, t.template, t.question, t.answer, t.expected, t.stop, ...t.flags.map(f => f.name),
  ...t.steps.flatMap(s => [s.monologue, s.code, s.observation]),
].join("\n").toLowerCase();
const corrected = t => t.flags.some(f => f.corrected.length);
if (all.some(corrected)) $("mistake").append(make("option", "with a corrected action", "", { value: "+" }));
$("mistake").hidden = !data.mistakes.length;
for (const m of data.mistakes) $("mistake").append(make("option", m.name, "", { value: m.name }));
$("overview").append(...[...success(), ...clusters(), ...mistakes()].filter(Boolean));
$("search").oninput = e => { state.search = e.target.value.toLowerCase(); refresh(); };
for (const k of ["outcome", "mistake"]) $(k).onchange = e => { state[k] = e.target.value; e.target.blur(); refresh(); };
$("clear").onclick = () => { for (const k of FILTERS) state[k] = ""; $("search").value = ""; refresh(); };
$("list").onscroll = draw;
window.onresize = draw;
window.onhashchange = follow;
const KEYS = {
  n: () => move(1, true), p: () => move(-1, true), j: () => move(1), k: () => move(-1),
  b: () => { if (trail.length) location.hash = link(trail.pop()); },
  "/": () => $("search").focus(),
};
document.onkeydown = e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.target.matches("input, select")) {
    if (e.key === "Escape" || e.key === "Enter") e.target.blur();
  } else if (Object.hasOwn(KEYS, e.key)) {
    e.preventDefault();
    KEYS[e.key]();
  }
};
refresh();
if (location.hash.startsWith("#id=")) follow();
else {                                                              // the first failure, one with a correction if any
  const wishes = [t => !t.success && corrected(t), t => !t.success, () => true];
  const wanted = wishes.map(wish => all.findIndex(wish)).find(n => n >= 0);
  history.replaceState(null, "", link(wanted));
  read(wanted);
}
