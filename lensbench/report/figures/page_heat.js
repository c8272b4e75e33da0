// Method by layer, as a map.

function heatFigure(table, curves) {
  const own = ownCurves(curves), x = run.layers.map(String), z = own.map((one) => at(table, one, run.accuracy));
  const open = (one, i) => () => openItems({method: own[one].inspector, attempt: undefined, layer: String(run.layers[i])});
  const rows = own.map((one, r) => ({name: readable(one.inspector), values: z[r].map((v) => number(v)), acts: z[r].map((_, i) => open(r, i))}));
  const caption = own.length ? `Accuracy of ${own.length} method${own.length === 1 ? "" : "s"} at ${x.length} layer${x.length === 1 ? "" : "s"}: ${where()}.` : `No method has results here: ${where()}.`;
  const trace = {type: "heatmap", x, y: own.map((one) => plain(readable(one.inspector))), z, zmin: Math.min(0, ...z.flat()), zmax: 1, colorscale: "Cividis", xgap: 1, ygap: 1, ...numbersIn(own.length, x.length),
    hovertemplate: "%{y}, layer %{x}: %{z:.2f}<extra></extra>", colorbar: {thickness: 12, outlinewidth: 0}};
  return {traces: own.length ? [trace] : [], rows, columns: x.map((l) => `layer ${l}`), caption, height: 110 + 30 * own.length,
    layout: {hovermode: "closest", xaxis: {title: {text: "Layer"}, type: "category", nticks: 16}, yaxis: {autorange: "reversed", type: "category", automargin: true}}, click: (point) => open(point.pointIndex[0], point.pointIndex[1])()};
}

CHARTS.push((table, curves) => draw("figure-heat", heatFigure(table, curves)));
