// Requests worth a look: the largest errors of the window, and those that the guard caught.

import { html, useEffect } from "./vendor/preact.js";
import { clock, count, number } from "./format.js";
import { Table } from "./table.js";
import { useJson } from "./data.js";

export function Requests({ card }) {
  const path = `v2/models/${encodeURIComponent(card.name)}/versions/${encodeURIComponent(card.version)}/accuracy`;
  const [accuracy, error, reload] = useJson(path);
  const seen = `${card.accuracy.samples} ${card.guarded} ${card.unrepaired} ${card.outside}`;
  useEffect(reload, [seen]);
  if (error || !accuracy) return null;
  return html`
    <div class="pair requests">
      ${accuracy.worst.length > 0 && html`<section class="sheet"><h3>Largest errors among the last ${count(accuracy.samples)} samples</h3>
        <${Table} label="Requests with the largest errors" columns=${WORST} rows=${accuracy.worst} /></section>`}
      ${accuracy.guard.requests.length > 0 && html`<section class="sheet"><h3>Caught by the guard</h3>
        <${Table} label="Requests that the guard caught" columns=${GUARDED} rows=${[...accuracy.guard.requests].reverse()} /></section>`}
      ${accuracy.ranges.length > 0 && html`<section class="sheet"><h3>Inputs and their calibrated ranges</h3>
        <${Table} label="Calibrated ranges of inputs" columns=${RANGES} rows=${accuracy.ranges} /></section>`}
      ${accuracy.changes.length > 0 && html`<section class="sheet"><h3>Changes of the accuracy state</h3>
        <${Table} label="Changes of the accuracy state" columns=${CHANGES} rows=${[...accuracy.changes].reverse()} /></section>`}
    </div>
  `;
}

const WHEN = { name: "time", value: (row) => row.when_ms, cell: (row) => clock(row.when_ms) };
const ID = { name: "request id", value: (row) => row.id || row.request_id || "–" };
const PRINT = { name: "fingerprint", value: (row) => row.fingerprint, cell: (row) => html`<code>${row.fingerprint}</code>` };

const WORST = [WHEN, ID, PRINT, { name: "relative L2", value: (row) => row.relative_l2, cell: (row) => number(row.relative_l2), isNumber: true }];

const GUARDED = [
  WHEN,
  ID,
  PRINT,
  { name: "not finite in half", value: (row) => row.outputs.join(", ") },
  { name: "FP32 answered", value: (row) => (row.repaired ? "yes" : "no") },
];

const RANGES = [
  { name: "input", value: (row) => row.input },
  { name: "from", value: (row) => row.low, cell: (row) => number(row.low), isNumber: true },
  { name: "to", value: (row) => row.high, cell: (row) => number(row.high), isNumber: true },
  { name: "requests outside", value: (row) => row.outside, cell: (row) => count(row.outside), isNumber: true },
];

const CHANGES = [WHEN, { name: "to", value: (row) => row.to }, { name: "why", value: (row) => row.reasons.join("; ") }];
