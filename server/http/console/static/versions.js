// Versions side by side: how they answer now, what their exports measured, and where their plans differ.

import { html, useMemo, useState } from "./vendor/preact.js";
import { bytes, count, milliseconds, number, percent, precision } from "./format.js";
import { METRICS, StateBadge, trafficText } from "./parts.js";
import { Table } from "./table.js";
import { hrefOf, useJson } from "./data.js";

export function Versions({ card, cards }) {
  const [versions, error] = useJson(`console/models/${encodeURIComponent(card.name)}/versions`);
  if (error) return html`<p class="quiet">${error}</p>`;
  if (!versions) return html`<p class="quiet">Reading the versions…</p>`;
  const facts = new Map(versions.map((each) => [each.version, each]));
  const shown = cards.filter((each) => facts.has(each.version));
  return html`
    <section class="sheet"><h3>Side by side</h3><${SideBySide} cards=${shown} facts=${facts} /></section>
    ${shown.length > 1 && html`<${Changes} name=${card.name} versions=${shown.map((each) => each.version)} now=${card.version} />`}
  `;
}

const ROWS = [
  ["state", (card) => html`<${StateBadge} card=${card} />`],
  ["share of traffic", (card) => trafficText(card) || "all"],
  ["precision", (card, facts) => precision(card.precision || facts.precision)],
  ["requests/s", (card) => number(card.rate)],
  ["p50", (card) => milliseconds(card.p50_ms)],
  ["p99", (card) => milliseconds(card.p99_ms)],
  ["error rate", (card) => percent(card.failed_share)],
  ["accuracy, live", (card) => liveAccuracy(card.accuracy)],
  ["accuracy at export", (card, facts) => exportAccuracy(facts)],
  ["predicted relative L2", (card, facts) => Object.entries(facts.predicted).map(([name, value]) => html`<div>${name}: ${number(value)}</div>`)],
  ["nodes in half", (card, facts) => count(facts.half_nodes)],
  ["nodes in FP32", (card, facts) => count(facts.fp32_nodes)],
  ["size of the model", (card, facts) => (facts.model_bytes ? bytes(facts.model_bytes) : "–")],
  ["exported", (card, facts) => facts.created.replace("T", " ").replace("Z", " UTC") || "–"],
  ["from", (card, facts) => facts.source || "–"],
  ["measured on", (card, facts) => facts.samples || "–"],
];

function SideBySide({ cards, facts }) {
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Versions side by side">
      <table>
        <thead><tr><th scope="col"></th>${cards.map((card) => html`<th scope="col"><a href=${hrefOf(card.name, card.version, "live")}>version ${card.version}</a></th>`)}</tr></thead>
        <tbody>
          ${ROWS.map(([name, read]) => html`<tr><th scope="row">${name}</th>${cards.map((card) => html`<td>${facts.get(card.version).error && name === "exported" ? facts.get(card.version).error : read(card, facts.get(card.version))}</td>`)}</tr>`)}
        </tbody>
      </table>
    </div>
  `;
}

function liveAccuracy({ state, samples, worst }) {
  if (!worst) return state === "unknown" ? `unknown (${count(samples)} samples)` : "not measured";
  const words = state === "within" ? "within budget" : state === "over" ? "over budget" : state === "unknown" ? `unknown (${count(samples)} samples)` : state;
  return `${words}: ${METRICS[worst.metric]} ${number(worst.value ?? Infinity)} of ${number(worst.limit)}`;
}

function exportAccuracy(facts) {
  if (!facts.outputs.length) return "–";
  return html`${facts.outputs.map((each) => html`<div>${each.output}: relative L2 ${number(each.relative_l2)}${each.top1 === null ? "" : `, top-1 ${number(each.top1)}`}</div>`)}`;
}

function Changes({ name, versions, now }) {
  const at = versions.indexOf(now);
  const [was, setWas] = useState(versions[at > 0 ? at - 1 : versions.length - 1 === at ? 0 : at + 1]);
  const query = new URLSearchParams({ was, now });
  const [changes, error] = useJson(`console/models/${encodeURIComponent(name)}/changes?${query}`);
  const columns = useMemo(() => columnsOf(was, now), [was, now]);
  return html`
    <section class="sheet">
      <div class="bar">
        <h3>Nodes that version ${now} decides otherwise than version</h3>
        <select aria-label="Version to compare with" value=${was} onChange=${(event) => setWas(event.target.value)}>
          ${versions.filter((each) => each !== now).map((each) => html`<option>${each}</option>`)}
        </select>
      </div>
      ${error && html`<p class="quiet">${error}</p>`}
      ${changes && (changes.length ? html`<${Table} label="Changed decisions" columns=${columns} rows=${changes} rowClass=${(row) => (row.was !== row.now ? "differs" : "")} />` : html`<p class="quiet">The plans are the same.</p>`)}
    </section>
  `;
}

const columnsOf = (was, now) => [
  { name: "node", value: (row) => row.node },
  { name: "operator", value: (row) => row.op_type },
  { name: `version ${was}`, value: (row) => words(row.was, row.was_reason) },
  { name: `version ${now}`, value: (row) => words(row.now, row.now_reason) },
];

const words = (side, reason) => (side ? `${side === "fp32" ? "FP32" : side} (${reason})` : "absent");
