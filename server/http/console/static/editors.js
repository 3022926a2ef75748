// Editors of inputs by kind. An editor has a component `Editor` that calls `onEdit(value)`, `empty(input)`, the value of an
// input that nobody touched, and `read(input, value)`, which returns the shape and the flat data of the request, or throws
// an error for the person. The server says which editor an input takes (`editor` of the form); another kind of input is one
// more entry here.

import { html, useState } from "./vendor/preact.js";
import { Files, readFiles } from "./files.js";

export const EDITORS = {
  numbers: { Editor: Lines, empty: zeros("0"), read: reader(numbersIn) },
  flags: { Editor: Lines, empty: zeros("false"), read: reader((text) => JSON.parse(`[${bare(text)}]`)) },
  text: { Editor: Lines, empty: zeros(""), read: reader((text) => text.split("\n")) },
  prose: { Editor: Prose, empty: () => "", read: (_, text) => ({ shape: [1], data: [text] }) },
  image: { Editor: Files, empty: () => [], read: readFiles },
  audio: { Editor: Files, empty: () => [], read: readFiles },
};

// A text area whose whole content is one text.
function Prose({ input, onEdit }) {
  return html`<textarea rows="5" aria-label=${input.name} onInput=${(event) => onEdit(event.target.value)}></textarea>`;
}

// A text area for the values and a field for the shape.
function Lines({ input, preset, onEdit }) {
  const [value, setValue] = useState(preset ? presetValue(input, preset) : EDITORS[input.editor].empty(input));
  const [isOpen, setOpen] = useState(!preset || preset.data !== null);
  const edit = (change) => {
    const next = { ...value, ...change };
    setValue(next);
    onEdit(next);
  };
  if (!isOpen) {
    return html`<p class="quiet">${preset.summary}, sent as they are. <button type="button" class="link" onClick=${() => (setOpen(true), edit(EDITORS[input.editor].empty(input)))}>Type others</button></p>`;
  }
  const hint = input.editor === "text" ? "one text per line" : "separated by commas or spaces";
  return html`
    <label>shape <input class="shape" value=${value.shape} onInput=${(event) => edit({ shape: event.target.value })} /></label>
    <label>values, ${hint}${preset ? html` <small>${preset.summary}</small>` : ""}
      <textarea rows="4" spellcheck="false" value=${value.text} onInput=${(event) => edit({ text: event.target.value })}></textarea>
    </label>
  `;
}

function presetValue(input, preset) {
  const text = (preset.data ?? []).join(input.editor === "text" ? "\n" : ", ");
  return { shape: preset.shape.join(", "), text };
}

function zeros(zero) {
  return (input) => {
    const shape = input.shape.map((size) => (typeof size === "number" ? size : 1));
    const total = shape.reduce((product, size) => product * size, 1);
    const separator = input.editor === "text" ? "\n" : ", ";
    return { shape: shape.join(", "), text: Array(Math.min(total, 4096)).fill(zero).join(separator) };
  };
}

function reader(parse) {
  return (input, value) => {
    const shape = value.shape.split(/[\s,]+/).filter(Boolean).map(Number);
    if (shape.some((size) => !Number.isInteger(size) || size < 0)) throw new Error(`${input.name}: the shape is a list of whole numbers, such as 1, 3`);
    let data;
    try {
      data = parse(value.text);
    } catch {
      throw new Error(`${input.name}: the values cannot be read`);
    }
    const total = shape.reduce((product, size) => product * size, 1);
    if (data.length !== total) throw new Error(`${input.name}: ${data.length} values do not fill the shape, which takes ${total}`);
    return { shape, data };
  };
}

const bare = (text) => text.replace(/[[\]]/g, " ").trim().split(/[\s,]+/).filter(Boolean).join(",");

function numbersIn(text) {
  const words = bare(text).split(",").filter(Boolean);
  const numbers = words.map(Number);
  if (numbers.some(Number.isNaN)) throw new Error("not a number");
  return numbers;
}
