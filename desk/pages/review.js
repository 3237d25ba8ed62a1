// The coach's desk: what went wrong, where, how often. Every text of an agent is set as text, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), all = data.trajectories;
const byId = new Map(all.map((t, n) => [t.id, n]));
const $ = id => document.getElementById(id);
const state = { group: "", template: "", outcome: "", mistake: "", cluster: "", search: "", chosen: -1, templates: false };
const FILTERS = ["group", "template", "outcome", "mistake", "cluster", "search"], trail = [];        // trail: what was read before, for "b"
let shown = [];
const narrow = matchMedia("(max-width: 900px)");

function make(tag, content, className, more) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  for (const c of [content].flat()) if (c !== "" && c != null) e.append(c);
  return Object.assign(e, more);
}

const TOKEN = /(#[^\n]*)|("""[\s\S]*?"""|'''[\s\S]*?'''|[rbf]?"(?:\\.|[^"\\\n])*"|[rbf]?'(?:\\.|[^'\\\n])*')|\b(and|as|assert|break|class|continue|def|del|elif|else|except|finally|for|from|if|import|in|is|lambda|None|not|or|pass|raise|return|True|False|try|while|with|yield)\b|\b(\d[\d_.]*)\b/g;
const ERROR = /^(\w*(?:Error|Exception)\b.*)$/gm;

function coloured(text, pattern, names, className) {                // a <pre> in which the pattern's groups are spans of these classes
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
  return (!state.group || t.group === state.group) && (!state.template || t.template === state.template) && (state.cluster === "" || t.cluster === +state.cluster)
    && (!state.outcome || t.success === (state.outcome === "right")) && (!state.search || t.text.includes(state.search))
    && (!state.mistake || (state.mistake === "-" ? !t.flags.length : t.flags.some(f => state.mistake === "+" ? f.corrected.length : f.name === state.mistake)));
}

function refresh() {
  shown = [];
  all.forEach((t, n) => { if (fits(t)) shown.push(n); });
  $("count").textContent = `${shown.length.toLocaleString()} of ${all.length.toLocaleString()} trajectories`;
  const on = FILTERS.filter(k => state[k] !== "").map(k => k === "cluster" ? data.clusters[+state.cluster].what : k === "mistake" ? $("mistake").querySelector(`[value="${CSS.escape(state.mistake)}"]`).textContent : state[k]);
  $("clear").textContent = on.length ? "× " + on.join(" · ") : "";
  document.querySelectorAll("[data-filter]").forEach(e => e.classList.toggle("chosen", Object.entries(JSON.parse(e.dataset.filter)).every(([k, v]) => state[k] === v)));
  document.querySelectorAll("[data-within]").forEach(e => { e.hidden = !(state.templates && e.dataset.within.startsWith("group:")) && e.dataset.within !== "group:" + state.group && e.dataset.within !== "cluster:" + state.cluster; });
  $("outcome").value = state.outcome; $("mistake").value = state.mistake;
  $("list").scrollTop = 0;
  draw();
}

function filter(e, changes) {                                       // makes a button that sets these filters, and when they are set clears them
  e.dataset.filter = JSON.stringify(changes);
  e.onclick = () => {
    const on = Object.entries(changes).every(([k, v]) => state[k] === v);
    for (const k in changes) state[k] = on ? "" : changes[k];
    refresh();
    if (narrow.matches) $("list").scrollIntoView();
  };
  return e;
}

function draw() {                                                   // only the rows that can be seen exist
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / 28) - 5), last = Math.min(shown.length, first + Math.ceil(list.clientHeight / 28) + 10);
  const rows = shown.slice(first, last).map((n, i) => {
    const t = all[n], tried = f => f.corrected.length ? "→ " + f.corrected.map(c => !c.stop ? "tried" : c.success ? "✓" : "✗").join(" ") : "";
    const row = make("button", [make("span", t.success ? "✓" : "✗", t.success ? "right" : "wrong"), make("span", t.id), ...t.flags.flatMap(f => [make("span", f.name, "mark long"), make("span", tried(f), "mark")]),
      make("span", t.success || t.flags.length ? "" : t.cluster < 0 ? t.stop : data.clusters[t.cluster].what, "soft long")], "row" + (n === state.chosen ? " chosen" : ""), { onclick: () => choose(n), tabIndex: -1 });
    row.style.top = (first + i) * 28 + "px";
    return row;
  });
  list.replaceChildren(shown.length ? make("div", "", "", { style: `height:${shown.length * 28}px` }) : make("p", "No trajectory fits.", "soft"), ...rows);
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
const STOPS = { max_steps: "all steps used", length: "cut off: too long", invalid: "a response without its end", "": "not played on" };

function read(n) {
  const t = all[n], parts = [];
  state.chosen = n;
  parts.push(make("div", [make("h2", [make("a", t.id, "", { href: link(n) }), " ", outcome(t.success)]),
    make("button", "‹", "", { onclick: () => move(-1, true), title: "previous failure" }), make("button", "›", "", { onclick: () => move(1, true), title: "next failure" })], "head"));
  parts.push(make("p", t.question), make("dl", [make("dt", "answer", "soft"), make("dd", t.answer === "" ? make("span", "none", "soft") : t.answer, t.success ? "right" : "wrong"),
    ...(t.success ? [] : [make("dt", "right", "soft"), make("dd", t.expected)]), ...(t.stop in STOPS ? [make("dt", "end", "soft"), make("dd", STOPS[t.stop])] : [])], "answers"));
  parts.push(t.hints.length ? make("details", [make("summary", `hint sections in the prompt: ${t.hints.length}`), ...t.hints.flatMap(h => [make("h3", data.hints[h][0]), make("pre", data.hints[h][1])])])
    : make("p", "no hints in the prompt", "soft"));
  t.steps.forEach((s, i) => {
    const flags = t.flags.filter(f => f.step === i), step = make("div", make("h3", [`Step ${i + 1} `, ...flags.map(f => make("span", "flagged: " + f.name + " ", "mark"))]), "step" + (flags.length ? " flagged" : ""));
    if (s.hint) step.append(make("p", "corrective hint: " + s.hint.name, "mark"), make("pre", s.hint.text));
    if (!flags.some(f => f.corrected.length)) step.append(...action(s));
    for (const f of flags) {
      step.append(make("details", [make("summary", `the hint ${f.name}` + (f.corrected.length ? ", and what the agent does with it" : "")), make("pre", data.mistakes.find(m => m.name === f.name).text)], "", { open: true }));
      if (f.corrected.length) step.append(make("div", [make("div", [make("h3", "as it was"), ...action(s)]),
        make("div", f.corrected.flatMap(c => [make("h3", ["with the hint", ...(c.stop ? [" → ", outcome(c.success)] : [])]), ...action(c)]))], "pair"));
    }
    parts.push(step);
  });
  $("reading").replaceChildren(...parts);
  $("reading").scrollTop = 0;
  const at = shown.indexOf(n), list = $("list");
  if (at >= 0 && (at * 28 < list.scrollTop || (at + 1) * 28 > list.scrollTop + list.clientHeight)) list.scrollTop = at * 28 - list.clientHeight / 2;
  draw();
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
  return filter(make("button", [make("span", label), make("i", fill), make("span", `${Math.round(share(ts))} % of ${ts.length.toLocaleString()}`)], "bar", { title: label }), changes);
}

function inner(within, buttons) {                                   // what can be seen once that group or cluster is chosen
  const e = make("div", buttons, "inner");
  e.dataset.within = within;
  return e;
}

function success() {
  const box = make("input", "", "", { type: "checkbox", onchange: () => { state.templates = box.checked; box.blur(); refresh(); } }), parts = [], groups = grouped(all, "group");
  let templates = 0;
  for (const [group, ts] of groups) {
    const own = grouped(ts, "template").sort((a, b) => share(a[1]) - share(b[1]));                     // the worst first
    templates += own.length;
    parts.push(bar(group, ts, { group, template: "" }), inner("group:" + group, own.map(([template, its]) => bar(template, its, { group, template }))));
  }
  state.templates = box.checked = templates <= 12;
  return [make("h2", ["Success by group and template", make("label", [box, " all templates"])]), groups.length > 1 ? bar("all", all, { group: "", template: "" }) : "", ...parts];
}

function mistakes() {
  if (!data.mistakes.length) return [];
  const columns = ["states", "in successes", "right before", ...(data.control ? ["without hint"] : []), ...(data.verified ? ["with hint"] : [])];
  const row = (name, changes, title, cells, useless) => [make("tr", make("th", [filter(make("button", name, "", { title }), changes), useless ? make("span", " does not help", "wrong") : ""], "", { colSpan: columns.length })),
    make("tr", columns.map((_, i) => make("td", String(cells[i] ?? "").split(/ \(|, |\)/).filter(Boolean).map((part, n) => n ? make("small", part) : part))))];
  const missed = all.filter(t => !t.success && !t.flags.length).length;
  return [make("h2", "Mistakes"), make("div", make("table", [make("tr", columns.map(c => make("th", c))), ...(data.mistakes.length > 1 ? row("all of them", { mistake: "", outcome: "" }, "", data.total) : []), ...data.mistakes.flatMap(m => row(m.name, { mistake: m.name, outcome: "" }, m.text, m.cells, m.useless)),
    ...row("failures without a flag", { mistake: "-", outcome: "wrong" }, "", [missed])]), "scroll")];
}

function clusters() {
  const line = (count, what, changes) => filter(make("button", [make("span", `${count.toLocaleString()} ×`), what], "cluster"), changes), rest = all.filter(t => !t.success && t.cluster < 0).length;
  if (!data.clusters.length) return [make("p", "No failures.", "soft")];
  return [make("h2", "Failures that look alike"), ...data.clusters.flatMap((c, n) => {
    const places = c.templates.length, where = c.templates.map(([group, template, count]) => line(count, make("span", `${group} · ${template}`), { cluster: String(n), group, template }));
    return [line(c.count, make("span", [make("code", c.what), make("small", places > 1 ? ` in ${places} templates` : ` ${c.templates[0][0]} · ${c.templates[0][1]}`)]), { cluster: String(n), group: "", template: "" }),
      ...(places > 1 ? [inner("cluster:" + n, where)] : [])];
  }), rest ? make("p", `${rest.toLocaleString()} more, of rarer kinds`, "soft") : ""];
}

for (const t of all) t.text = [t.id, t.group, t.template, t.question, t.answer, t.expected, t.stop, ...t.flags.map(f => f.name), ...t.steps.flatMap(s => [s.monologue, s.code, s.observation])].join("\n").toLowerCase();
if (all.some(t => t.flags.some(f => f.corrected.length))) $("mistake").append(make("option", "with a corrected action", "", { value: "+" }));
$("mistake").hidden = !data.mistakes.length;
for (const m of data.mistakes) $("mistake").append(make("option", m.name, "", { value: m.name }));
$("overview").append(...[...success(), ...clusters(), ...mistakes()].filter(Boolean));
$("search").oninput = e => { state.search = e.target.value.toLowerCase(); refresh(); };
for (const k of ["outcome", "mistake"]) $(k).onchange = e => { state[k] = e.target.value; e.target.blur(); refresh(); };
$("clear").onclick = () => { for (const k of FILTERS) state[k] = ""; $("search").value = ""; refresh(); };
$("list").onscroll = draw;
window.onresize = draw;
window.onhashchange = follow;
document.onkeydown = e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.target.matches("input, select")) { if (e.key === "Escape" || e.key === "Enter") e.target.blur(); return; }
  const act = { n: () => move(1, true), p: () => move(-1, true), j: () => move(1), k: () => move(-1), b: () => { if (trail.length) location.hash = link(trail.pop()); }, "/": () => $("search").focus() }[e.key];
  if (act) { e.preventDefault(); act(); }
};
refresh();
if (location.hash.startsWith("#id=")) follow();
else {                                                              // without a link: the first failure, if a hint was tried one of those
  const wanted = [t => !t.success && t.flags.some(f => f.corrected.length), t => !t.success, () => true].map(w => all.findIndex(w)).find(n => n >= 0);
  history.replaceState(null, "", link(wanted));
  read(wanted);
}
