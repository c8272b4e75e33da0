// Accuracy by layer, and what its methods and rivals are.

const MOST_RIVALS = 3;

// The baselines that are chosen, the strongest first; of those, three are drawn at a time.
function rivalsChosen(curves, table) {
  const rivals = curves.filter((one) => one.baseline !== "none" && one.rule === state.rule && one.question !== "diagnostic");
  const methods = unique(ownCurves(curves).map((one) => one.inspector));
  const top = (one) => Math.max(...at(table, one, run.accuracy).map((v) => v ?? -1));
  const of = (method) => rivals.filter((one) => one.inspector === method).sort((a, b) => top(b) - top(a));
  const options = methods.flatMap((method) => Array.from({length: Math.max(1, Math.ceil(of(method).length / MOST_RIVALS))}, (_, i) => ({value: i ? `${method}:${i}` : method, label: `of ${readable(method)}${i ? `, weaker (${i + 1})` : ""}`})));
  state.rivals = fill("rivals", [...options, {value: "strongest", label: "the strongest of each method"}, {value: "none", label: "none"}], state.rivals || leading);
  if (state.rivals === "none") return {all: [], drawn: []};
  const place = /:(\d+)$/.exec(state.rivals), first = MOST_RIVALS * Number(place?.[1] ?? 0);
  const strongest = () => methods.map((method) => of(method)[0]).filter(Boolean).sort((a, b) => top(b) - top(a));
  const all = state.rivals === "strongest" ? strongest() : of(place ? state.rivals.slice(0, place.index) : state.rivals);
  return {all, drawn: all.slice(first, first + MOST_RIVALS)};
}

function accuracyFigure(table, curves) {
  const x = run.layers, traces = [], rows = [], said = [], ends = [], own = ownCurves(curves), lowest = [-0.03];
  own.forEach((one, place) => {
    const [y, low, high] = [run.accuracy, "ci_low", "ci_high"].map((column) => at(table, one, column));
    const colour = colourOf(one.inspector), best = peak(y), name = readable(one.inspector);
    const between = y.map((v, i) => `${number(v)}  [${number(low[i])}, ${number(high[i])}]`);
    const mode = own.length === 1 && x.length <= 12 ? "lines+markers" : "lines";
    traces.push(interval(x, y, low, high, colour, one.inspector, [place, own.length]), line(name, x, y, colour, {customdata: between, mode}));
    rows.push({name, values: between});
    ends.push({name, y, colour, bold: true});
    lowest.push(...[...y, ...low].filter((v) => v !== null).map((v) => v - 0.04));
    if (best >= 0) said.push(`${name} is highest at layer ${x[best]}, ${number(y[best])}`);
  });
  const several = state.rivals === "strongest", {all, drawn} = rivalsChosen(curves, table);
  const named = (one) => (several ? `${readable(one.baseline)} (of ${readable(one.inspector)})` : readable(one.baseline));
  all.forEach((one) => rows.push({name: `baseline: ${named(one)}`, values: at(table, one, run.accuracy).map((v) => number(v))}));
  drawn.forEach((one, i) => {
    const y = at(table, one, run.accuracy), colour = several ? colourOf(one.inspector) : css("--soft");
    traces.push(line(named(one), x, y, colour, {mode: x.length < 2 ? "markers" : "lines", line: {color: colour, width: 1.4, dash: DASHES[i]}, marker: {symbol: "line-ew-open", size: 10, color: colour}}));
    ends.push({name: named(one), y, colour});
    lowest.push(...y.filter((v) => v !== null).map((v) => v - 0.04));
  });
  const chance = curves.length ? at(table, curves[0], "chance").find((v) => v !== null) ?? 0 : 0;
  const left = all.length > drawn.length ? ` Of ${all.length} baselines ${drawn.length} are drawn; the table has all.` : "";
  const marks = own.length === 1 ? "Shaded: a band that holds" : "Whiskers: intervals that hold";
  const caption = traces.length ? `Accuracy by layer: ${where()}, ${counted(table, own)}. ${said.join("; ")}. ${marks} at all layers at once. Dotted: chance.${left}` : `No method has results here: ${where()}.`;
  const shapes = [{type: "line", xref: "paper", x0: 0, x1: 1, y0: chance, y1: chance, line: {color: css("--soft"), dash: "dot", width: 1}}];
  const range = [Math.min(chance - 0.1, ...lowest), 1.04], height = 430 + 12 * Math.max(0, ends.length - 16);
  return {traces, rows, columns: x.map((l) => `layer ${l}`), caption, height,
    layout: {...namedAtEnds(ends, range, height), shapes, xaxis: {title: {text: "Layer (0 = embeddings)"}}, yaxis: {title: {text: scaleName()}, range}}};
}

// How many subjects and items the curves are about.
function counted(table, curves) {
  const spanOf = (column) => {
    const found = curves.flatMap((one) => at(table, one, column)).filter((v) => v !== null);
    const [least, most] = [Math.min(...found), Math.max(...found)];
    return least === most ? String(most) : `${least} to ${most}`;
  };
  return curves.length ? `${spanOf("subjects")} subjects, ${spanOf("n")} items` : "";
}

function explain(table, curves) {
  const shown = unique(ownCurves(curves).map((one) => one.inspector));
  const about = run.methods.filter((one) => shown.includes(one.name)).map((one) => {
    const learns = one.learns_from && one.learns_from !== "nothing" ? ` It learns from ${one.learns_from}.` : "";
    return make("p", {}, signOf(colourOf(one.name), "solid"), make("b", {}, one.label), ` ${one.summary}${learns}`);
  });
  const rivals = unique(rivalsChosen(curves, table).drawn.map((one) => one.baseline));
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

CHARTS.push(async (table, curves) => {
  await draw("figure-accuracy", accuracyFigure(table, curves));
  explain(table, curves);
});
