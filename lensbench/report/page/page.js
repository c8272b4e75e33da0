"use strict";
// Tables, state and links. Everything that comes from data is written as text, never as HTML.

const MISSING = {i1: -(2 ** 7), i2: -(2 ** 15), i4: -(2 ** 31)};
const ARRAYS = {u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i1: Int8Array, i2: Int16Array, i4: Int32Array};
const byId = (id) => document.getElementById(id);
const readable = (name) => String(name).replaceAll("_", " ");

async function inflate(name) {
  const text = document.querySelector(`script[data-table="${name}"]`).textContent;
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

// A table: `length`, and a function of the row number for each column. Missing values are null.
async function readTable(name) {
  const buffer = await inflate(name);
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  const table = {length: header.rows, codes: {}, words: {}};
  for (const column of header.columns) {
    const values = new ARRAYS[column.type](buffer, 4 + size + column.at, header.rows);
    const {words, scale} = column, missing = MISSING[column.type];
    table.codes[column.name] = values;
    table.words[column.name] = words;
    table[column.name] = words ? (row) => words[values[row]] : (row) => (values[row] === missing ? null : values[row] / scale);
  }
  return table;
}

const kept = new Map();
function tableOnce(name) {
  if (!kept.has(name)) kept.set(name, readTable(name));
  return kept.get(name);
}

function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return node;
}

// As in papers: .75, -.03, +.10.
function number(value, signed = false) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  let text = Math.abs(value).toFixed(2);
  const sign = text === "0.00" ? "" : value < 0 ? "−" : signed ? "+" : "";
  if (text.startsWith("0.")) text = text.slice(1);
  return sign + text;
}

const FIELDS = ["run", "task", "relation", "site", "rule", "rivals", "method", "attempt", "layer", "right", "known", "search", "item"];
const state = {};
let index, run;

function readHash() {
  const hash = location.hash.slice(1);
  if (!hash.includes("=")) return {};
  const given = new URLSearchParams(hash);
  return Object.fromEntries(FIELDS.filter((name) => given.has(name)).map((name) => [name, given.get(name)]));
}

function writeHash() {
  const shown = new URLSearchParams();
  for (const name of FIELDS) {
    const value = state[name];
    if (value !== undefined && value !== null && value !== "" && !(name === "run" && index.runs.length === 1)) shown.set(name, value);
  }
  history.replaceState(null, "", `#${shown}`);
}

// Fill a select; return what is chosen: what was wanted where it is there, or else the first.
function fill(id, options, wanted) {
  const select = byId(id);
  const values = options.map((option) => String(option.value));
  const chosen = values.includes(String(wanted)) ? String(wanted) : values[0];
  select.replaceChildren(...options.map((o) => make("option", {value: o.value, selected: String(o.value) === chosen}, o.label)));
  if (chosen !== undefined) select.value = chosen;
  const label = byId(`label-${id}`);
  if (label) label.hidden = options.length < 2;
  return chosen;
}

const unique = (values) => [...new Set(values)];
const named = (values) => values.map((value) => ({value, label: readable(value)}));

function relationLabel(task, relation) {
  if (relation === index.all) return "all relations";
  const found = run.relations.find((one) => one[0] === task && one[1] === relation);
  return found ? `${readable(relation)} (${found[2]})` : readable(relation);
}

function choosePlace() {
  run = index.runs[Number(state.run) || 0] || index.runs[0];
  state.run = String(index.runs.indexOf(run));
  byId("run").value = state.run;
  for (const part of document.querySelectorAll(".of-run")) part.hidden = part.dataset.run !== state.run;
  for (const part of document.querySelectorAll("[data-needs]")) part.hidden = !run.tables[part.dataset.needs];
  const tasks = unique(run.places.map((place) => place[0]));
  state.task = fill("task", named(tasks), state.task);
  const here = run.places.filter((place) => place[0] === state.task);
  const relations = unique(here.map((place) => place[1]));
  state.relation = fill("relation", relations.map((value) => ({value, label: relationLabel(state.task, value)})), state.relation);
  const sites = here.filter((place) => place[1] === state.relation).map((place) => place[2]);
  state.site = fill("site", named(sites), state.site);
}

// What was drawn is painted before the rest is.
const pause = () => new Promise((resolve) => setTimeout(resolve));

async function show() {
  choosePlace();
  await showCharts();
  writeHash();
  await pause();
  await showItems();
  writeHash();
}

function fail(error) {
  const box = byId("failure");
  box.hidden = false;
  box.textContent = `This page could not be drawn: ${error.message || error}. It needs Chromium 80, Firefox 113, Safari 16.4 or later.`;
  throw error;
}

// One change after the other: a second one may come while tables are being read.
let queue = Promise.resolve();
function later(act) {
  queue = queue.then(act).catch(fail);
  return queue;
}

function listen() {
  for (const id of ["run", "task", "relation", "site", "rule", "rivals", "method", "attempt", "layer", "right", "known"]) {
    byId(id).addEventListener("change", (event) => {
      state[id] = event.target.value;
      if (["run", "task", "relation", "site"].includes(id)) state.item = state.attempt = state.layer = undefined;
      if (id === "method") state.attempt = state.layer = undefined;
      later(["run", "task", "relation", "site", "rule", "rivals"].includes(id) ? show : async () => { await showItems(); writeHash(); });
    });
  }
  byId("search").addEventListener("input", (event) => {
    state.search = event.target.value;
    later(async () => { await showItems(); writeHash(); });
  });
  for (const link of document.querySelectorAll('nav a, a.skip, .go a')) {
    link.addEventListener("click", (event) => {
      event.preventDefault(); // the hash holds what is shown, not where
      const {task, relation, site} = link.dataset;
      const go = () => {
        const section = byId(link.getAttribute("href").slice(1));
        section.tabIndex = -1;
        section.focus({preventScroll: true});
        section.scrollIntoView();
      };
      if (!task) return go();
      Object.assign(state, {task, relation, site, item: undefined, attempt: undefined, layer: undefined});
      later(show).then(go);
    });
  }
  addEventListener("hashchange", () => { Object.assign(state, Object.fromEntries(FIELDS.map((f) => [f, undefined])), readHash()); later(show); });
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", () => later(showCharts));
}

async function begin() {
  index = JSON.parse(new TextDecoder().decode(await inflate("index")));
  const linked = readHash(), anchor = location.hash.includes("=") ? "" : location.hash.slice(1);
  Object.assign(state, linked);
  const library = make("script");
  library.text = new TextDecoder().decode(await inflate("plotly"));
  document.head.append(library);
  if (typeof Plotly === "undefined") throw new Error("the plotting library did not start");
  listen();
  await later(show);
  document.body.dataset.ready = String(Math.round(performance.now()));
  if (linked.item) byId("items").scrollIntoView();
  else if (anchor && byId(anchor)) byId(anchor).scrollIntoView();
}
