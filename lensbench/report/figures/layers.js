// Accuracy by layer, and what its methods and rivals are.

function rivalsShown(curves, table) {
  const rivals = curves.filter((one) => one.baseline !== "none" && one.rule === state.rule && one.question !== "diagnostic");
  const methods = unique(ownCurves(curves).map((one) => one.inspector));
  const top = (one) => Math.max(...at(table, one, run.accuracy).map((v) => v ?? -1));
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
    const [y, low, high] = [run.accuracy, "ci_low", "ci_high"].map((column) => at(table, one, column));
    const colour = colourOf(one.inspector), best = peak(y);
    const between = y.map((v, i) => `${number(v)}  [${number(low[i])}, ${number(high[i])}]`);
    traces.push(band(x, low, high, colour), line(readable(one.inspector), x, y, colour, {customdata: between, marker: {color: colour, symbol: symbolOf(one.inspector), size: x.length <= 12 ? 8 : 6, maxdisplayed: 24}}));
    rows.push({name: readable(one.inspector), values: between});
    if (best >= 0) said.push(`${readable(one.inspector)} is highest at layer ${x[best]}, ${number(y[best])}`);
  }
  rivalsShown(curves, table).forEach((one, i) => {
    const y = at(table, one, run.accuracy);
    const several = state.rivals === "strongest", label = several ? `${readable(one.baseline)} (of ${readable(one.inspector)})` : readable(one.baseline);
    const colour = several ? colourOf(one.inspector) : css("--soft");
    traces.push(line(label, x, y, colour, {mode: x.length < 2 ? "markers" : "lines", line: {color: colour, width: 1.4, dash: DASHES[i % DASHES.length]}, marker: {symbol: "line-ew-open", size: 10, color: colour}}));
    rows.push({name: `baseline: ${label}`, values: y.map((v) => number(v))});
  });
  const chance = curves.length ? at(table, curves[0], "chance").find((v) => v !== null) ?? 0 : 0;
  const caption = traces.length ? `Accuracy by layer: ${where()}. ${said.join("; ")}. Shaded: bands that hold at all layers at once. Dotted: chance.` : `No method has results here: ${where()}.`;
  const shapes = [{type: "line", xref: "paper", x0: 0, x1: 1, y0: chance, y1: chance, line: {color: css("--soft"), dash: "dot", width: 1}}];
  return {traces, rows, columns: x.map((l) => `layer ${l}`), caption, height: 430 + 12 * Math.max(0, traces.length - 16),
    layout: {shapes, xaxis: {title: {text: "Layer (0 = embeddings)"}}, yaxis: {title: {text: scaleName()}, range: [Math.min(-0.03, chance - 0.1, ...traces.flatMap((t) => (t.line.width ? t.y : [])).filter((v) => v !== null).map((v) => v - 0.04)), 1.04]}}};
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

CHARTS.push(async (table, curves) => {
  await draw("figure-accuracy", accuracyFigure(table, curves));
  explain(table, curves);
});
