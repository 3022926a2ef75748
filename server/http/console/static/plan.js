// The plan: every node with its precision and the reason, as a table beside the graph.

import { html, useMemo, useState } from "./vendor/preact.js";
import { count, number } from "./format.js";
import { Graph } from "./graph.js";
import { Table } from "./table.js";
import { pathOf, useJson } from "./data.js";

const SHOW = ["all", "FP32", "half", "casts"];

export function Plan({ card }) {
  const [nodes, error] = useJson(`${pathOf(card)}/plan`);
  const [filter, setFilter] = useState("");
  const [show, setShow] = useState("all");
  const [chosen, setChosen] = useState(null);
  const rows = useMemo(() => (nodes ?? []).map((node, index) => ({ ...node, index })), [nodes]);
  const found = useMemo(() => rows.filter((row) => matches(row, filter, show)), [rows, filter, show]);
  const columns = useMemo(() => columnsOf(setChosen), []);
  if (error) return html`<p class="quiet">${error}</p>`;
  if (!nodes) return html`<p class="quiet">Reading the plan…</p>`;
  const single = rows.filter((row) => row.precision === "fp32").length;
  const half = rows.filter((row) => row.precision === "half").length;
  return html`
    <form class="tools" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label>Search <input type="search" value=${filter} placeholder="node, operator or reason" onInput=${(e) => setFilter(e.target.value)} /></label>
      <label>Show <select value=${show} onChange=${(e) => setShow(e.target.value)}>${SHOW.map((each) => html`<option>${each}</option>`)}</select></label>
      <output aria-live="polite">${count(found.length)} of ${count(rows.length)} nodes · <span class="half">${count(half)} half</span> · <span class="fp32">${count(single)} FP32</span></output>
    </form>
    <div class="plan">
      <section class="sheet"><${Table} label="Nodes and reasons" columns=${columns} rows=${found} rowClass=${(row) => (row.index === chosen ? "chosen" : "")} /></section>
      <section class="sheet" aria-label="Graph"><${Graph} nodes=${rows} chosen=${chosen} onChoose=${setChosen} /></section>
    </div>
  `;
}

const columnsOf = (choose) => [
  { name: "#", value: (row) => row.index, isNumber: true },
  { name: "node", value: (row) => row.node, cell: (row) => html`<button class="link" onClick=${() => choose(row.index)}>${row.node}</button>` },
  { name: "operator", value: (row) => row.op_type },
  { name: "precision", value: (row) => row.precision, cell: (row) => html`<span class=${row.precision}>${row.precision === "fp32" ? "FP32" : row.precision || "–"}</span>` },
  { name: "reason", value: (row) => row.reason, cell: (row) => html`${row.reason}${row.evidence && html`<br /><small>${row.evidence}</small>`}` },
  { name: "error share", value: (row) => row.share, cell: (row) => (row.share === null ? "–" : `${number(100 * row.share, 2)}%`), isNumber: true },
];

function matches(row, filter, show) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${row.node} ${row.op_type} ${row.reason} ${row.evidence}`.toLowerCase();
  const isShown = show === "all" || (show === "casts" ? row.reason.startsWith("cast") : row.precision === show.toLowerCase());
  return isShown && words.every((word) => text.includes(word));
}
