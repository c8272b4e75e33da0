// The item browser.

// Items of a task and site, with every prediction found by method, rival, attempt, layer and item.
const loaded = new Map();
async function itemsOf(names) {
  if (loaded.has(names.rows)) return loaded.get(names.rows);
  const [items, rows] = await Promise.all([readTable(names.items), readTable(names.rows)]);
  const answers = new Map();
  const size = items.length;
  for (let row = 0; row < rows.length; row++) {
    const key = `${rows.inspector(row)}\t${rows.baseline(row)}`;
    if (!answers.has(key)) answers.set(key, new Map());
    const attempts = answers.get(key), attempt = rows.attempt(row);
    if (!attempts.has(attempt)) attempts.set(attempt, new Map());
    const layers = attempts.get(attempt), layer = rows.layer(row);
    if (!layers.has(layer)) layers.set(layer, new Int32Array(size).fill(-1));
    layers.get(layer)[rows.item(row)] = row;
  }
  const found = {items, rows, answers, find: (method, rival, attempt, layer, item) => {
    const layers = answers.get(`${method}\t${rival}`)?.get(attempt);
    const column = layers && (layers.get(layer) ?? layers.get(null));
    return column ? column[item] : -1;
  }};
  loaded.set(names.rows, found);
  return found;
}

const attemptsOf = (data, method, rival = "none") => [...(data.answers.get(`${method}\t${rival}`)?.keys() ?? [])];
const layersOf = (data, method, attempt, rival = "none") => [...(data.answers.get(`${method}\t${rival}`)?.get(attempt)?.keys() ?? [])].sort((a, b) => (a ?? -1) - (b ?? -1));

function bestLayer(data, method, attempt, chosen) {
  let best = null, most = -1;
  for (const layer of layersOf(data, method, attempt)) {
    let sum = 0;
    for (const item of chosen) { const row = data.find(method, "none", attempt, layer, item); if (row >= 0) sum += data.rows.credit(row); }
    if (sum > most + 1e-9) { most = sum; best = layer; }
  }
  return best;
}

async function openItems(change) {
  Object.assign(state, change, {right: "", known: "", search: ""});
  await later(async () => { await showItems(); writeHash(); });
  byId("items").scrollIntoView();
  byId("list").querySelector("button")?.focus({preventScroll: true});
}

let shownCount = 100;
async function showItems() {
  const names = run.items[`${state.task}\t${state.site}`];
  for (const id of ["list", "item"]) byId(id).replaceChildren();
  if (!names) { byId("count").textContent = "There are no items here: no records could be read."; return; }
  const data = await itemsOf(names), {items, rows} = data;
  const here = [];
  for (let i = 0; i < items.length; i++) if (state.relation === index.all || items.relation(i) === state.relation) here.push(i);
  const methods = run.methods.map((one) => one.name).filter((name) => data.answers.has(`${name}\tnone`));
  state.method = fill("method", named(methods), state.method ?? leading);
  state.attempt = fill("attempt", attemptsOf(data, state.method).map((value) => ({value, label: value})), state.attempt);
  const layers = layersOf(data, state.method, state.attempt);
  const best = bestLayer(data, state.method, state.attempt, here);
  const label = (layer) => (layer === null ? "none" : `${layer}${layer === best ? " (best here)" : ""}`);
  state.layer = fill("layer", layers.map((layer) => ({value: layer ?? "none", label: label(layer)})), state.layer ?? best ?? "none");
  for (const id of ["right", "known", "search"]) byId(id).value = state[id] ?? "";
  const layer = state.layer === "none" || state.layer === undefined ? null : Number(state.layer);
  const found = here.map((item) => ({item, row: data.find(state.method, "none", state.attempt, layer, item)})).filter(({item, row}) => passes(items, rows, item, row));
  found.sort((a, b) => (b.row >= 0) - (a.row >= 0)); // those that the method answered come first
  shownCount = 100;
  list(data, found);
  const answered = found.filter(({row}) => row >= 0), right = answered.reduce((sum, {row}) => sum + rows.credit(row), 0);
  byId("count").textContent = found.length ? `${found.length} of ${here.length} items; ${readable(state.method)} at layer ${state.layer} is right on ${Math.round(right * 10) / 10} of ${answered.length === found.length ? "them" : `the ${answered.length} that it answered`}.` : `None of ${here.length} items is like that; loosen the filters.`;
  const linked = found.find(({item}) => items.item(item) === state.item) ?? found[0];
  if (linked) showItem(data, linked.item, layer);
}

function passes(items, rows, item, row) {
  if (state.right && (row < 0 || (rows.credit(row) > 0.5) !== (state.right === "right"))) return false;
  if (state.known && items.known(item) !== (state.known === "known" ? 1 : 0)) return false;
  const wanted = (state.search ?? "").trim().toLocaleLowerCase();
  return !wanted || [items.subject(item), items.gold(item), row >= 0 ? rows.predicted(row) : ""].some((text) => String(text).toLocaleLowerCase().includes(wanted));
}

const mark = (credit) => (credit > 0.99 ? "✓" : credit > 0.005 ? "≈" : "✗");

function list(data, found) {
  const {items, rows} = data;
  const entries = found.slice(0, shownCount).map(({item, row}) => {
    const right = row >= 0 && rows.credit(row) > 0.5;
    const small = make("small", {dir: "auto"}, row < 0 ? "no answer" : right ? items.gold(item) : `${rows.predicted(row)}, not ${items.gold(item)}`);
    const choose = () => { state.item = items.item(item); showItem(data, item, state.layer === "none" ? null : Number(state.layer)); writeHash(); };
    const sign = make("span", {class: right ? "right" : "wrong"}, row < 0 ? "–" : mark(rows.credit(row)));
    sign.setAttribute("aria-label", right ? "right" : "wrong");
    return make("li", {}, make("button", {type: "button", "data-item": items.item(item), on: {click: choose, keydown: move}}, sign, make("span", {}, make("bdi", {}, items.subject(item)), small)));
  });
  if (found.length > shownCount) {
    const more = () => { shownCount += 200; list(data, found); };
    entries.push(make("li", {}, make("button", {type: "button", class: "more", on: {click: more, keydown: move}}, `Show more (${found.length - shownCount} left)`)));
  }
  byId("list").replaceChildren(...entries);
}

function move(event) {
  const step = {ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling"}[event.key];
  const next = step && event.currentTarget.parentElement[step]?.querySelector("button");
  if (!next) return;
  event.preventDefault();
  next.focus();
  if (next.dataset.item) next.click();
}

function sourceOf(items, item) {
  const text = items.source(item);
  if (text === null) return make("p", {class: "small"}, "The source text is not shown: the task is not here, or has changed since the run.");
  const [start, end] = [items.start(item), items.end(item)];
  const points = [...text]; // positions count characters, not halves of them
  const cut = (from, to) => points.slice(from, to).join("");
  const template = items.template(item), after = template.includes("@") ? `; this item ends after token ${template.split("@")[1].replace("/", " of ")}` : "";
  const box = make("p", {class: "source", dir: "auto"}, cut(0, start), make("mark", {}, cut(start, end)), make("span", {class: "here", title: "read here"}, "⟵"), cut(end));
  return make("div", {}, box, make("p", {class: "small"}, `Read at ⟵: ${items.note(item)}${after}.`, items.question(item) ? ` Inspection prompt: ${items.question(item)}` : ""));
}

function showItem(data, item, layer) {
  const {items} = data;
  for (const button of byId("list").querySelectorAll("button")) {
    if (button.dataset.item === items.item(item)) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  const known = items.known(item), said = known === null ? "" : known ? "The model knows it. " : "The model does not know it. ";
  const methods = run.methods.map((one) => one.name).filter((name) => data.answers.has(`${name}\tnone`));
  const columns = methods.map((name) => ({title: readable(name), method: name, rival: "none", attempt: name === state.method ? state.attempt : attemptsOf(data, name)[0]}));
  const interventions = attemptsOf(data, state.method, "intervention").map((attempt) => ({title: readable(attempt), method: state.method, rival: "intervention", attempt, hint: "a tick: the answer of the item that was put in"}));
  const rivals = run.rivals.filter((one) => one.name !== "intervention" && data.answers.has(`${state.method}\t${one.name}`)).map((one) => ({title: one.label, method: state.method, rival: one.name, attempt: firstAttempt(data, one.name, item), hint: one.rules_out}));
  const own = columns.filter((one) => one.method === state.method);
  const parts = [
    make("h3", {}, make("bdi", {}, items.subject(item))),
    make("p", {}, `${relationLabel(state.task, items.relation(item))}: `, make("b", {dir: "auto"}, items.gold(item)), ". ", make("span", {class: "small"}, `${said}${items.chance(item) > 0 ? `Chance ${number(items.chance(item))}.` : ""}`)),
    sourceOf(items, item),
    make("h4", {}, "Every method's answer, layer by layer"), answersTable(data, item, layer, columns),
  ];
  const texts = [...own, ...rivals].filter((one) => layersOf(data, one.method, one.attempt, one.rival).some((l) => textAt(data, one, l, item) !== null));
  if (texts.length) parts.push(make("h4", {}, `What ${readable(state.method)} said, and its baselines beside it`), answersTable(data, item, layer, texts, true));
  if (rivals.length) parts.push(make("h4", {}, `${readable(state.method)} beside its baselines`), answersTable(data, item, layer, [...own, ...rivals]));
  if (interventions.length) parts.push(make("h4", {}, `What the target says when what ${readable(state.method)} reads is put in from an item with another answer (✓: it says that answer)`), answersTable(data, item, layer, interventions));
  byId("item").replaceChildren(...parts);
}

function firstAttempt(data, rival, item) {
  const attempts = attemptsOf(data, state.method, rival);
  const has = (attempt) => layersOf(data, state.method, attempt, rival).some((layer) => data.find(state.method, rival, attempt, layer, item) >= 0);
  return attempts.includes(state.attempt) && has(state.attempt) ? state.attempt : attempts.find(has) ?? attempts[0];
}

function textAt(data, one, layer, item) {
  const row = data.find(one.method, one.rival, one.attempt, layer, item);
  return row < 0 ? null : data.rows.text(row);
}

function answersTable(data, item, layer, columns, texts = false) {
  const layers = unique(columns.flatMap((one) => layersOf(data, one.method, one.attempt, one.rival))).filter((l) => l !== null).sort((a, b) => a - b);
  const head = columns.map((one) => make("th", {scope: "col", title: one.hint}, one.title, one.attempt && one.attempt !== "default" && readable(one.attempt) !== one.title ? make("small", {}, make("br"), one.attempt.length > 42 ? `${one.attempt.slice(0, 40)}…` : one.attempt) : null));
  const body = (layers.length ? layers : [null]).map((at) => make("tr", {}, make("th", {scope: "row", class: at === layer ? "chosen" : ""}, at ?? "–"), ...columns.map((one) => answerCell(data, item, at, one, texts))));
  return make("div", {class: "scroll tall", tabindex: "0"}, make("table", {class: "answers"}, make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "layer"), ...head)), make("tbody", {}, ...body)));
}

function answerCell(data, item, layer, one, texts) {
  const row = data.find(one.method, one.rival, one.attempt, layer, item), {rows} = data;
  if (row < 0) return make("td", {}, "–");
  if (texts) {
    const text = rows.text(row), said = rows.said(row);
    return make("td", {class: `text ${said === null ? "" : said ? "right" : "wrong"}`, dir: "auto"}, text === null ? "–" : said === null ? text : `${said ? "✓" : "✗"} ${text}`);
  }
  const credit = rows.credit(row), rank = rows.rank(row), prob = rows.log_prob(row);
  const hint = [rank === null ? "" : `the right answer has rank ${rank}`, prob === null ? "" : `log-probability ${prob.toFixed(2)}`].filter(Boolean).join(", ");
  const said = `${mark(credit)} ${rows.predicted(row)}`;
  return make("td", {class: `${credit > 0.5 ? "right" : "wrong"}${said.length > 32 ? " text" : ""}`, title: hint, dir: "auto"}, said);
}

begin().catch(fail);
