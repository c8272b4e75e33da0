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
  return {x: [...on.map((i) => x[i]), ...on.toReversed().map((i) => x[i])], y: [...on.map((i) => high[i]), ...on.toReversed().map((i) => low[i])],
    fill: "toself", fillcolor: rgba(colour, isDark() ? 0.13 : 0.09), line: {width: 0}, mode: "lines", hoverinfo: "skip", showlegend: false, type: "scatter"};
}

function line(name, x, y, colour, extra = {}) {
  const few = x.length <= 12;
  return {name: plain(name), x, y, type: "scatter", mode: few ? "lines+markers" : "lines+markers", line: {color: colour, width: 2},
    marker: {color: colour, size: few ? 7 : 5, maxdisplayed: 24}, hovertemplate: "%{customdata}", customdata: y.map((v) => number(v)), ...extra};
}

function rivalsShown(curves, table) {
  const rivals = curves.filter((one) => one.baseline !== "none" && one.rule === state.rule && one.question !== "diagnostic");
  const methods = unique(ownCurves(curves).map((one) => one.inspector));
  const top = (one) => Math.max(...at(table, one, "accuracy_corrected").map((v) => v ?? -1));
  const options = [...methods.map((value) => ({value, label: `of ${readable(value)}`})), {value: "strongest", label: "the strongest of each method"}, {value: "none", label: "none"}];
  state.rivals = fill("rivals", options, state.rivals || leading);
  if (state.rivals === "none") return [];
  const chosen = rivals.filter((one) => one.inspector === state.rivals);
  if (state.rivals !== "strongest") return chosen.sort((a, b) => top(b) - top(a));
  return methods.map((method) => rivals.filter((one) => one.inspector === method).sort((a, b) => top(b) - top(a))[0]).filter(Boolean);
}

function accuracyFigure(table, curves) {
  const x = run.layers, traces = [], rows = [], said = [];
  for (const one of ownCurves(curves)) {
    const [y, low, high] = ["accuracy_corrected", "ci_low", "ci_high"].map((column) => at(table, one, column));
    const colour = colourOf(one.inspector), best = peak(y);
    const between = y.map((v, i) => `${number(v)}  [${number(low[i])}, ${number(high[i])}]`);
    traces.push(band(x, low, high, colour), line(readable(one.inspector), x, y, colour, {customdata: between, marker: {color: colour, symbol: symbolOf(one.inspector), size: x.length <= 12 ? 8 : 6, maxdisplayed: 24}}));
    rows.push({name: readable(one.inspector), values: between});
    if (best >= 0) said.push(`${readable(one.inspector)} is highest at layer ${x[best]}, ${number(y[best])}`);
  }
  rivalsShown(curves, table).forEach((one, i) => {
    const y = at(table, one, "accuracy_corrected");
    const several = state.rivals === "strongest", label = several ? `${readable(one.baseline)} (of ${readable(one.inspector)})` : readable(one.baseline);
    const colour = several ? colourOf(one.inspector) : css("--soft");
    traces.push(line(label, x, y, colour, {mode: x.length < 2 ? "markers" : "lines", line: {color: colour, width: 1.4, dash: DASHES[i % DASHES.length]}, marker: {symbol: "line-ew-open", size: 10, color: colour}}));
    rows.push({name: `rival: ${label}`, values: y.map((v) => number(v))});
  });
  const chance = curves.length ? at(table, curves[0], "chance").find((v) => v !== null) ?? 0 : 0;
  const caption = traces.length ? `Accuracy by layer: ${where()}. ${said.join("; ")}. Shaded: bands that hold at all layers at once. Dotted: chance.` : `No method has results here: ${where()}.`;
  const shapes = [{type: "line", xref: "paper", x0: 0, x1: 1, y0: chance, y1: chance, line: {color: css("--soft"), dash: "dot", width: 1}}];
  return {traces, rows, columns: x.map((l) => `layer ${l}`), caption, height: 430 + 12 * Math.max(0, traces.length - 16),
    layout: {shapes, xaxis: {title: {text: "Layer (0 = embeddings)"}}, yaxis: {title: {text: scaleName()}, range: [Math.min(-0.03, chance - 0.1, ...traces.flatMap((t) => (t.line.width ? t.y : [])).filter((v) => v !== null).map((v) => v - 0.04)), 1.04]}}};
}

function gapFigure(table, curves, question) {
  const x = run.layers, traces = [], rows = [], said = [];
  for (const one of curves.filter((c) => c.baseline === "none" && c.rule === state.rule && c.question === question)) {
    const [y, low, high, verdict, rival] = ["gap", "gap_low", "gap_high", "verdict", "strongest_baseline"].map((column) => at(table, one, column));
    if (y.every((v) => v === null)) continue;
    const colour = colourOf(one.inspector), holds = verdict.map((v) => v === run.holds[question]);
    const told = y.map((v, i) => `${number(v, true)}  [${number(low[i], true)}, ${number(high[i], true)}] ${plain(readable(verdict[i] ?? ""))}, against ${plain(readable(rival[i] ?? "none"))}`);
    traces.push(band(x, low, high, colour), line(readable(one.inspector), x, y, colour, {customdata: told,
      mode: "lines+markers", line: {color: colour, width: 1.6}, marker: {color: holds.map((h) => (h ? colour : css("--paper"))), line: {color: colour, width: 1.2}, symbol: symbolOf(one.inspector), size: x.length > 40 ? 4 : 6}}));
    rows.push({name: readable(one.inspector), values: y.map((v, i) => `${number(v, true)} [${number(low[i], true)}, ${number(high[i], true)}] ${readable(verdict[i] ?? "")}`)});
    const count = holds.filter(Boolean).length;
    said.push(`${readable(one.inspector)}: ${count ? `holds at ${count} of ${x.length} layers` : "holds at no layer"}`);
  }
  const asked = run.questions[question].title;
  const caption = traces.length ? `${said.join("; ")}.` : `“${asked}” was not asked here: no rival of this question was run.`;
  const level = (y, dash) => ({type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: {color: css("--soft"), dash, width: 1}});
  return {traces, rows, columns: x.map((l) => `layer ${l}`), caption, height: 290,
    layout: {shapes: [level(0, "solid"), level(run.margin, "dot")], showlegend: false, xaxis: {title: {text: "Layer"}}, yaxis: {title: {text: "Gap"}}, hoverlabel: {bgcolor: css("--panel"), bordercolor: css("--faint"), font: {color: css("--ink"), size: 11}}}};
}

// Few cells have room for their numbers.
const numbersIn = (rows, columns) => (columns <= 16 && rows <= 24 && innerWidth > 700 ? {texttemplate: "%{z:.2f}", textfont: {size: 10}} : {});

function heatFigure(table, curves) {
  const own = ownCurves(curves), x = run.layers.map(String), z = own.map((one) => at(table, one, "accuracy_corrected"));
  const open = (one, i) => () => openItems({method: own[one].inspector, attempt: undefined, layer: String(run.layers[i])});
  const rows = own.map((one, r) => ({name: readable(one.inspector), values: z[r].map((v) => number(v)), acts: z[r].map((_, i) => open(r, i))}));
  const caption = own.length ? `Accuracy of ${own.length} method${own.length === 1 ? "" : "s"} at ${x.length} layer${x.length === 1 ? "" : "s"}: ${where()}.` : `No method has results here: ${where()}.`;
  const trace = {type: "heatmap", x, y: own.map((one) => plain(readable(one.inspector))), z, zmin: Math.min(0, ...z.flat()), zmax: 1, colorscale: "Cividis", xgap: 1, ygap: 1, ...numbersIn(own.length, x.length),
    hovertemplate: "%{y}, layer %{x}: %{z:.2f}<extra></extra>", colorbar: {thickness: 12, outlinewidth: 0}};
  return {traces: own.length ? [trace] : [], rows, columns: x.map((l) => `layer ${l}`), caption, height: 110 + 30 * own.length,
    layout: {hovermode: "closest", xaxis: {title: {text: "Layer"}, type: "category", nticks: 16}, yaxis: {autorange: "reversed", type: "category", automargin: true}}, click: (point) => open(point.pointIndex[0], point.pointIndex[1])()};
}

function explain(table, curves) {
  const shown = unique(ownCurves(curves).map((one) => one.inspector));
  const about = run.methods.filter((one) => shown.includes(one.name)).map((one) => {
    const learns = one.learns_from && one.learns_from !== "nothing" ? ` It learns from ${one.learns_from}.` : "";
    return make("p", {}, signOf(colourOf(one.name), "solid"), make("b", {}, one.label), ` ${one.summary}${learns}`);
  });
  const rivals = unique(rivalsShown(curves, table).map((one) => one.baseline));
  const against = run.rivals.filter((one) => rivals.includes(one.name)).map((one) => make("p", {}, signOf(css("--soft"), "dashed"), make("b", {}, one.label), ` ${one.rules_out}`));
  byId("explain-accuracy").replaceChildren(...about, ...against);
  for (const list of document.querySelectorAll(".rivals-of")) {
    const here = run.rivals.filter((one) => one.question === list.dataset.question);
    list.replaceChildren(...here.flatMap((one) => [make("dt", {}, one.label), make("dd", {}, one.rules_out)]), ...(here.length ? [] : [make("dd", {}, "None was run.")]));
  }
}

function signOf(colour, style) {
  const sign = make("span", {class: "sign", "aria-hidden": "true"});
  sign.style.borderTopColor = colour;
  sign.style.borderTopStyle = style;
  return sign;
}

// The method with the highest accuracy at any layer: items are shown by it first.
let leading;
function leadingMethod(table, curves) {
  const top = (one) => Math.max(...at(table, one, "accuracy_corrected").map((v) => v ?? -1));
  const own = ownCurves(curves);
  return own.length ? own.reduce((a, b) => (top(b) > top(a) ? b : a)).inspector : undefined;
}

async function showCharts() {
  const table = await tableOnce(run.tables.summary);
  const {curves, rules} = curvesOf(table);
  state.rule = fill("rule", rules.map((value) => ({value, label: `${value}: ${RULES[value]}`})), state.rule);
  leading = leadingMethod(table, curves);
  await draw("figure-accuracy", accuracyFigure(table, curves));
  explain(table, curves);
  document.body.dataset.first ??= String(Math.round(performance.now()));
  await pause();
  for (const question of Object.keys(run.questions)) await draw(`figure-gap-${question}`, gapFigure(table, curves, question));
  await pause();
  await draw("figure-heat", heatFigure(table, curves));
  if (run.tables.grids) await showGrid();
  if (run.tables.shares) await showShares();
}
