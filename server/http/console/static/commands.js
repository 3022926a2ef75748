// Commands to copy, for curl, Python and tritonclient.

import { html, useState } from "./vendor/preact.js";
import { pathOf, useJson } from "./data.js";

export function Commands({ card }) {
  const [commands, error] = useJson(`${pathOf(card)}/commands`);
  if (error) return html`<p class="quiet">${error}</p>`;
  if (!commands) return null;
  return html`
    <p class="quiet">Each sends zeros; the inputs and outputs are those of this version.</p>
    ${commands.map((command) => html`<${Command} key=${command.tool} command=${command} />`)}
  `;
}

function Command({ command }) {
  const [words, setWords] = useState("Copy");
  const copy = async () => {
    setWords((await copied(command.text)) ? "Copied" : "Select the text and copy it");
    setTimeout(() => setWords("Copy"), 2000);
  };
  return html`
    <section class="command" aria-label=${command.tool}>
      <h3>${command.tool} <button onClick=${copy} aria-label=${`${words} the ${command.tool} command`}>${words}</button></h3>
      <pre tabindex="0"><code>${command.text}</code></pre>
    </section>
  `;
}

// The clipboard API exists over https and on localhost only; elsewhere the older command does it.
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  return isDone;
}
