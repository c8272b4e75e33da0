// The gaps by layer.

function gapFigure(table, curves, question) {
  const x = run.layers, traces = [], rows = [], said = [], ends = [], values = [0.15, -0.15];
  const own = curves.filter((c) => c.baseline === "none" && c.rule === state.rule && c.question === question && at(table, c, "gap").some((v) => v !== null));
  own.forEach((one, place) => {
    const [y, low, high, verdict, rival] = ["gap", "gap_low", "gap_high", "verdict", "strongest_baseline"].map((column) => at(table, one, column));
    const colour = colourOf(one.inspector), holds = verdict.map((v) => v === run.holds[question]);
    const told = y.map((v, i) => `${number(v, true)}  [${number(low[i], true)}, ${number(high[i], true)}] ${plain(readable(verdict[i] ?? ""))}, against ${plain(readable(rival[i] ?? "none"))}`);
    traces.push(interval(x, y, low, high, colour, one.inspector, [place, own.length], false), line(readable(one.inspector), x, y, colour, {customdata: told,
      mode: "lines+markers", line: {color: colour, width: 1.6}, marker: {color: holds.map((h) => (h ? colour : css("--paper"))), line: {color: colour, width: 1.2}, symbol: symbolOf(one.inspector), size: x.length > 40 ? 4 : 6}}));
    rows.push({name: readable(one.inspector), values: y.map((v, i) => `${number(v, true)} [${number(low[i], true)}, ${number(high[i], true)}] ${readable(verdict[i] ?? "")}`)});
    const count = holds.filter(Boolean).length;
    said.push(`${readable(one.inspector)}: ${count ? `holds at ${count} of ${x.length} layers` : "holds at no layer"}`);
    ends.push({name: readable(one.inspector), y, colour, bold: true});
    values.push(...[...y, ...low, ...high].filter((v) => v !== null));
  });
  const range = [Math.min(...values) - 0.05, Math.max(...values) + 0.05], height = 290;
  const asked = run.questions[question].title;
  const caption = traces.length ? `${said.join("; ")}.` : `“${asked}” was not asked here: no baseline of this question was run.`;
  const level = (y, dash) => ({type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: {color: css("--soft"), dash, width: 1}});
  return {traces, rows, columns: x.map((l) => `layer ${l}`), caption, height,
    layout: {...namedAtEnds(ends, range, height), shapes: [level(0, "solid"), level(run.margin, "dot"), level(-run.margin, "dot")], xaxis: {title: {text: "Layer"}}, yaxis: {title: {text: "Gap"}, range}, hoverlabel: {bgcolor: css("--panel"), bordercolor: css("--faint"), font: {color: css("--ink"), size: 11}}}};
}

CHARTS.push(async (table, curves) => {
  for (const question of Object.keys(run.questions)) await draw(`figure-gap-${question}`, gapFigure(table, curves, question));
});
