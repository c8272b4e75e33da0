// Whose facts the answers follow.

async function showShares() {
  const table = await tableOnce(run.tables.shares);
  const rows = [];
  for (let row = 0; row < table.length; row++) {
    if (table.task(row) === state.task && table.site(row) === state.site && table.baseline(row) === "none") rows.push(row);
  }
  const relations = unique(rows.map((row) => table.relation(row)));
  const relation = relations.includes(state.relation) ? state.relation : relations.includes(index.all) ? index.all : relations[0];
  const method = fill("shares-method", named(unique(rows.map((row) => table.inspector(row)))), byId("shares-method").value);
  byId("shares-method").onchange = () => later(showShares);
  const own = rows.filter((row) => table.inspector(row) === method && table.relation(row) === relation);
  const attempt = own.length ? table.attempt(own[0]) : "";
  const styles = {target: ["#0072B2", "solid"], verbalizer: ["#D55E00", "dash"], neither: ["#7a7a7a", "dot"]};
  const traces = [], lines = [], layers = unique(own.map((row) => table.layer(row) ?? run.layers[0])).sort((a, b) => a - b);
  for (const [follows, [base, dash]] of Object.entries(styles)) {
    const part = own.filter((row) => table.follows(row) === follows && table.attempt(row) === attempt);
    const found = new Map(part.map((row) => [table.layer(row) ?? run.layers[0], row]));
    const values = ["share", "ci_low", "ci_high"].map((name) => layers.map((layer) => (found.has(layer) ? table[name](found.get(layer)) : null)));
    const colour = (isDark() && ON_DARK[base]) || base;
    const name = follows === "neither" ? "neither's" : `the ${follows}'s facts`;
    traces.push(band(layers, values[1], values[2], colour), line(name, layers, values[0], colour, {line: {color: colour, dash, width: 2}}));
    lines.push({name, values: values[0].map((v, i) => `${number(v)} [${number(values[1][i])}, ${number(values[2][i])}]`)});
  }
  const caption = `Share of the answers of ${readable(method ?? "no method")} that follow each model's facts, where the two differ: ${readable(relation ?? "")}.`;
  await draw("figure-shares", {traces: own.length ? traces : [], rows: lines, columns: layers.map((l) => `layer ${l}`), caption, height: 330,
    layout: {xaxis: {title: {text: "Layer"}}, yaxis: {title: {text: "Share of answers"}, range: [-0.03, 1.03]}}});
}

CHARTS.push(async () => { if (run.tables.shares) await showShares(); });
