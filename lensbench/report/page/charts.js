// Figures. Each has a description, and a table with the same numbers.

const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star", "hexagon", "pentagon"];
const DASHES = ["dash", "dot", "dashdot", "longdash", "longdashdot", "4px 2px", "2px 4px", "8px 3px 2px 3px"];
// The same hues, light enough for a dark page.
const ON_DARK = {"#0072B2": "#4aa3e6", "#D55E00": "#ff8a45", "#009E73": "#35c9a0", "#CC79A7": "#e6a0c6", "#56B4E9": "#9bd6ff", "#000000": "#f2f2f2"};
const ON_LIGHT = {"#F0E442": "#9c9000"};
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
// Plotly reads some tags in labels: what comes from data must not become one.
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const rgba = (hex, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;

function colourOf(method) {
  const colour = (run.methods.find((one) => one.name === method) || {colour: "#7a7a7a"}).colour;
  return (isDark() ? ON_DARK[colour] : ON_LIGHT[colour]) || colour;
}
const symbolOf = (method) => SYMBOLS[Math.max(0, run.methods.findIndex((one) => one.name === method)) % SYMBOLS.length];

function layout(extra) {
  const axis = {gridcolor: css("--line"), zerolinecolor: css("--faint"), linecolor: css("--faint"), fixedrange: true};
  const font = {color: css("--ink"), family: "system-ui, sans-serif", size: 12};
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, margin: {l: 56, r: 12, t: 12, b: 46}, hovermode: "x unified", hoverdistance: -1,
    hoverlabel: {bgcolor: css("--panel"), bordercolor: css("--faint"), font: {color: css("--ink"), size: 12}, namelength: -1},
    legend: {orientation: "h", x: 0, y: 1.02, yanchor: "bottom"}, ...extra,
    xaxis: {...axis, unifiedhovertitle: {text: "layer %{x}"}, ...(extra.xaxis || {})}, yaxis: {...axis, ...(extra.yaxis || {})},
  };
}

// A figure with its caption, its table, and what a click does.
async function draw(id, figure) {
  const host = byId(id);
  const open = host.querySelector("details")?.open;
  if (!figure.traces.length) {
    host.replaceChildren(make("p", {class: "nothing"}, figure.caption));
    return;
  }
  let plot = host.querySelector(".plot");
  if (!plot) {
    plot = make("div", {class: "plot"});
    host.replaceChildren(plot, make("figcaption", {id: `${id}-caption`}), make("details", {class: "note"}));
  }
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", figure.caption);
  plot.style.height = `${figure.height}px`;
  host.querySelector("figcaption").textContent = figure.caption;
  const details = make("details", {class: "note", open}, make("summary", {}, "The numbers as a table"));
  const table = () => details.childElementCount < 2 && details.append(make("div", {class: "table-of-figure"}, tableOf(figure)));
  details.addEventListener("toggle", table);
  if (open) table();
  host.querySelector("details").replaceWith(details);
  await Plotly.react(plot, figure.traces, layout(figure.layout), {displaylogo: false, responsive: true, displayModeBar: "hover",
    modeBarButtons: [["toImage"]], // named, as one of the usual buttons leads to a web page
    toImageButtonOptions: {format: "svg", filename: `${id}`}});
  plot.removeAllListeners("plotly_click");
  if (figure.click) plot.on("plotly_click", (event) => figure.click(event.points[0]));
}

// Rows of a figure's table; a cell with an action is a button, for those who use no mouse.
function tableOf(figure) {
  const cell = (value, act) => make("td", {}, act ? make("button", {type: "button", on: {click: act}}, value) : value);
  const rows = figure.rows.map((row) => make("tr", {}, make("th", {scope: "row"}, row.name), ...row.values.map((v, i) => cell(v, row.acts?.[i]))));
  const head = make("tr", {}, ...["", ...figure.columns].map((name) => make("th", {scope: "col"}, name)));
  return make("table", {class: "numbers"}, make("thead", {}, head), make("tbody", {}, ...rows));
}

// Curves of the chosen place: `inspector baseline question` -> its rows by layer.
function curvesOf(table) {
  const found = new Map(), rules = new Set();
  for (let row = 0; row < table.length; row++) {
    if (table.task(row) !== state.task || table.relation(row) !== state.relation || table.site(row) !== state.site) continue;
    if (["fixed", "selected", "oracle"].includes(table.rule(row))) rules.add(table.rule(row));
    const key = [table.inspector(row), table.baseline(row), table.rule(row), table.question(row)].join("\t");
    if (!found.has(key)) found.set(key, {inspector: table.inspector(row), baseline: table.baseline(row), rule: table.rule(row), question: table.question(row), rows: []});
    found.get(key).rows.push(row);
  }
  return {curves: [...found.values()], rules: ["fixed", "selected", "oracle"].filter((rule) => rules.has(rule))};
}

// The values of a curve at all layers of the run; what reads no layer is level.
function at(table, curve, column) {
  const byLayer = new Map(curve.rows.map((row) => [table.layer(row), row]));
  const level = byLayer.has(null);
  return run.layers.map((layer) => {
    const row = level ? byLayer.get(null) : byLayer.get(layer);
    return row === undefined ? null : table[column](row);
  });
}

const RULES = {fixed: "the declared default", selected: "chosen on the other folds", oracle: "best of all (no verdict)"};

function ownCurves(curves) {
  const seen = new Set();
  return curves.filter((one) => one.baseline === "none" && one.rule === state.rule && !seen.has(one.inspector) && seen.add(one.inspector));
}

function peak(values) {
  let best = -1;
  values.forEach((value, i) => { if (value !== null && (best < 0 || value > values[best] + 1e-9)) best = i; });
  return best;
}

const where = () => `${readable(state.task)}, ${relationLabel(state.task, state.relation)}, read at ${state.site}`;
const scaleName = () => (state.relation === index.all ? "Accuracy, 0 chance, 1 perfect" : "Accuracy, prior-corrected");

function band(x, low, high, colour) {
  const on = x.map((_, i) => i).filter((i) => low[i] !== null && high[i] !== null);
  return {x: [...on.map((i) => x[i]), ...[...on].reverse().map((i) => x[i])], y: [...on.map((i) => high[i]), ...[...on].reverse().map((i) => low[i])],
    fill: "toself", fillcolor: rgba(colour, isDark() ? 0.13 : 0.09), line: {width: 0}, mode: "lines", hoverinfo: "skip", showlegend: false, type: "scatter"};
}

// Of several methods, bands would drown each other: each has whiskers and markers at layers of its own.
function interval(x, y, low, high, colour, method, [place, of], visible = true) {
  if (of === 1) return band(x, low, high, colour);
  const few = x.length <= 12, step = few ? 1 : Math.max(of, 4);
  const on = x.map((_, i) => i).filter((i) => i % step === place % step && y[i] !== null && low[i] !== null && high[i] !== null);
  const beside = few ? 0.1 * (place - (of - 1) / 2) * (x.length > 1 ? x[1] - x[0] : 1) : 0;
  return {x: on.map((i) => x[i] + (visible ? 0 : beside)), y: on.map((i) => y[i]), type: "scatter", mode: "markers", line: {width: 0}, showlegend: false, hoverinfo: "skip",
    marker: {color: colour, symbol: symbolOf(method), size: few ? 8 : 7, opacity: visible ? 1 : 0},
    error_y: {type: "data", symmetric: false, array: on.map((i) => high[i] - y[i]), arrayminus: on.map((i) => y[i] - low[i]), color: rgba(colour, 0.6), thickness: 1.2, width: 0}};
}

// Values moved apart to at least a distance, in their order.
function spread(values, distance, low, high) {
  const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]), places = order.map((i) => Math.min(high, Math.max(low, values[i])));
  for (let round = 0; round < 100; round++) {
    for (let i = 1; i < places.length; i++) {
      const push = Math.max(0, distance - places[i] + places[i - 1]) / 2;
      places[i] += push;
      places[i - 1] -= push;
    }
    const shift = Math.max(0, low - Math.min(...places)) - Math.max(0, Math.max(...places) - high);
    places.forEach((_, i) => { places[i] += shift; });
  }
  const found = [];
  order.forEach((i, at) => { found[i] = places[at]; });
  return found;
}

// The layout in which each line is named at its end; it needs no legend.
function namedAtEnds(ends, range, height) {
  const shown = ends.map((one) => ({...one, value: [...one.y].reverse().find((v) => v !== null)})).filter((one) => one.value !== undefined);
  const small = innerWidth < 700, size = small ? 10 : 12, inside = height - 58, unit = (range[1] - range[0]) / inside;
  const lines = shown.map((one) => (one.name.length > (small ? 14 : 22) ? one.name.replace(/ (?=\(|\S+$)/, "\n") : one.name).split("\n"));
  const tall = Math.max(1, ...lines.map((one) => one.length));
  const places = spread(shown.map((one) => one.value), Math.min(1.3 * size * tall * unit, (range[1] - range[0]) / Math.max(1, shown.length)), range[0], range[1]);
  const wide = Math.max(0, ...lines.flat().map((one) => one.length));
  const annotations = shown.map((one, i) => ({x: 1, xref: "paper", y: one.value, yref: "y", ax: 14, ay: (one.value - places[i]) / unit, xanchor: "left", align: "left", arrowhead: 0, arrowwidth: 1, arrowcolor: one.colour,
    text: lines[i].map((part) => (one.bold ? `<b>${plain(part)}</b>` : plain(part))).join("<br>"), font: {size, color: one.colour}}));
  return {annotations, showlegend: false, margin: {l: small ? 44 : 56, r: 22 + 0.62 * size * wide, t: 12, b: 46}};
}

function line(name, x, y, colour, extra = {}) {
  const few = x.length <= 12;
  return {name: plain(name), x, y, type: "scatter", mode: few ? "lines+markers" : "lines+markers", line: {color: colour, width: 2},
    marker: {color: colour, size: few ? 7 : 5, maxdisplayed: 24}, hovertemplate: "%{customdata}", customdata: y.map((v) => number(v)), ...extra};
}

// Few cells have room for their numbers.
const numbersIn = (rows, columns) => (columns <= 16 && rows <= 24 && innerWidth > 700 ? {texttemplate: "%{z:.2f}", textfont: {size: 10}} : {});

// The method with the highest accuracy at any layer: items are shown by it first.
let leading;
function leadingMethod(table, curves) {
  const top = (one) => Math.max(...at(table, one, run.accuracy).map((v) => v ?? -1));
  const own = ownCurves(curves);
  return own.length ? own.reduce((a, b) => (top(b) > top(a) ? b : a)).inspector : undefined;
}

// Each figure adds a function of the summary's table and the curves of the chosen place; see lensbench/report/figures.
const CHARTS = [];

// A chart that came as data, of a figure that has no program of its own.
async function drawChart(name) {
  const found = run.charts[name][[state.task, state.relation, state.site].join("\t")];
  const nothing = {traces: [], caption: `There is nothing to show here: ${where()}.`};
  const named = (trace) => (trace.name === undefined ? trace : {...trace, name: plain(trace.name)});
  await draw(`figure-${name}`, found ? {...found, traces: found.traces.map(named), rows: found.rows.map(([row, values]) => ({name: row, values}))} : nothing);
}

async function showCharts() {
  const table = await tableOnce(run.tables.summary);
  const {curves, rules} = curvesOf(table);
  state.rule = fill("rule", rules.map((value) => ({value, label: `${value}: ${RULES[value]}`})), state.rule);
  leading = leadingMethod(table, curves);
  for (const show of CHARTS) {
    await show(table, curves);
    document.body.dataset.first ??= String(Math.round(performance.now()));
    await pause();
  }
  for (const name of Object.keys(run.charts)) await drawChart(name);
}
