// Try it: a form that fits the inputs, and the answer in both precisions with the difference.

import { html, useMemo, useState } from "./vendor/preact.js";
import { count, milliseconds, number, percent, precision } from "./format.js";
import { EDITORS } from "./editors.js";
import { Table } from "./table.js";
import { getJson, pathOf, useJson } from "./data.js";

export function TryIt({ card }) {
  const [form, error] = useJson(`${pathOf(card)}/try`);
  if (error) return html`<p class="quiet">${error}</p>`;
  if (!form) return html`<p class="quiet">Reading the inputs…</p>`;
  return html`<${Form} card=${card} form=${form} />`;
}

const RAW = { text: "a text", image: "an image", audio: "a sound" };

function Form({ card, form }) {
  const first = form.raw.length ? "raw" : form.presets.length ? 0 : "tensors";
  const [start, setStart] = useState(first); // "raw", "tensors", or the number of golden inputs
  const [edited, setEdited] = useState({}); // name -> what its editor holds, for inputs that were changed
  const [answer, setAnswer] = useState(null);
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);

  const golden = typeof start === "number" ? start : null;
  const inputs = start === "raw" ? form.raw : form.inputs;
  const choose = (value) => {
    setStart(value in form.presets ? Number(value) : value);
    setEdited({});
  };
  const send = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      const sent = inputs.filter((input) => input.name in edited || golden === null).map((input) => messageOf(input, edited[input.name]));
      const query = golden === null ? "" : `?golden=${golden}`;
      const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ inputs: sent }) };
      setAnswer(await getJson(`${pathOf(card)}/try${query}`, options));
    } catch (problem) {
      setAnswer(null);
      setError(problem.message);
    }
    setBusy(false);
  };
  return html`
    <div class="pair">
      <form class="sheet" onSubmit=${send} aria-label="Inputs">
        ${form.raw.length + form.presets.length > 0 && html`
          <div class="form-input"><label for="preset">Start from</label>
            <select id="preset" value=${start} onChange=${(event) => choose(event.target.value)}>
              ${form.raw.length > 0 && html`<option value="raw">${RAW[form.raw[0].name] ?? "raw inputs"}</option>`}
              ${form.presets.map((_, index) => html`<option value=${index}>golden inputs ${index + 1}</option>`)}
              <option value="tensors">own values</option>
            </select>
          </div>`}
        ${inputs.map((input) => html`<${Input} key=${`${start} ${input.name}`} input=${input} preset=${golden === null ? null : form.presets[golden][input.name]}
          onEdit=${(value) => setEdited((before) => ({ ...before, [input.name]: value }))} />`)}
        <button class="primary" disabled=${isBusy}>${isBusy ? "Running…" : "Run in half and in FP32"}</button>
      </form>
      <div aria-live="polite">
        ${error && html`<section class="sheet"><p class="error" role="alert">${error}</p></section>`}
        ${answer && html`<${Answer} answer=${answer} />`}
      </div>
    </div>
  `;
}

function Input({ input, preset, onEdit }) {
  const Editor = EDITORS[input.editor].Editor;
  return html`
    <fieldset class="form-input sheet">
      <legend>${input.name} <small>${input.datatype} [${input.shape.join(", ")}]</small></legend>
      <${Editor} input=${input} preset=${preset} onEdit=${onEdit} />
    </fieldset>
  `;
}

function messageOf(input, value) {
  const editor = EDITORS[input.editor];
  const { shape, data } = editor.read(input, value ?? editor.empty(input));
  return { name: input.name, datatype: input.datatype, shape, data };
}

function Answer({ answer }) {
  return html`
    <section class="sheet" aria-label="Answer">
      <h3>Answer</h3>
      <${Side} name="half" tried=${answer.half} />
      <${Side} name="FP32" tried=${answer.fp32} />
    </section>
    ${answer.outputs.map((output) => html`<${Output} key=${output.name} output=${output} />`)}
  `;
}

function Side({ name, tried }) {
  if (tried.error) return html`<p class="error">${name}: ${tried.error}</p>`;
  return html`<p class="quiet">${name}: answered in ${precision(tried.precision)}, ${milliseconds(tried.compute_ms)} in the model</p>`;
}

function Output({ output }) {
  const rows = useMemo(() => rowsOf(output), [output]);
  const total = output.shape.reduce((product, size) => product * size, 1);
  const isOver = output.exceeded.length > 0;
  return html`
    <section class="sheet" aria-label=${`Output ${output.name}`}>
      <h3>${output.name} <small>${output.datatype} [${output.shape.join(", ")}]</small></h3>
      ${output.is_answer && output.datatype === "BYTES" && output.same !== null && html`
        <p class="difference">${output.same ? "the same in both precisions" : "not the same in both precisions"}</p>`}
      ${!output.is_answer && output.half && output.fp32 && html`
        <p class="difference"><span class="badge ${isOver ? "over" : "within"}">${isOver ? "over budget" : "within budget"}</span>
          difference: relative L2 <b>${number(output.relative_l2 ?? Infinity)}</b>, largest ${number(output.max_abs)}${output.top1 === null ? "" : `, top-1 agrees in ${percent(output.top1)} of rows`}${output.non_finite ? `, ${count(output.non_finite)} elements not finite in half` : ""}</p>`}
      ${output.exceeded.map((sentence) => html`<p class="error">${sentence}</p>`)}
      <${Table} label=${`Values of ${output.name}`} columns=${COLUMNS} rows=${rows} />
      ${rows.length < total && html`<p class="quiet">The first ${count(rows.length)} of ${count(total)} elements.</p>`}
    </section>
  `;
}

const shown = (value) => (typeof value === "number" ? number(value, 6) : value === undefined ? "–" : String(value));

const COLUMNS = [
  { name: "element", value: (row) => row.index, cell: (row) => row.at, isNumber: true },
  { name: "half", value: (row) => row.half, cell: (row) => shown(row.half), isNumber: true },
  { name: "FP32", value: (row) => row.fp32, cell: (row) => shown(row.fp32), isNumber: true },
  { name: "difference", value: (row) => row.difference, cell: (row) => number(row.difference), isNumber: true },
];

function rowsOf({ shape, half, fp32 }) {
  return (half ?? fp32 ?? []).map((_, index) => {
    const [a, b] = [half?.[index], fp32?.[index]];
    const difference = typeof a === "number" && typeof b === "number" ? Math.abs(a - b) : null;
    return { index, at: `[${placeOf(index, shape).join(", ")}]`, half: a, fp32: b, difference };
  });
}

function placeOf(index, shape) {
  const place = [];
  for (const size of [...shape].reverse()) {
    place.unshift(index % size);
    index = Math.floor(index / size);
  }
  return place;
}
