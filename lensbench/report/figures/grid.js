// Source by target layer.

async function showGrid() {
  const table = await tableOnce(run.tables.grid);
  const rows = [];
  for (let row = 0; row < table.length; row++) {
    if (table.task(row) === state.task && table.relation(row) === state.relation && table.site(row) === state.site) rows.push(row);
  }
  byId("grid").hidden = false;
  const methods = unique(rows.map((row) => table.inspector(row)));
  const method = fill("grid-method", named(methods), byId("grid-method").value);
  const own = rows.filter((row) => table.inspector(row) === method);
  const variants = unique(own.map((row) => table.variant(row)));
  const variant = fill("grid-variant", variants.map((value) => ({value, label: value || "the only one"})), byId("grid-variant").value);
  await draw("figure-grid", gridFigure(table, own.filter((row) => table.variant(row) === variant), method));
  for (const id of ["grid-method", "grid-variant"]) byId(id).onchange = () => later(showGrid);
}

function gridFigure(table, rows, method) {
  const sources = unique(rows.map((row) => table.layer(row))).sort((a, b) => a - b);
  const numeric = (name) => (/^\d+$/.test(name) ? Number(name) : -1);
  const targets = unique(rows.map((row) => table.target(row)));
  const layered = targets.some((name) => numeric(name) >= 0);
  targets.sort((a, b) => numeric(a) - numeric(b));
  const place = new Map(rows.map((row) => [`${table.layer(row)}\t${table.target(row)}`, row]));
  const at = (source, target) => place.get(`${source}\t${target}`);
  const z = targets.map((target) => sources.map((source) => { const row = at(source, target); return row === undefined ? null : table.value(row); }));
  const act = (t, s) => { const row = at(sources[s], targets[t]); return row === undefined ? null : () => openItems({method, attempt: table.attempt(row), layer: String(sources[s])}); };
  const title = layered ? "Target layer" : "Attempt";
  const flat = z.flatMap((line, t) => line.map((v, s) => [v, t, s])).filter(([v]) => v !== null).sort((a, b) => b[0] - a[0]);
  const [top, t, s] = flat[0] || [];
  const caption = flat.length ? `${readable(method)}: ${where()}. Highest from source layer ${sources[s]}, ${title.toLowerCase()} ${targets[t]}: ${number(top)}.` : `No method makes several attempts here: ${where()}.`;
  const trace = {type: "heatmap", x: sources.map(String), y: targets.map(plain), z, zmin: Math.min(0, ...flat.map(([v]) => v)), zmax: 1, colorscale: "Cividis", xgap: 1, ygap: 1, ...numbersIn(targets.length, sources.length),
    hovertemplate: `from layer %{x}, ${title.toLowerCase()} %{y}: %{z:.2f}<extra></extra>`, colorbar: {thickness: 12, outlinewidth: 0}};
  return {traces: flat.length ? [trace] : [], caption, height: Math.min(620, 130 + 26 * targets.length), columns: sources.map((l) => `from ${l}`),
    rows: targets.map((target, t) => ({name: `${title.toLowerCase()} ${target}`, values: z[t].map((v) => number(v)), acts: z[t].map((_, s) => act(t, s))})),
    layout: {hovermode: "closest", xaxis: {title: {text: "Source layer"}, type: "category", nticks: 16}, yaxis: {title: {text: title}, type: "category", nticks: 24, automargin: true}},
    click: (point) => act(point.pointIndex[0], point.pointIndex[1])?.()};
}

CHARTS.push(async () => { if (run.tables.grid) await showGrid(); });
