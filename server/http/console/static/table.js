// A table that sorts by its columns; long ones grow when asked to.

import { html, useMemo, useState } from "./vendor/preact.js";
import { count } from "./format.js";

const AT_ONCE = 200;

// `columns` are { name, value(row) for sorting, cell(row) for showing, isNumber }.
export function Table({ columns, rows, label, sortedBy = null, rowClass = () => "", descends = false }) {
  const [order, setOrder] = useState({ by: sortedBy, descends });
  const [most, setMost] = useState(AT_ONCE);
  const sorted = useMemo(() => {
    const column = columns.find((each) => each.name === order.by);
    if (!column) return rows;
    const direction = order.descends ? -1 : 1;
    return [...rows].sort((a, b) => direction * compare(column.value(a), column.value(b)));
  }, [rows, order, columns]);
  const sort = (name) =>
    setOrder((before) => ({ by: name, descends: before.by === name ? !before.descends : Boolean(columns.find((each) => each.name === name).isNumber) }));
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label=${label}>
      <table>
        <thead><tr>${columns.map((column) => html`<th scope="col" class=${column.isNumber ? "number" : ""} aria-sort=${column.name === order.by ? (order.descends ? "descending" : "ascending") : "none"}><button onClick=${() => sort(column.name)}>${column.name}</button></th>`)}</tr></thead>
        <tbody>
          ${sorted.slice(0, most).map((row) => html`<tr class=${rowClass(row)}>${columns.map((column) => html`<td class=${column.isNumber ? "number" : "name"}>${(column.cell ?? column.value)(row)}</td>`)}</tr>`)}
        </tbody>
      </table>
    </div>
    ${sorted.length > most && html`<button class="more" onClick=${() => setMost(most + 5 * AT_ONCE)}>Show more of ${count(sorted.length)} rows</button>`}
  `;
}

function compare(a, b) {
  const isMissing = (value) => value === null || value === undefined || value === "";
  if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
  return typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}
