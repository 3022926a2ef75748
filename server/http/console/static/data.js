// What the server says about one model: addresses, and JSON that is loaded when a page shows it.

import { useEffect, useState } from "./vendor/preact.js";

export const hrefOf = (name, version, tab) =>
  `#/model/${encodeURIComponent(name)}/${encodeURIComponent(version)}/${tab}`;

export const pathOf = (card) =>
  `console/models/${encodeURIComponent(card.name)}/versions/${encodeURIComponent(card.version)}`;

export async function getJson(path, options) {
  const answer = await fetch(path, options);
  if (answer.status === 401) location.reload(); // the session has ended: the server shows the form for a key
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ?? `the server answered ${answer.status}`);
  return body;
}

// Loads JSON once for each path; returns [data, error, reload].
export function useJson(path) {
  const [state, setState] = useState([null, null]);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let isCurrent = true;
    getJson(path).then(
      (data) => isCurrent && setState([data, null]),
      (error) => isCurrent && setState([null, error.message]),
    );
    return () => (isCurrent = false);
  }, [path, turn]);
  return [...state, () => setTurn((before) => before + 1)];
}
