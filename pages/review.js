// The coach's desk: what went wrong, where, how often. Every text of an agent is set as text, never as markup.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent), all = data.trajectories;
const byId = new Map(all.map((t, n) => [t.id, n]));
const $ = id => document.getElementById(id);
const state = { group: "", template: "", outcome: "", mistake: "", cluster: "", search: "", chosen: -1 };
let shown = [];

function make(tag, content, className, more) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  for (const c of [content].flat()) if (c !== "" && c != null) e.append(c);
  return Object.assign(e, more);
}

const TOKEN = /(#[^\n]*)|("""[\s\S]*?"""|'''[\s\S]*?'''|[rbf]?"(?:\\.|[^"\\\n])*"|[rbf]?'(?:\\.|[^'\\\n])*')|\b(and|as|assert|break|class|continue|def|del|elif|else|except|finally|for|from|if|import|in|is|lambda|None|not|or|pass|raise|return|True|False|try|while|with|yield)\b|\b(\d[\d_.]*)\b/g;

function highlighted(code) {
  const pre = make("pre"), names = ["comment", "string", "keyword", "number"];
  let end = 0;
  for (const m of code.matchAll(TOKEN)) {
    pre.append(code.slice(end, m.index), make("span", m[0], names[m.slice(1).findIndex(x => x !== undefined)]));
    end = m.index + m[0].length;
  }
  pre.append(code.slice(end));
  return pre;
}

// ---- filters

function fits(t) {
  return (!state.group || t.group === state.group) && (!state.template || t.template === state.template) && (!state.cluster || t.cluster === +state.cluster)
    && (!state.outcome || t.success === (state.outcome === "right")) && (!state.mistake || (state.mistake === "-" ? !t.flags.length : t.flags.some(f => f.name === state.mistake)))
    && (!state.search || t.text.includes(state.search));
}

function refresh() {
  shown = [];
  all.forEach((t, n) => { if (fits(t)) shown.push(n); });
  $("count").textContent = `${shown.length} of ${all.length} trajectories`;
  for (const name of ["group", "template", "outcome", "mistake", "cluster"])
    document.querySelectorAll(`[data-${name}]`).forEach(e => e.classList.toggle("chosen", !!state[name] && e.dataset[name] === state[name]
      && (name !== "template" || e.dataset.of === state.group)));
  $("outcome").value = state.outcome; $("mistake").value = state.mistake;
  $("list").scrollTop = 0;
  draw();
}

function toggle(changes) {
  const on = Object.entries(changes).every(([k, v]) => state[k] === v);
  for (const k in changes) state[k] = on ? "" : changes[k];
  refresh();
}

function draw() {                                                   // only the rows that can be seen exist
  const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / 28) - 5), last = Math.min(shown.length, first + Math.ceil(list.clientHeight / 28) + 10);
  const rows = shown.slice(first, last).map((n, i) => {
    const t = all[n];
    const row = make("button", [make("span", t.success ? "✓" : "✗", t.success ? "right" : "wrong"), make("span", t.id), make("span", [t.stop, ...t.flags.map(f => f.name)].join(" · "), "soft")],
      "row" + (n === state.chosen ? " chosen" : ""), { onclick: () => choose(n), tabIndex: -1 });
    row.style.top = (first + i) * 28 + "px";
    return row;
  });
  list.replaceChildren(make("div", "", "", { style: `height:${shown.length * 28}px` }), ...rows);
}

// ---- a trajectory

function choose(n) {
  location.hash = "id=" + encodeURIComponent(all[n].id);
}

function action(a) {
  return [make("p", a.monologue), highlighted(a.code), a.observation ? make("pre", a.observation) : make("p", "no output", "soft")];
}

function read(n) {
  const t = all[n], parts = [];
  state.chosen = n;
  parts.push(make("h2", [t.id, " ", make("span", t.success ? "right" : "wrong", t.success ? "right" : "wrong")]), make("p", t.question),
    make("p", ["answered ", make("b", t.answer === "" ? "nothing" : t.answer), t.success ? "" : [", right is ", make("b", t.expected)], make("span", `  (${t.stop})`, "soft")].flat()));
  parts.push(t.hints.length ? make("details", [make("summary", `hint sections in the prompt: ${t.hints.length}`), ...t.hints.map(h => [make("h3", h), make("pre", data.hints[h])]).flat()])
    : make("p", "no hints in the prompt", "soft"));
  t.steps.forEach((s, i) => {
    const flags = t.flags.filter(f => f.step === i), step = make("div", [make("h3", [`Step ${i + 1} `, ...flags.map(f => make("span", "flagged: " + f.name + " ", "mark"))])], "step" + (flags.length ? " flagged" : ""));
    if (s.hint) step.append(make("p", "corrective hint: " + s.hint.name, "mark"), make("pre", s.hint.text));
    step.append(...action(s));
    for (const f of flags) {
      const hint = data.mistakes.find(m => m.name === f.name);
      step.append(make("details", [make("summary", `the hint ${f.name}` + (f.corrected.length ? ", and what the agent does with it" : "")), make("pre", hint.text),
        ...f.corrected.map(c => make("div", [make("div", [make("h3", "as it was"), ...action(s)]), make("div", [make("h3", ["with the hint ", c.stop ? make("span", c.success ? "→ right" : "→ wrong", c.success ? "right" : "wrong") : ""]), ...action(c)])], "pair"))],
        "", { open: true }));
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
  const id = location.hash.startsWith("#id=") ? decodeURIComponent(location.hash.slice(4)) : null;
  if (byId.has(id)) read(byId.get(id));
  else if (id !== null) $("reading").replaceChildren(make("p", `There is no trajectory ${id} here.`, "wrong"));
}

function move(by, failuresOnly) {
  const at = shown.indexOf(state.chosen);
  for (let i = at < 0 ? (by > 0 ? 0 : shown.length - 1) : at + by; i >= 0 && i < shown.length; i += by)
    if (!failuresOnly || !all[shown[i]].success) return choose(shown[i]);
}

// ---- the overview

function bar(label, ts, dataset, onclick, inner) {
  const right = ts.filter(t => t.success).length, fill = make("b");
  fill.style.width = 100 * right / ts.length + "%";
  const e = make("button", [make("span", label), make("i", fill), make("span", `${Math.round(100 * right / ts.length)} % of ${ts.length}`)], "bar" + (inner ? " inner" : ""), { onclick, title: label });
  Object.assign(e.dataset, dataset);
  return e;
}

function grouped(ts, key) {
  const groups = new Map();
  for (const t of ts) groups.has(t[key]) ? groups.get(t[key]).push(t) : groups.set(t[key], [t]);
  return [...groups].sort((a, b) => a[0] < b[0] ? -1 : 1);
}

function overview() {
  const parts = [make("h2", "Success by group and template")];
  for (const [group, ts] of grouped(all, "group")) {
    parts.push(bar(group, ts, { group }, () => { state.template = ""; toggle({ group }); }));
    for (const [template, own] of grouped(ts, "template")) parts.push(bar(template, own, { template, of: group }, () => toggle({ group, template }), true));
  }
  if (data.mistakes.length) {
    const columns = ["mistake", "states", "right before", ...(data.control ? ["right without hint"] : []), ...(data.verified ? ["right with hint"] : [])];
    parts.push(make("h2", "Mistakes"), make("div", make("table", [make("tr", columns.map(c => make("th", c))), ...data.mistakes.map(m =>
      make("tr", [make("td", make("button", m.name, "", { onclick: () => toggle({ mistake: m.name }) })), ...m.cells.map(c => make("td", c))]))]), "scroll"));
  }
  if (data.clusters.length) {
    parts.push(make("h2", "Failures that look alike"));
    data.clusters.forEach((c, n) => {
      const e = make("button", [make("span", `${c.count} ×`), make("div", [make("div", c.template), make("code", c.what)])], "cluster", { onclick: () => toggle({ cluster: String(n) }) });
      e.dataset.cluster = n;
      parts.push(e);
    });
  }
  const where = $("overview");
  where.append(...parts);
}

for (const m of data.mistakes) $("mistake").append(make("option", m.name, "", { value: m.name }));
for (const t of all) t.text = [t.id, t.template, t.question, t.answer, ...t.steps.flatMap(s => [s.monologue, s.code, s.observation])].join("\n").toLowerCase();
overview();
$("search").oninput = e => { state.search = e.target.value.toLowerCase(); refresh(); };
$("outcome").onchange = e => { state.outcome = e.target.value; refresh(); };
$("mistake").onchange = e => { state.mistake = e.target.value; refresh(); };
$("clear").onclick = () => { for (const k in state) if (k !== "chosen") state[k] = ""; $("search").value = ""; refresh(); };
$("list").onscroll = draw;
window.onresize = draw;
window.onhashchange = follow;
document.onkeydown = e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.target.matches("input, select")) { if (e.key === "Escape") e.target.blur(); return; }
  const act = { n: () => move(1, true), p: () => move(-1, true), j: () => move(1), k: () => move(-1), b: () => history.back(), "/": () => $("search").focus() }[e.key];
  if (act) { e.preventDefault(); act(); }
};
refresh();
if (location.hash) follow(); else { const first = shown.findIndex(n => !all[n].success); if (shown.length) read(shown[Math.max(first, 0)]); }
